"""Every number of the 16-bit dtypes, and every pair of a grid.

The truth is computed in float64 by forms that cancel nowhere. Its error of a few units of 2^-53 is 10^8 times below the
budget of float32; a test compares it with the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from polyloss.conformance.budget import HALF, Exact
from polyloss.conformance.exact import Case
from polyloss.conformance.routes import rounded

__all__ = ["exhaustive", "exhausts"]

Numbers = np.ndarray


def _softplus(x: Numbers) -> Numbers:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _sigmoid(x: Numbers) -> Numbers:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


UNARY: dict[str, tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]] = {
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "softplus": (_softplus, _sigmoid),
    "log_sigmoid": (lambda x: -_softplus(-x), lambda x: _sigmoid(-x)),
}

PAIRS: dict[str, tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]] = {
    "bpr": (lambda lead: _softplus(-lead), lambda lead: -_sigmoid(-lead)),
    "pairwise_hinge": (
        lambda lead: np.maximum((np.float32(1) - lead.astype(np.float32)).astype(np.float64), 0),
        lambda lead: np.where(np.float32(1) - lead.astype(np.float32) > 0, -1.0, 0.0),
    ),
}


def exhausts(function: str, dtype: str) -> str:
    """Why nothing is exhausted; empty where all numbers or pairs are run."""
    if dtype in HALF and (function in UNARY or function == "sigmoid_cross_entropy"):
        return ""
    if dtype == "float32" and function in PAIRS:
        return ""
    return "all numbers are run through functions of one 16-bit number, and a grid of pairs in float32"


def exhaustive(function: str, dtype: str) -> Iterator[tuple[str, Case]]:
    """Cases that together hold every number of the dtype, or every pair of a grid."""
    if function in PAIRS:
        line = _grid()
        positive, negative = (x.ravel() for x in np.meshgrid(line, line))
        lead = (positive - negative).astype(np.float64)  # rounded once, as the primitive gets it
        value, slope = PAIRS[function]
        yield "all pairs of 512 numbers", _case(function, (positive, negative), dtype, value(lead), slope(lead))
        return
    x = _every(dtype)
    wide = x.astype(np.float64)
    if function in UNARY:
        value, slope = UNARY[function]
        yield "all numbers", _case(function, (x,), dtype, value(wide), slope(wide))
        return
    for t in (0.0, 1.0):
        target = np.full(x.shape, t, np.float32)
        sign = 1 - 2 * t
        yield (
            f"all numbers, target {t:.0f}",
            _case(function, (x, target), dtype, _softplus(sign * wide), sign * _sigmoid(sign * wide)),
        )


def _grid() -> Numbers:
    sizes = np.concatenate([np.geomspace(1e-8, 110, 200), np.linspace(0.05, 3, 56)])
    return np.concatenate([sizes, -sizes]).astype(np.float32)


def _every(dtype: str) -> Numbers:
    """Every finite number of a 16-bit dtype, as float32."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    x = bits.astype(np.uint16).view(np.float16) if dtype == "float16" else (bits << 16).view(np.float32)
    return rounded(x[np.isfinite(x)].astype(np.float32), dtype)


def _case(function: str, arrays: tuple[Numbers, ...], dtype: str, value: Numbers, slope: Numbers) -> Case:
    transform = function in UNARY
    six = np.full(value.shape, 6.0)
    return Case(function, arrays, dtype, {}, Exact.of(value), Exact.of(slope), six, (2 if transform else 1) * six, 2)
