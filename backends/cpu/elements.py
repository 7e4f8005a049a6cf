"""The softplus cross-entropy of elements: ``a softplus(-x) + b softplus(x)``, value and gradient in one pass.

Elements are taken in blocks that stay in the first-level cache. Where an operand is not what the vector loop wants (an
integer target, a 16-bit float, a broadcast weight, a strided view, a masked item), the block is gathered into a small
buffer first; so there is one loop for all of them. Compiled by `compiled`, which imports this file.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import njit

from polyloss.backends.cpu.arithmetic import (
    STRICT,
    SUMMING,
    arithmetic,
    buffer,
    field,
    memory,
    number,
    pointer,
    quotient,
)
from polyloss.backends.cpu.fields import BLOCK
from polyloss.backends.cpu.fields import ELEMENTS as F

__all__ = ["build"]


def build(x: str, t: str, value: bool, gradient: bool) -> Any:
    """The kernel for predictions and targets of these dtypes."""
    wide = "float64" if x == "float64" else "float32"
    m = arithmetic(wide)
    real, exp_neg, log1p_unit, inf = m.real, m.exp_neg, m.log1p_unit, m.inf
    own, logits, targets = memory(wide, wide), memory(x, wide), memory(t, wide)
    sums = memory("float64", "float64")
    zero, one = real(0), real(1)
    direct = x == wide
    direct_targets = t == wide
    xs, ts, ps, ws, ls = (buffer(wide, BLOCK) for _ in range(5))

    @functools.cache
    def gatherer(dtype: str) -> Any:
        """Elements of a [rows, columns] array of that dtype, from ``start`` on, into a buffer."""
        load, store = memory(dtype, wide).load, own.store

        @njit(**STRICT)
        def gather(out, base, row, column, columns, start, n):
            if column == 1 and row == columns:
                for j in range(n):
                    store(out, j, load(base, start + j))
                return
            i = quotient(start, columns)
            k = start - i * columns
            for j in range(n):
                store(out, j, load(base, i * row + k * column))
                k += 1
                if k == columns:
                    k = 0
                    i += 1

        return gather

    gather_x, gather_t, gather_own, gather_flag = map(gatherer, (x, t, wide, "bool"))
    load, store, store_gradient = own.load, own.store, logits.store
    shift_x, shift_t, store_sum = logits.shift, targets.shift, sums.store

    @njit(**STRICT)
    def coefficients(t, p, keep, smooth):
        return p * (t * keep + smooth), (one - t) * keep + smooth

    @njit(**STRICT)
    def item(x, a, b, e):
        c = b if x >= zero else a
        size = abs(x)
        size = zero if (c == zero) & (size == inf) else size
        return c * size + (a + b) * log1p_unit(e)

    @njit(**STRICT)
    def slope(x, a, b, e):
        near = one / (one + e)
        far = e * near
        return b * near - a * far if x >= zero else b * far - a * near

    @njit(**STRICT)
    def block_of(xb, tb, pb, wb, lb, g, at, n, keep, smooth, scale):
        bad = 0
        for j in range(n):
            xj, tj, w = load(xb, j), load(tb, j), load(wb, j)
            a, b = coefficients(tj, load(pb, j), keep, smooth)
            bad |= (tj < zero) | (tj > one)
            e = exp_neg(-abs(xj))
            if value:
                store(lb, j, w * item(xj, a, b, e))
            if gradient:
                store_gradient(g, at + j, w * scale * slope(xj, a, b, e))
        return bad

    @njit(**SUMMING)
    def total(lb, n):
        s = zero
        for j in range(n):
            s += load(lb, j)
        return s

    def kernel(f, start, stop):
        xp, tp, pp, wp = pointer(field(f, F.x)), pointer(field(f, F.t)), pointer(field(f, F.p)), pointer(field(f, F.w))
        kp, g, items = pointer(field(f, F.keep)), pointer(field(f, F.gradient)), pointer(field(f, F.items))
        partial = pointer(field(f, F.sums))
        size, columns = field(f, F.size), field(f, F.columns)
        keep, smooth, scale = real(number(f, F.kept)), real(number(f, F.smooth)), real(number(f, F.scale))
        contiguous = field(f, F.x1) == 1 and field(f, F.x0) == columns
        contiguous_t = field(f, F.t1) == 1 and field(f, F.t0) == columns
        masked = field(f, F.keep) != 0
        xb, tb, pb, wb, lb = xs(), ts(), ps(), ws(), ls()
        for j in range(BLOCK):
            store(tb, j, one)
            store(pb, j, one)
            store(wb, j, one)
        bad = 0
        for block in range(start, stop):
            at = block * BLOCK
            n = min(BLOCK, size - at)
            xin, tin = xb, tb
            if direct and contiguous and not masked:
                xin = shift_x(xp, at)
            else:
                gather_x(xb, xp, field(f, F.x0), field(f, F.x1), columns, at, n)
            if field(f, F.t) != 0:
                if direct_targets and contiguous_t and not masked:
                    tin = shift_t(tp, at)
                else:
                    gather_t(tb, tp, field(f, F.t0), field(f, F.t1), columns, at, n)
            if field(f, F.p) != 0:
                gather_own(pb, pp, field(f, F.p0), field(f, F.p1), columns, at, n)
            if field(f, F.w) != 0:
                gather_own(wb, wp, field(f, F.w0), field(f, F.w1), columns, at, n)
            if masked:
                gather_flag(lb, kp, field(f, F.keep0), field(f, F.keep1), columns, at, n)
                for j in range(n):
                    off = load(lb, j) == zero
                    store(xb, j, zero if off else load(xb, j))
                    if field(f, F.t) != 0:  # else they hold 1 for all blocks
                        store(tb, j, zero if off else load(tb, j))
                    if field(f, F.p) != 0:
                        store(pb, j, zero if off else load(pb, j))
                    store(wb, j, zero if off else (load(wb, j) if field(f, F.w) != 0 else one))
            bad |= block_of(xin, tin, pb, wb, lb, g, at, n, keep, smooth, scale)
            if gradient and masked:  # 0 times a factor that may be infinite
                gather_flag(xb, kp, field(f, F.keep0), field(f, F.keep1), columns, at, n)
                for j in range(n):
                    if load(xb, j) == zero:
                        store_gradient(g, at + j, zero)
            if value:
                if field(f, F.items) != 0:
                    for j in range(n):
                        store(items, at + j, load(lb, j))
                if field(f, F.sums) != 0:
                    store_sum(partial, block, float(total(lb, n)))
        return bad

    return kernel
