"""Numbers that should be equal, or nearly: the one comparison of all that is not judged by the oracle's budget.

Laws, limits and derivatives raise `Differs` from it, so a report says of them what it says of accuracy: the number that
was expected, ours, the error in ulp and how much was allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polyloss.conformance.budget import HALF, unit
from polyloss.conformance.routes import to_numpy

__all__ = ["Differs", "compare", "same"]


class Differs(AssertionError):
    """A number is another than it should be."""

    def __init__(self, what: str, at: tuple[int, ...], expected: float, got: float, ulps: float, budget: float) -> None:
        self.what = f"{what} at {at}" if at else what
        self.at, self.expected, self.got, self.ulps, self.budget = at, expected, got, ulps, budget
        super().__init__(f"{self.what}: {got!r}, not {expected!r}, {ulps:.4g} ulp apart, {budget:.4g} allowed")


def compare(got: Any, expected: Any, what: str, dtype: str, allowed: Any = 0.0, larger: Any = 0.0) -> None:
    """Raises `Differs` if an entry is further from the expected one than is ``allowed``, an absolute number.

    NaN and infinities must be in the same places. An ulp is one of the expected number in ``dtype``, or of the
    ``larger`` term that it was made of.
    """
    got, expected = to_numpy(got), to_numpy(expected)
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: shape {got.shape}, not {expected.shape}")
    equal = (got == expected) | (np.isnan(got) & np.isnan(expected))
    if np.all(equal):
        return
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.abs(got - expected)
        error = np.where(np.isnan(error) | np.isinf(expected), np.inf, error)
        wrong = ~equal & ~((error <= allowed) & np.isfinite(error))
        if not np.any(wrong):
            return
        size = np.maximum(np.abs(expected), larger)
        ulp = unit(np.where(np.isfinite(size), size, 0), dtype)
        ulps, budget = np.broadcast_arrays(error / ulp, np.where(np.isfinite(expected), allowed, 0) / ulp)
    at = tuple(map(int, np.unravel_index(int(np.argmax(np.where(wrong, ulps, -1))), wrong.shape)))
    raise Differs(what, at, float(expected[at]), float(got[at]), float(ulps[at]), float(budget[at]))


def same(got: Any, expected: Any, what: str) -> None:
    """Equal to the last bit, NaN too; zeros of both signs are equal."""
    got = to_numpy(got)
    name = got.dtype.name
    compare(got, expected, what, name if name in ("float32", "float64", *HALF) else "float64")
