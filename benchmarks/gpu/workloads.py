"""What is measured, and how fast it ought to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["WORKLOADS", "Workload"]

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Workload:
    """A mean loss with its gradient."""

    loss: str  # "softmax", "sigmoid" or "info_nce"
    shape: tuple[int, ...]
    dtype: str = "float32"
    share: float = math.nan  # of the bandwidth of a device-to-device copy, at least
    microseconds: float = math.nan  # for a call, until it returns, at most
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of ours: how much faster than peers

    @property
    def name(self) -> str:
        return f"{self.loss} {' x '.join(map(str, self.shape))} {self.dtype}"

    @property
    def unit(self) -> int:
        """Bytes of the predictions."""
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def moved(self) -> int:
        """Bytes that must be read and written: predictions and gradient; of the binary loss the targets too."""
        return self.unit * (3 if self.loss == "sigmoid" else 2)

    def small(self) -> Workload:
        """The same in a size for a dry run."""
        rows = (6, 40) if len(self.shape) > 1 else (40,)
        shape = tuple(min(n, most) for n, most in zip(self.shape, rows))
        return replace(self, shape=shape)


OF_TORCH = {"polyloss, torch": {"torch": 2.5, "torch.compile": 1.0, "Liger-Kernel": 1.0}}
OF_CUPY = {"polyloss, CuPy": {"CuPy by hand": 5.0}}

WORKLOADS = (
    Workload("softmax", (32_768, 4_096), share=0.85, factors=OF_TORCH),
    Workload("softmax", (8_192, 32_000), share=0.85, factors=OF_TORCH),
    Workload("softmax", (32_768, 4_096), "bfloat16", share=0.85, factors=OF_TORCH),
    Workload("softmax", (8_192, 32_000), "bfloat16", share=0.85, factors=OF_TORCH),
    Workload("softmax", (8_192, 128_256), "bfloat16", share=0.80),
    Workload("softmax", (8_192, 1_000), factors=OF_CUPY),
    Workload("softmax", (1_048_576, 10)),
    Workload("softmax", (16, 262_144)),
    Workload("sigmoid", (268_435_456,), share=0.90),
    Workload("sigmoid", (268_435_456,), "bfloat16", share=0.90),
    Workload("info_nce", (8_192, 512)),
    Workload("softmax", (64, 10), microseconds=60),
)
