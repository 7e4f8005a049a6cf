"""Every number of the 16-bit dtypes, NaN and infinities too, and every pair of a grid.

The truth is computed in float64 by forms that cancel nowhere. Its error of a few units of 2^-53 is 10^8 times below the
budget of float32; a test compares it with the oracle. At infinity and NaN it is that of `limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from polyloss.conformance.budget import FLUSHING, HALF, Exact
from polyloss.conformance.exact import Case
from polyloss.conformance.routes import rounded

__all__ = ["entry", "exhaustive", "exhausts", "outside"]

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
        lambda lead: np.where(np.float32(1) - lead.astype(np.float32) <= 0, 0.0, -1.0),  # -1 beside NaN
    ),
}

BINARY: dict[str, Callable[[Numbers, float], tuple[Numbers, Numbers]]] = {
    "sigmoid_cross_entropy": lambda x, t: (_softplus((1 - 2 * t) * x), (1 - 2 * t) * _sigmoid((1 - 2 * t) * x)),
    "binary_log_loss": lambda p, t: (-np.log(p), -1 / np.abs(p)) if t else (-np.log1p(-p), 1 / (1 - p)),
}
"""Value and slope for a target of 0 or 1."""

PARTNERS = (0.0, 1.0, -3.5, 96.0)
"""Negative scores beside which every 16-bit number is the positive one."""


def exhausts(function: str, dtype: str) -> str:
    """Why nothing is exhausted; empty where all numbers or pairs are run."""
    if (dtype in HALF and function in (*UNARY, *PAIRS, *BINARY)) or (dtype == "float32" and function in PAIRS):
        return ""
    return "all numbers are run through functions of one 16-bit number, and a grid of pairs in float32"


def exhaustive(function: str, dtype: str, library: str = "") -> Iterator[tuple[str, Case]]:
    """Cases that together hold every number of the dtype that is valid there, or every pair of a grid."""
    if function in PAIRS:
        line = _every(dtype) if dtype in HALF else _grid()
        partners = rounded(np.asarray(PARTNERS), dtype) if dtype in HALF else line
        positive, negative = (x.ravel() for x in np.meshgrid(line, partners))
        lead = positive.astype(np.float32) - negative.astype(np.float32)  # rounded once, as the primitive gets it
        value, slope = PAIRS[function]
        name = f"all pairs of {len(line)} and {len(partners)} numbers"
        wide = lead.astype(np.float64)
        yield name, _case(function, (positive, negative), dtype, value(wide), slope(wide))
        return
    x = _every(dtype)
    if function == "binary_log_loss":
        steep = 1 / HALF[dtype][2]
        x = x[np.isnan(x) | (x >= 0) & (x <= steep) | (x > 2 * steep) & (x <= 1)]  # routes send twice the cotangent
        x = _not_faded(x, library)
    wide = x.astype(np.float64)
    if function in UNARY:
        value, slope = UNARY[function]
        yield "all numbers", _case(function, (x,), dtype, value(wide), slope(wide))
        return
    for t in (0.0, 1.0):
        target = np.full(x.shape, t, np.float32)
        yield f"all numbers, target {t:.0f}", _case(function, (x, target), dtype, *BINARY[function](wide, t))


def entry(one: Case, number: int) -> Case:
    """The case of one number, or one pair, among all."""
    at = slice(number, number + 1)
    return replace(
        one,
        arrays=tuple(x[at] for x in one.arrays),
        items=one.items[at],
        gradient=one.gradient[at],
        item_budget=one.item_budget[at],
        gradient_budget=one.gradient_budget[at],
    )


def outside(function: str, dtype: str, library: str = "") -> list[float]:
    """Numbers that are no valid first argument: the ends of what is not valid, infinity, and some between."""
    if function != "binary_log_loss":
        return []
    x = np.unique(_not_faded(_every(dtype), library).astype(np.float64))
    below, above = x[x < 0], x[x > 1]
    return [float(v) for part in (below, above) for v in (*part[::97], part[0], part[-1])]


def _not_faded(x: Numbers, library: str) -> Numbers:
    """Without what the library takes for 0: the logarithm of a subnormal number is then another."""
    normal = np.isnan(x) | (x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny)
    return x[normal] if library in FLUSHING else x


def _grid() -> Numbers:
    sizes = np.concatenate([np.geomspace(1e-8, 110, 200), np.linspace(0.05, 3, 56)])
    return np.concatenate([sizes, -sizes]).astype(np.float32)


def _every(dtype: str) -> Numbers:
    """Every number of a 16-bit dtype; bfloat16 as float32."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    x = bits.astype(np.uint16).view(np.float16) if dtype == "float16" else (bits << 16).view(np.float32)
    return x


def _case(function: str, arrays: tuple[Numbers, ...], dtype: str, value: Numbers, slope: Numbers) -> Case:
    transform = function in UNARY
    six = np.full(value.shape, 6.0)
    return Case(function, arrays, dtype, {}, Exact.of(value), Exact.of(slope), six, (2 if transform else 1) * six, 2)
