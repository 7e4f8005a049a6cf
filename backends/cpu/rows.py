"""Log-sum-exp cross-entropy of rows whose classes stand side by side in memory.

A row is read from memory once; the later passes find it in the cache. The sum of the exponentials runs over all
classes, and 1 is subtracted for the top; only where less than 1/2 is left, in a row that the model is sure of, would
that cancel, and the others are summed again without the top. The gradient may take the place of the logits. See
`polyloss.primitives.LseCrossEntropy` for the formulas. Compiled by `compiled`, which imports this file.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from numba import njit

from polyloss.backends.cpu.arithmetic import (
    STRICT,
    SUMMING,
    arithmetic,
    compensated,
    field,
    memory,
    number,
    pointer,
    quotient,
    whole,
)
from polyloss.backends.cpu.fields import BLOCK, ROWS
from polyloss.backends.cpu.fields import LSE as F

__all__ = ["build"]


def statistics(x: str, wide: str, keep_exponentials: bool) -> SimpleNamespace:
    """``peak`` and ``others`` of a row, and ``scaled``, its exponentials times a factor."""
    m = arithmetic(wide)
    real, exp_lifted, drop, maximum, inf, nan = m.real, m.exp_lifted, m.drop, m.maximum, m.inf, m.nan
    load, store = memory(x, wide).load, memory(x, wide).store
    zero, half, unlifted = real(0), real(0.5) / drop, float(drop)

    @njit(**SUMMING)
    def peak(row, n):
        """The maximum; anything if there is a NaN, which the exponentials then show."""
        top = -inf
        for k in range(n):
            top = maximum(top, load(row, k))
        return top

    @njit(**SUMMING)
    def exponentials(row, top, out, start, stop):
        s = zero
        for k in range(start, stop):
            e = exp_lifted(load(row, k) - top)
            if keep_exponentials:
                store(out, k, e)
            s += e
        return s

    @njit(**SUMMING)
    def below(row, top, out, start, stop):
        """The sum of what is not the top, where less than 1/2 is left: so no other exponential exceeds 1/2.

        The top's own is 1, or NaN (inf - inf) if it is infinite. Also how many tops there are.
        """
        s, tops = zero, 0
        for k in range(start, stop):
            e = load(out, k) if keep_exponentials else exp_lifted(load(row, k) - top)
            is_top = not e <= half
            s += zero if is_top else e
            tops += is_top
        return s, tops

    @njit(**STRICT)
    def others(row, top, out, n):
        """The sum of the exponentials without one top."""
        total, lost = 0.0, 0.0
        for start in range(0, n, BLOCK):
            s = float(exponentials(row, top, out, start, n if n - start < BLOCK else start + BLOCK))
            total, lost = compensated(total, lost, s * unlifted)
        rest = (total - 1.0) + lost
        if not rest >= 0.5:
            rest, tops = 0.0, 0
            for start in range(0, n, BLOCK):
                s, found = below(row, top, out, start, n if n - start < BLOCK else start + BLOCK)
                rest += float(s) * unlifted
                tops += found
            rest = rest if tops < 2 else math.nan
        return real(rest) if top == top and top != -inf else nan

    @njit(**STRICT)
    def scaled(row, top, factor, out, n):
        for k in range(n):
            if keep_exponentials:
                store(out, k, load(out, k) * drop * factor)
            else:
                store(out, k, exp_lifted(load(row, k) - top) * drop * factor)

    return SimpleNamespace(peak=peak, others=others, scaled=scaled)


def build(x: str, labels: str, value: bool, gradient: bool) -> Any:
    """The kernel for logits and labels of these dtypes."""
    wide = "float64" if x == "float64" else "float32"
    m = arithmetic(wide)
    real, log1p, exp_neg, inf, nan = m.real, m.log1p, m.exp_neg, m.inf, m.nan
    row_of = statistics(x, wide, value and gradient and x == wide)
    peak, others_of, scaled = row_of.peak, row_of.others, row_of.scaled
    logits, own, double = memory(x, wide), memory(wide, wide), memory("float64", "float64")
    load, store, shift = logits.load, logits.store, logits.shift
    read, write = own.load, own.store
    add = double.store
    labels_of, flag = memory(labels, "float64"), memory("bool", "float64").load
    label_at, is_kept = labels_of.load, flag
    zero, one, two = real(0), real(1), real(2)

    @njit(**STRICT)
    def limit(weight, v):
        return zero if weight == zero and v == inf else v

    @njit(**STRICT)
    def slope(row, g, n, y, xy, top, others, q, z, factor):
        """The gradient of a row, which `others_of` may have filled with its exponentials."""
        norm = one + others
        pull = zero if z == zero or top == inf else two * z * (top + log1p(others))
        ey = exp_neg(xy - top)
        scaled(row, top, factor * ((q + pull) / norm), g, n)
        if top == inf:  # its exponential came out as inf - inf
            for k in range(n):
                if load(g, k) != load(g, k):
                    store(g, k, factor * (q / norm + (zero if z == zero else inf)))
        if xy == top:
            rise = zero if z == zero else (inf if top == inf else pull / norm)
            store(g, y, factor * (rise - q * (others / norm)))
        else:
            store(g, y, factor * ((q + pull) * (ey / norm) - q))

    def kernel(f, start, stop):
        xp, g, labels = pointer(field(f, F.x)), pointer(field(f, F.gradient)), pointer(field(f, F.labels))
        c, w, keep = pointer(field(f, F.c)), pointer(field(f, F.w)), pointer(field(f, F.keep))
        items, sums = pointer(field(f, F.items)), pointer(field(f, F.sums))
        tops, rests = pointer(field(f, F.top)), pointer(field(f, F.others))
        inner, rows, classes = field(f, F.inner), field(f, F.rows), field(f, F.classes)
        z, scale = real(number(f, F.z)), real(number(f, F.scale))
        bad = 0
        for block in range(start, stop):
            total = 0.0
            last = (block + 1) * ROWS
            for r in range(block * ROWS, last if last < rows else rows):
                i = quotient(r, inner)
                j = r - i * inner
                row = shift(xp, i * field(f, F.x0) + j * field(f, F.x1))
                out = shift(g, i * field(f, F.g0) + j * field(f, F.g1))
                item, top, others, q, y, xy = zero, zero, zero, one, 0, zero
                on = field(f, F.keep) == 0 or is_kept(keep, r) != 0.0
                if on:
                    y = whole(label_at(labels, r))
                    if y < 0 or y >= classes:
                        bad, y, q = 1, 0, nan
                    elif field(f, F.c) != 0:
                        q = read(c, y)
                weight = read(w, r) if field(f, F.w) != 0 and on else one
                if on:  # before the gradient, which may take the place of the predictions
                    xy = load(row, y)
                if value and on:
                    top = peak(row, classes)
                    others = others_of(row, top, out, classes)
                    gap = zero if xy == top else top - xy
                    tail = log1p(others)
                    item = q * limit(q, gap) + q * tail
                    if z != zero:
                        lse = top + tail
                        item += z * lse * lse
                    item *= weight
                if value and field(f, F.top) != 0:
                    write(tops, r, top)
                    write(rests, r, others)
                if not value and on:
                    top, others = read(tops, r), read(rests, r)
                if value:
                    if field(f, F.items) != 0:
                        write(items, r, item)
                    total += float(item)
                if gradient:
                    if on:
                        slope(row, out, classes, y, xy, top, others, q, z, weight * scale)
                    else:
                        for k in range(classes):
                            store(out, k, zero)
            if value and field(f, F.sums) != 0:
                add(sums, block, total)
        return bad

    return kernel
