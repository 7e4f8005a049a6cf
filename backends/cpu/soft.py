"""Log-sum-exp cross-entropy of rows against any weighted targets ``q``: soft, smoothed, weighted, with masked classes.

As `rows`, but a row has a target for every class, so the targets are walked along as well: their total mass, their mass
beside the top, and ``sum_k q_k (top - x_k)``. See `polyloss.primitives.LseCrossEntropy` for the formulas. Compiled by
`compiled`, which imports this file.
"""

from __future__ import annotations

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


def build(x: str, t: str, masked: bool, weighted: bool, value: bool, gradient: bool) -> Any:
    """The kernel for logits and targets of these dtypes; integers are labels."""
    wide = "float64" if x == "float64" else "float32"
    labelled = t in ("int32", "int64")
    m = arithmetic(wide)
    real, exp_neg, log1p, maximum, inf, nan = m.real, m.exp_neg, m.log1p, m.maximum, m.inf, m.nan
    logits, own, double = memory(x, wide), memory(wide, wide), memory("float64", "float64")
    load, store, shift = logits.load, logits.store, logits.shift
    read, write = own.load, own.store
    load_t, shift_t = memory(t, wide).load, memory(t, wide).shift
    flags, add = memory("bool", wide), double.store
    flag, shift_flag = flags.load, flags.shift
    label_at = memory(t, "float64").load
    zero, half, one, two = real(0), real(0.5), real(1), real(2)

    @njit(**STRICT)
    def logit(row, mask, k):
        if masked:
            return load(row, k) if flag(mask, k) != zero else -inf
        return load(row, k)

    @njit(**STRICT)
    def target(ts, y, c, mask, kept, share, k):
        """``(t, q)`` of class k, t before and q after smoothing and weighting."""
        t = (one if k == y else zero) if labelled else load_t(ts, k)
        spread = share
        if masked:
            spread = share if flag(mask, k) != zero else zero
        q = t * kept + spread
        if weighted:
            q *= read(c, k)
        return t, q

    @njit(**SUMMING)
    def peak(row, mask, n):
        top, unordered, count = -inf, False, 0
        for k in range(n):
            v = logit(row, mask, k)
            top = maximum(top, v)
            unordered |= v != v
        if masked:
            for k in range(n):
                count += flag(mask, k) != zero
        else:
            count = n
        return nan if unordered else top, count

    @njit(**STRICT)
    def first(row, mask, top, n):
        for start in range(0, n, BLOCK):
            stop = n if n - start < BLOCK else start + BLOCK
            found = False
            for k in range(start, stop):
                found |= logit(row, mask, k) == top
            if found:
                for k in range(start, stop):
                    if logit(row, mask, k) == top:
                        return k
        return 0

    @njit(**SUMMING)
    def exponentials(row, mask, top, a, start, stop):
        s = zero
        for k in range(start, stop):
            s += zero if k == a else exp_neg(logit(row, mask, k) - top)
        return s

    @njit(**SUMMING)
    def masses(row, ts, y, c, mask, kept, share, top, a, start, stop):
        linear, rest, bad = zero, zero, False
        for k in range(start, stop):
            t, q = target(ts, y, c, mask, kept, share, k)
            gap = zero if k == a else top - logit(row, mask, k)
            gap = zero if (q == zero) & (gap == inf) else gap
            linear += q * gap
            rest += zero if k == a else q
            bad |= (t < zero) | (t > one)
        return linear, rest, bad

    @njit(**STRICT)
    def slope(row, ts, y, c, mask, kept, share, top, others, total, rest, at_top, a, z, factor, g, n):
        norm = one + others
        pull = two * z * (top + log1p(others)) if z != zero and top != inf else zero
        share_of_p = factor * ((total + pull) / norm)
        for k in range(n):
            q = target(ts, y, c, mask, kept, share, k)[1]
            v = logit(row, mask, k)
            s = exp_neg(v - top) * share_of_p - factor * q
            if masked:
                s = s if flag(mask, k) != zero else zero
            store(g, k, s)
        if masked and flag(mask, a) == zero:
            return
        own = rest - total * (others / norm) if at_top > half * total else total / norm - at_top
        rise = zero if z == zero else (inf if top == inf else pull / norm)
        store(g, a, factor * (own + rise))

    def kernel(f, start, stop):
        xp, g = pointer(field(f, F.x)), pointer(field(f, F.gradient))
        labels, tp = pointer(field(f, F.labels)), pointer(field(f, F.t))
        c, w, keep, mp = (
            pointer(field(f, F.c)),
            pointer(field(f, F.w)),
            pointer(field(f, F.keep)),
            pointer(field(f, F.mask)),
        )
        items, sums = pointer(field(f, F.items)), pointer(field(f, F.sums))
        tops, rests = pointer(field(f, F.top)), pointer(field(f, F.others))
        inner, rows, classes = field(f, F.inner), field(f, F.rows), field(f, F.classes)
        kept, smoothing = real(number(f, F.kept)), real(number(f, F.smoothing))
        z, scale = real(number(f, F.z)), real(number(f, F.scale))
        bad = 0
        for block in range(start, stop):
            summed = 0.0
            last = (block + 1) * ROWS
            for r in range(block * ROWS, last if last < rows else rows):
                i = quotient(r, inner)
                j = r - i * inner
                row = shift(xp, i * field(f, F.x0) + j * field(f, F.x1))
                out = shift(g, i * field(f, F.g0) + j * field(f, F.g1))
                mask = shift_flag(mp, r * field(f, F.mask0))
                ts = shift_t(tp, r * classes)
                on = field(f, F.keep) == 0 or flag(keep, r) != zero
                item, top, others, y, poison = zero, zero, zero, 0, zero
                if on:
                    if labelled:
                        y = whole(label_at(labels, r))
                        if y < 0 or y >= classes:
                            bad, y, poison = 1, 0, nan
                    top, count = peak(row, mask, classes)
                    share = smoothing / real(count) if count > 0 else smoothing
                    a = first(row, mask, top, classes)
                    if value:
                        s, lost = 0.0, 0.0
                        for k in range(0, classes, BLOCK):
                            end = classes if classes - k < BLOCK else k + BLOCK
                            s, lost = compensated(s, lost, float(exponentials(row, mask, top, a, k, end)))
                        others = real(s + lost) if top != -inf and top == top else nan
                    else:
                        others = read(rests, r)
                    linear, lost, rest, lost_too = 0.0, 0.0, 0.0, 0.0
                    for k in range(0, classes, BLOCK):
                        end = classes if classes - k < BLOCK else k + BLOCK
                        gaps, mass, wrong = masses(row, ts, y, c, mask, kept, share, top, a, k, end)
                        linear, lost = compensated(linear, lost, float(gaps))
                        rest, lost_too = compensated(rest, lost_too, float(mass))
                        bad |= wrong
                    linear, rest = linear if linear == inf else linear + lost, rest + lost_too
                    at_top = target(ts, y, c, mask, kept, share, a)[1] + poison
                    total = real(rest) + at_top
                    weight = read(w, r) if field(f, F.w) != 0 else one
                    if value:
                        tail = log1p(others)
                        item = real(linear) + total * tail
                        if z != zero:
                            lse = top + tail
                            item += z * lse * lse
                        item *= weight
                    if gradient:
                        slope(
                            row,
                            ts,
                            y,
                            c,
                            mask,
                            kept,
                            share,
                            top,
                            others,
                            total,
                            real(rest),
                            at_top,
                            a,
                            z,
                            weight * scale,
                            out,
                            classes,
                        )
                elif gradient:
                    for k in range(classes):
                        store(out, k, zero)
                if value:
                    if field(f, F.top) != 0:
                        write(tops, r, top)
                        write(rests, r, others)
                    if field(f, F.items) != 0:
                        write(items, r, item)
                    summed += float(item)
            if value and field(f, F.sums) != 0:
                add(sums, block, summed)
        return bad

    return kernel
