"""How far from the truth a result may be, as a formula with its reason; the same for every library and every route.

An error is counted in ulp (units in the last place) of the exact result, or of the larger term where the formula itself
subtracts. A result may be off by ``6 + s + log2 K`` of them:

- 6 for the elementary functions. The least accurate ones in use are those of NumPy (exp 2.4 ulp) and XLA (log1p 2.4),
  and a result takes an exp, a log1p or a quotient, and two or three roundings more.
- ``log2 K`` for a sum of K terms in pairs.
- ``s`` for the subtraction ``x_max - x_j``: it is rounded once, to half an ulp of a number of that size, and exp turns
  an absolute error into a relative one. So ``exp(x_j - x_max)`` is off by up to ``|x_j - x_max|`` ulp, and their sum by
  the mean of these with the exponentials as weights. An entry of the gradient that *is* one of those exponentials
  (over the sum) is off by its own ``|x_k - x_max|``, where that is more: this corrects a bound that has the mean alone.

Below the smallest normal number precision fades: each of the K terms is rounded to a multiple of the smallest
subnormal number, and where a platform flushes subnormal numbers to zero (XLA) it may lose up to the smallest normal
one. That much is allowed in absolute terms, K times, and times the weight (``pos_weight``, ``class_weights``) that
multiplies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpmath import mp

__all__ = ["Exact", "entry_spread", "faded", "spread", "ulps"]

FLUSHING = frozenset({"jax"})


class Exact:
    """Exact numbers in an array, as unevaluated sums of two float64: 106 bits, which measures float64 too."""

    def __init__(self, numbers: Any) -> None:
        exact = np.array(numbers, dtype=object)
        self.high = exact.astype(np.float64)
        with mp.workdps(50):
            rest = np.vectorize(lambda v, high: float(v - float(high)), otypes=[float])
            self.low = np.where(np.isfinite(self.high), rest(exact, self.high), 0.0)

    def moved(self, source: int, destination: int) -> Exact:
        """The same numbers with an axis moved."""
        other = object.__new__(Exact)
        other.high = np.moveaxis(self.high, source, destination)
        other.low = np.moveaxis(self.low, source, destination)
        return other

    def at(self, i: int) -> Exact:
        """The i-th along the second axis."""
        other = object.__new__(Exact)
        other.high, other.low = self.high[:, i], self.low[:, i]
        return other

    def __abs__(self) -> np.ndarray:
        return np.abs(self.high)


def ulps(got: np.ndarray, exact: Exact, larger: np.ndarray | None = None, *, floor: float = 0.0) -> np.ndarray:
    """The error of ``got`` in ulp of ``exact``, or of the ``larger`` term; ``floor`` is what underflow may cost."""
    info = np.finfo(got.dtype)
    size = np.maximum(abs(exact), 0 if larger is None else np.abs(larger))
    exponent = np.frexp(np.maximum(size, float(info.tiny)))[1] - 1
    unit = np.ldexp(1.0, np.maximum(exponent - info.nmant, -1074))
    error = np.abs((got.astype(np.float64) - exact.high) - exact.low)
    same = got.astype(np.float64) == exact.high  # also where both are infinite
    beyond = ~np.isfinite(got) & (abs(exact) >= float(info.max)) & (np.sign(got) == np.sign(exact.high))
    return np.where(same & ~np.isfinite(got) | beyond, 0.0, np.maximum(error - floor, 0.0) / unit)


def faded(dtype: np.dtype, library: str) -> float:
    """What underflow may cost one term."""
    info = np.finfo(dtype)
    return float(info.tiny if library in FLUSHING else info.smallest_subnormal)


def _others(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each logit is below the maximum, and the exponentials without one index of the maximum."""
    x = x.astype(np.float64)
    gap = np.max(x, axis=-1, keepdims=True) - x
    exps = np.exp(-gap)
    np.put_along_axis(exps, np.argmax(x, axis=-1)[..., None], 0.0, axis=-1)
    return gap, exps


def spread(x: np.ndarray) -> Any:
    """S of each row: the mean distance of the others from the maximum, weighted by their probability."""
    gap, exps = _others(x)
    total = np.sum(exps, axis=-1)
    nearest = np.min(np.where(exps > 0, gap, np.inf), axis=-1, initial=np.inf)
    mean = np.sum(gap * exps, axis=-1) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, np.where(np.isfinite(nearest), nearest, np.max(gap, axis=-1)))


def entry_spread(x: np.ndarray) -> Any:
    """S of each entry of a row's gradient: the row's own, or the entry's distance from the maximum if that is more."""
    gap, _ = _others(x)
    return np.maximum(gap, spread(x)[..., None])
