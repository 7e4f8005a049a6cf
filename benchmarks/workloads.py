"""What is computed: the workloads with their inputs and the bytes that they must move, and the bar."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = ["BAR", "TEMPERATURE", "WORKLOADS", "Goal", "Workload", "over_classes", "over_rows"]

TEMPERATURE = 0.07
SPREAD = 3  # standard deviation of the logits
SHORT = {"softmax_cross_entropy": "softmax CE", "sigmoid_cross_entropy": "sigmoid CE", "info_nce": "info_nce"}


@dataclass(frozen=True)
class Workload:
    """A mean loss and, unless ``gradient`` is False, its gradient: in the logits, or in both embeddings."""

    loss: str  # its public name
    shape: tuple[int, ...]  # of the logits or of the embeddings
    dtype: str = "float32"
    gradient: bool = True

    @property
    def name(self) -> str:
        size = " x ".join(f"{n // 10**6} M" if n % 10**6 == 0 else str(n) for n in self.shape)
        extras = [] if self.dtype == "float32" else [self.dtype]
        extras += [] if self.gradient else ["value only"]
        return ", ".join([f"{SHORT[self.loss]} {size}", *extras])

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and targets, or queries and positives."""
        rng = np.random.default_rng(self.shape)
        dtype = np.dtype(self.dtype)
        x = rng.standard_normal(self.shape, dtype=dtype)
        if self.loss == "info_nce":
            return x, rng.standard_normal(self.shape, dtype=dtype)
        x *= SPREAD
        if self.loss == "sigmoid_cross_entropy":
            return x, rng.integers(2, size=self.shape).astype(dtype)
        return x, rng.integers(self.shape[1], size=self.shape[0])

    @property
    def outputs(self) -> int:
        """How many gradients there are."""
        return 0 if not self.gradient else 2 if self.loss == "info_nce" else 1

    @property
    def moved(self) -> int:
        """The bytes that any implementation has to move: inputs read once, gradients written once."""
        array = prod(self.shape) * np.dtype(self.dtype).itemsize
        targets = self.shape[0] * 8 if self.loss == "softmax_cross_entropy" else array
        return array + targets + self.outputs * array

    @property
    def unit(self) -> int:
        """The bytes of the logits: the unit of peak memory. Those of `info_nce` are its N x N similarities."""
        shape = (self.shape[0],) * 2 if self.loss == "info_nce" else self.shape
        return prod(shape) * np.dtype(self.dtype).itemsize


def _softmax(n: int, k: int, dtype: str = "float32", gradient: bool = True) -> Workload:
    return Workload("softmax_cross_entropy", (n, k), dtype, gradient)


WORKLOADS = (
    _softmax(8, 10),
    _softmax(256, 1000),
    _softmax(8192, 1000),
    _softmax(16384, 1000),
    _softmax(16384, 1000, gradient=False),
    _softmax(16384, 1000, "float64"),
    _softmax(65536, 10),
    _softmax(65536, 1000),
    _softmax(1024, 32000),
    _softmax(1024, 128000),
    Workload("sigmoid_cross_entropy", (10**6,)),
    Workload("sigmoid_cross_entropy", (16 * 10**6,)),
    Workload("info_nce", (4096, 256)),
)


def over_rows(quick: bool) -> list[Workload]:
    """The left panel of the plot."""
    sizes = (8, 32, 128) if quick else (8, 32, 128, 512, 2048, 8192, 32768, 65536)
    return [_softmax(n, 1000) for n in sizes]


def over_classes(quick: bool) -> list[Workload]:
    """The right panel of the plot."""
    sizes = (10, 32) if quick else (10, 32, 100, 320, 1000, 3200, 10000, 32000, 128000)
    return [_softmax(1024, k) for k in sizes]


@dataclass(frozen=True)
class Goal:
    """One number of the bar: the time of the peer over ours is to be at least this."""

    workload: str
    peer: str
    ratio: float
    ours: str = "polyloss, NumPy"


BAR = (
    Goal("softmax CE 16384 x 1000", "torch", 4.0),
    Goal("softmax CE 16384 x 1000", "JAX jit", 3.5),
    Goal("softmax CE 16384 x 1000", "scikit-learn", 4.5),
    Goal("softmax CE 16384 x 1000", "copy", 0.9),
    Goal("softmax CE 1024 x 32000", "torch", 4.0),
    Goal("softmax CE 1024 x 128000", "torch", 4.0),
    Goal("softmax CE 65536 x 10", "torch", 8.0),
    Goal("softmax CE 256 x 1000", "torch", 2.0),
    Goal("softmax CE 16384 x 1000, value only", "torch", 4.0),
    Goal("sigmoid CE 16 M", "torch", 3.5),
    Goal("sigmoid CE 16 M", "scikit-learn", 4.5),
    Goal("info_nce 4096 x 256", "torch", 1.15),
    Goal("info_nce 4096 x 256", "matrix products", 0.8),
    Goal("softmax CE 8 x 10", "NumPy", 1.2),
    Goal("softmax CE 16384 x 1000, float64", "torch", 3.0),
    Goal("softmax CE 16384 x 1000", "torch", 2.5, "polyloss, torch"),
    Goal("softmax CE 8 x 10", "torch", 0.8, "polyloss, torch"),
    Goal("softmax CE 16384 x 1000", "torch.compile", 1.3, "polyloss, torch.compile"),
    Goal("softmax CE 8192 x 1000", "JAX jit", 1.3, "polyloss, JAX jit"),
)
