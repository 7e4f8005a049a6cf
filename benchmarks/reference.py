"""Whether a contestant computed the right thing: our own formulas in float64, and a loose comparison with them.

Loose, because this is about speed: it finds a wrong operation, reduction or dtype. `benchmarks.accuracy` counts digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.workloads import TEMPERATURE, Workload

__all__ = ["Reference", "reference"]

TOLERANCE = 1e-3
BLOCK = 1 << 24  # elements in float64 at a time

Truth = tuple[float, tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Reference:
    """The value and the gradients, as float32 holds them, and the dtype that a contestant's should have."""

    value: float
    gradients: tuple[np.ndarray, ...]
    dtype: np.dtype[Any]

    def disagreement(self, result: Any) -> str:
        """What is wrong with a contestant's result, or an empty string."""
        value, *gradients = map(_as_numpy, _flat(result))
        if not abs(float(value) - self.value) <= TOLERANCE * abs(self.value):
            return f"the value is {float(value):.6g}, not {self.value:.6g}"
        if len(gradients) != len(self.gradients):
            return f"{len(gradients)} gradients, not {len(self.gradients)}"
        for found, right in zip(gradients, self.gradients):
            if found.dtype != self.dtype or found.shape != right.shape:
                return f"a gradient is {found.dtype} {found.shape}, not {self.dtype} {right.shape}"
            error = np.abs(found - right)
            size = np.abs(right)
            # The largest error finds a wrong entry; the sum finds small entries that are all wrong.
            if not (error.max() <= TOLERANCE * size.max() and error.sum() <= TOLERANCE * size.sum()):
                return f"a gradient is off by {error.max() / size.max():.2g} of its largest entry"
        return ""


def reference(workload: Workload, x: np.ndarray, y: np.ndarray) -> Reference:
    """The truth for these inputs."""
    formula = {"softmax_cross_entropy": _softmax, "sigmoid_cross_entropy": _sigmoid, "info_nce": _info_nce}
    value, gradients = formula[workload.loss](x, y)
    return Reference(value, gradients if workload.gradient else (), x.dtype)


def _softmax(x: np.ndarray, y: np.ndarray) -> Truth:
    total, gradient = 0.0, np.empty(x.shape, np.float32)
    for rows in _blocks(len(x), x.shape[1]):
        losses, gradient[rows] = _softmax_rows(x[rows].astype(np.float64), y[rows], len(x))
        total += float(losses.sum())
    return total / len(x), (gradient,)


def _softmax_rows(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and the gradient of their sum over ``count``."""
    i = np.arange(len(x))
    x = x - x.max(axis=1, keepdims=True)
    lse = np.log(np.exp(x).sum(axis=1, keepdims=True))
    gradient = np.exp(x - lse)
    gradient[i, y] -= 1
    return lse[:, 0] - x[i, y], gradient / count


def _sigmoid(x: np.ndarray, t: np.ndarray) -> Truth:
    total, gradient = 0.0, np.empty(x.shape, np.float32)
    for items in _blocks(len(x), 1):
        wide = x[items].astype(np.float64)
        gradient[items] = (1 / (1 + np.exp(-wide)) - t[items]) / len(x)
        total += float(np.sum(np.logaddexp(0, wide) - t[items] * wide))
    return total / len(x), (gradient,)


def _info_nce(q: np.ndarray, p: np.ndarray) -> Truth:
    """In-batch negatives, cosine similarity, gradients in queries and positives."""
    sizes = [np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True) for a in (q, p)]
    units = [a / size for a, size in zip((q, p), sizes)]
    labels = np.arange(len(q))
    losses, slope = _softmax_rows(units[0] @ units[1].T / TEMPERATURE, labels, len(q))
    slope /= TEMPERATURE
    to_units = slope @ units[1], slope.T @ units[0]
    # The part along an embedding changes its length alone, which the cosine does not see.
    gradients = [(g - u * (g * u).sum(axis=1, keepdims=True)) / s for g, u, s in zip(to_units, units, sizes)]
    return float(losses.mean()), tuple(gradient.astype(np.float32) for gradient in gradients)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _flat(result: Any) -> Iterator[Any]:
    """Values and gradients in order, however the contestant nests them."""
    if isinstance(result, tuple | list):
        for part in result:
            yield from _flat(part)
    else:
        yield result


def _as_numpy(array: Any) -> np.ndarray:
    return np.asarray(array.detach() if hasattr(array, "detach") else array)
