"""Logits to probabilities and the like: one element, or one row of classes for a team of threads.

See `polyloss.transforms` for the formulas.
"""

from __future__ import annotations

from typing import Any

from polyloss.backends.cuda.device import block, blocks, cuda, device, int32, memory, number, thread, threads, two_sum
from polyloss.backends.cuda.fields import FORMS
from polyloss.backends.cuda.teams import team

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqq"


def build(function: str, x: str, form: str) -> Any:
    """The kernel for inputs of this dtype; outputs have the same."""
    wide = "float64" if x == "float64" else "float32"
    return _rows(function, x, wide, form) if form else _elements(function, x, wide)


def _elements(function: str, x: str, wide: str) -> Any:
    m, of = number(wide), memory(x, wide)
    real, exp, log1p, ratio, load, store = m.real, m.exp, m.log1p, m.ratio, of.load, of.store
    zero, one = real(0), real(1)
    is_sigmoid, is_softplus = function == "sigmoid", function == "softplus"

    @device
    def result(v):
        e = exp(-abs(v))
        if is_sigmoid:
            return ratio(one if v >= zero else e, one + e)
        if is_softplus:
            return (v if v >= zero else zero) + log1p(e)
        return (zero if v >= zero else v) - log1p(e)

    def kernel(x_at, out_at, size, classes):
        for i in range(block() * threads() + thread(), size, blocks() * threads()):
            store(out_at, i, result(load(x_at, i)))

    return kernel


def _rows(function: str, x: str, wide: str, form: str) -> Any:
    m, group, of = number(wide), team(wide, FORMS[form]), memory(x, wide)
    LANES, whole_block = FORMS[form].lanes, FORMS[form].block
    Real, real, exp, log1p, maximum, inf, nan = m.type, m.real, m.exp, m.log1p, m.maximum, m.inf, m.nan
    widest, sum_up, load, store, size = group.maximum, group.sums, of.load, of.store, of.size
    zero, one = real(0), real(1)
    is_softmax, is_log = function == "softmax", function == "log_softmax"

    @device
    def entry(v, top, others, tail):
        if is_softmax:
            return (one if v == top else exp(v - top)) / (one + others)
        return (zero if v == top else v - top) - tail

    def kernel(x_at, out_at, rows, classes):
        if whole_block:
            s0, s1, s2, s3 = (
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
            )
        else:  # shuffles do without
            s0 = cuda.local.array(1, Real)
            s1, s2, s3 = s0, s0, s0
        lane, teams = int32(thread() & (LANES - 1)), threads() // LANES
        for r in range(block() * teams + thread() // LANES, rows, blocks() * teams):
            row = x_at + r * classes * size
            top = -inf
            for k in range(lane, classes, LANES):
                top = maximum(top, load(row, k))
            top = widest(top, LANES, s0)
            total, lost, tops = zero, zero, zero
            for k in range(lane, classes, LANES):
                v = load(row, k)
                if v == top:
                    tops += one
                else:
                    total, lost = two_sum(total, lost, exp(v - top))
            total, lost, tops = sum_up(total, lost, tops, LANES, s1, s2, s3)
            others = (total + (tops - one)) + lost
            undefined = total != total or (top == -inf and tops == zero)
            if is_softmax or is_log:
                if undefined or top == -inf or (top == inf and tops > one):
                    others = nan
                tail = log1p(others)
                out = out_at + r * classes * size
                for k in range(lane, classes, LANES):
                    store(out, k, entry(load(row, k), top, others, tail))
            elif lane == 0:
                lse = top if top == inf or top == -inf else top + log1p(others)
                store(out_at, r, nan if undefined else lse)

    return kernel
