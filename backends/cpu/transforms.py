"""Logits to probabilities and the like: one element, or one row of classes that stand side by side, at a time.

See `polyloss.transforms` for the formulas. Compiled by `compiled`, which imports this file.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from polyloss.backends.cpu.arithmetic import STRICT, arithmetic, field, memory, pointer
from polyloss.backends.cpu.fields import BLOCK, ROWS, TRANSFORM
from polyloss.backends.cpu.rows import statistics

__all__ = ["build"]


def build(function: str, x: str) -> Any:
    """The kernel for inputs of this dtype; outputs have the same."""
    return _rows(function, x) if function in ("softmax", "log_softmax", "logsumexp") else _elements(function, x)


def _elements(function: str, x: str) -> Any:
    wide = "float64" if x == "float64" else "float32"
    m = arithmetic(wide)
    real, exp_neg, log1p_unit = m.real, m.exp_neg, m.log1p_unit
    load, store = memory(x, wide).load, memory(x, wide).store
    zero, one = real(0), real(1)
    is_sigmoid, is_softplus = function == "sigmoid", function == "softplus"

    @njit(**STRICT)
    def of(v):
        e = exp_neg(-abs(v))
        if is_sigmoid:
            return (one if v >= zero else e) / (one + e)
        if is_softplus:
            return (v if v >= zero else zero) + log1p_unit(e)
        return (zero if v >= zero else v) - log1p_unit(e)

    def kernel(f, start, stop):
        inputs, outputs = pointer(field(f, TRANSFORM.x)), pointer(field(f, TRANSFORM.out))
        size = field(f, TRANSFORM.size)
        last = stop * BLOCK
        for i in range(start * BLOCK, last if last < size else size):
            store(outputs, i, of(load(inputs, i)))
        return 0

    return kernel


def _rows(function: str, x: str) -> Any:
    wide = "float64" if x == "float64" else "float32"
    m = arithmetic(wide)
    real, log1p, inf = m.real, m.log1p, m.inf
    row_of = statistics(x, wide, function == "softmax" and x == wide)
    peak, others_of, scaled = row_of.peak, row_of.others, row_of.scaled
    load, store, shift = memory(x, wide).load, memory(x, wide).store, memory(x, wide).shift
    zero, one = real(0), real(1)
    is_softmax, is_log = function == "softmax", function == "log_softmax"

    @njit(**STRICT)
    def treat(row, out, n):
        top = peak(row, n)
        others = others_of(row, top, out, n)
        if is_softmax:
            share = one / (one + others)
            scaled(row, top, share, out, n)
            if top == inf:  # its exponential came out as inf - inf
                for k in range(n):
                    store(out, k, share if load(row, k) == inf else load(out, k))
        elif is_log:
            tail = log1p(others)
            for k in range(n):
                v = load(row, k)
                store(out, k, (zero if v == top else v - top) - tail)
        else:
            lse = top + log1p(others)
            if top == inf or top == -inf:  # however many there are, unless a NaN stands beside them
                lse = top
                for k in range(n):
                    v = load(row, k)
                    lse = lse if v == v else v
            store(out, 0, lse)

    def kernel(f, start, stop):
        inputs, outputs = pointer(field(f, TRANSFORM.x)), pointer(field(f, TRANSFORM.out))
        rows, classes = field(f, TRANSFORM.size), field(f, TRANSFORM.classes)
        step = classes if is_softmax or is_log else 1
        last = stop * ROWS
        for r in range(start * ROWS, last if last < rows else rows):
            treat(shift(inputs, r * classes), shift(outputs, r * step), classes)
        return 0

    return kernel
