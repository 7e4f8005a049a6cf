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

16-bit inputs are computed in float32, with its budget. What comes back in 16 bits is that number rounded once, to the
nearest, so half an ulp of 16 bits is taken off its error before that is counted in ulp of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpmath import mp

__all__ = ["FLUSHING", "HALF", "Exact", "entry_spread", "faded", "spread", "ulps", "unit"]

FLUSHING = frozenset({"jax"})


class Exact:
    """Exact numbers in an array, as unevaluated sums of two float64: 106 bits, which measures float64 too."""

    def __init__(self, numbers: Any) -> None:
        exact = np.array(numbers, dtype=object)
        parts: dict[int, tuple[float, float]] = {}  # by identity: the oracle repeats what it has computed once
        with mp.workdps(50):
            for v in exact.flat:
                if id(v) not in parts:
                    high = float(v)
                    parts[id(v)] = high, float(v - high) if np.isfinite(high) else 0.0
        pairs = np.array([parts[id(v)] for v in exact.flat]).reshape((*exact.shape, 2))
        self.high, self.low = pairs[..., 0], pairs[..., 1]

    @classmethod
    def of(cls, numbers: np.ndarray) -> Exact:
        """Numbers in float64, taken for exact."""
        other = object.__new__(cls)
        other.high, other.low = numbers, np.zeros_like(numbers)
        return other

    def __getitem__(self, at: Any) -> Exact:
        other = object.__new__(Exact)
        other.high, other.low = self.high[at], self.low[at]
        return other

    def moved(self, source: int, destination: int) -> Exact:
        """The same numbers with an axis moved."""
        other = object.__new__(Exact)
        other.high = np.moveaxis(self.high, source, destination)
        other.low = np.moveaxis(self.low, source, destination)
        return other

    def __abs__(self) -> np.ndarray:
        return np.abs(self.high)


HALF = {"float16": (10, 2.0**-14, 65504.0), "bfloat16": (7, 2.0**-126, 3.3895313892515355e38)}
"""The dtypes that come back as float32: bits of the fraction, smallest normal number, largest number."""


def _format(dtype: str) -> tuple[int, float, float]:
    if dtype in HALF:
        return HALF[dtype]
    info = np.finfo(dtype)
    return info.nmant, float(info.tiny), float(info.max)


def unit(size: np.ndarray, dtype: str) -> np.ndarray:
    """An ulp of numbers of that size; of subnormal ones, their distance."""
    bits, tiny, _ = _format(dtype)
    exponent = np.frexp(np.maximum(size, tiny))[1] - 1
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - bits, -1074)))


def ulps(got: np.ndarray, exact: Exact, larger: np.ndarray | None, dtype: str, floor: Any = 0.0) -> np.ndarray:
    """The error of ``got`` in ulp of ``exact``, or of the ``larger`` term; ``floor`` is what underflow may cost."""
    bits, _, largest = _format(dtype)
    size = np.maximum(abs(exact), 0 if larger is None else np.abs(larger))
    wide = got.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs((wide - exact.high) - exact.low)
        # An answer beyond the largest number, or within a rounding of it, may be infinite.
        beyond = np.isinf(wide) & (abs(exact) >= largest * (1 - 2.0**-bits)) & (np.sign(wide) == np.sign(exact.high))
        same = (wide == exact.high) | (np.isnan(wide) & np.isnan(exact.high))
        return np.where(same & ~np.isfinite(wide) | beyond, 0.0, np.maximum(error - floor, 0.0) / unit(size, dtype))


def faded(dtype: str, library: str) -> float:
    """What underflow may cost one term."""
    bits, tiny, _ = _format(dtype)
    return tiny if library in FLUSHING else tiny * 2.0**-bits


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
