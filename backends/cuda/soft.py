"""Log-sum-exp cross-entropy of rows against any weighted targets ``q``: soft, smoothed, weighted, with masked classes.

A team of threads walks along a row and its targets three times, or four with the gradient; the later times they come
from a cache. See `polyloss.primitives.LseCrossEntropy` for the formulas.
"""

from __future__ import annotations

from typing import Any

from polyloss.backends.cuda.device import (
    block,
    blocks,
    cuda,
    device,
    int32,
    memory,
    number,
    thread,
    threads,
    two_sum,
)
from polyloss.backends.cuda.fields import FORMS
from polyloss.backends.cuda.sums import finishing, scaling
from polyloss.backends.cuda.teams import team

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqqqqqqqqqqqqddddd"


def build(x: str, t: str, masked: bool, weighted: bool, form: str, value: bool, gradient: bool) -> Any:
    """The kernel for logits and targets of these dtypes; integers are labels."""
    wide = "float64" if x == "float64" else "float32"
    labelled = t in ("int32", "int64")
    m, group = number(wide), team(wide, FORMS[form])
    LANES, whole_block = FORMS[form].lanes, FORMS[form].block
    Real, real, exp, log1p, maximum, inf, nan = m.type, m.real, m.exp, m.log1p, m.maximum, m.inf, m.nan
    widest, sum_up = group.maximum, group.sums
    logits, own = memory(x, wide), memory(wide, wide)
    load, store, size = logits.load, logits.store, logits.size
    read, write = own.load, own.store
    read_t, size_t = memory(t, "int64" if labelled else wide).load, memory(t, wide).size
    flag = memory("bool", "int64").load
    factor_of, finish = scaling(wide), finishing(wide)
    zero, half, one, two = real(0), real(0.5), real(1), real(2)

    @device
    def logit(row, mask, k):
        if masked:
            return load(row, k) if flag(mask, k) != 0 else -inf
        return load(row, k)

    @device
    def target(ts, y, c_at, mask, kept, share, k):
        """``(t, q)`` of class k, t before and q after smoothing and weighting."""
        t = (one if k == y else zero) if labelled else read_t(ts, k)
        spread = share
        if masked and flag(mask, k) == 0:
            spread = zero
        q = t * kept + spread
        if weighted:
            q *= read(c_at, k)
        return t, q

    @device
    def peak(row, mask, classes, lane):
        """The maximum, and minus the number of classes; a NaN is not seen, and the exponentials show it then."""
        top, count = -inf, zero
        for k in range(lane, classes, LANES):
            top = maximum(top, logit(row, mask, k))
            if masked:
                count += one if flag(mask, k) != 0 else zero
        return top, count

    @device
    def exponentials(row, mask, top, classes, lane):
        """Their sum without what equals the top; how often that is there, and first in what class."""
        total, lost, tops, first = zero, zero, zero, -inf
        for k in range(lane, classes, LANES):
            v = logit(row, mask, k)
            if v == top:
                tops += one
                first = maximum(first, -real(k))
            else:
                total, lost = two_sum(total, lost, exp(v - top))
        return total, lost, tops, first

    @device
    def masses(row, ts, y, c_at, mask, kept, share, top, a, classes, lane):
        linear, lost, rest, lost_too, at_top = zero, zero, zero, zero, zero
        for k in range(lane, classes, LANES):
            t, q = target(ts, y, c_at, mask, kept, share, k)
            if not (zero <= t <= one):
                at_top = nan
            if k == a:
                at_top += q
            else:
                v = logit(row, mask, k)
                gap = zero if v == top else top - v
                if q == zero and gap == inf:
                    gap = zero
                linear, lost = two_sum(linear, lost, q * gap)
                rest, lost_too = two_sum(rest, lost_too, q)
        return linear, lost, rest, lost_too, at_top

    @device
    def slopes(row, ts, y, c_at, mask, kept, share, top, others, total, rest, at_top, a, z, factor, g, classes, lane):
        norm = one + others
        pull = zero if z == zero or top == inf else two * z * (top + log1p(others))
        share_of_p = factor * ((total + pull) / norm)
        for k in range(lane, classes, LANES):
            slope = zero
            if not masked or flag(mask, k) != 0:
                q = target(ts, y, c_at, mask, kept, share, k)[1]
                if k == a:
                    by_the_rest = at_top > half * total
                    slope = rest - total * (others / norm) if by_the_rest else total / norm - at_top
                    if z != zero:
                        slope += inf if top == inf else pull / norm
                    slope *= factor
                else:
                    slope = exp(load(row, k) - top) * share_of_p - factor * q
            store(g, k, slope)

    def kernel(
        x_at,
        labels_at,
        t_at,
        c_at,
        mask_at,
        w_at,
        keep_at,
        items_at,
        sums_at,
        result_at,
        g_at,
        scale_at,
        divisor_at,
        rows,
        classes,
        mask_step,
        keep_share,
        smoothing,
        z_loss,
        scale_by,
        divide_by,
    ):
        if whole_block:
            s0, s1, s2, s3 = (
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
            )
            s4, s5, s6 = cuda.shared.array(32, Real), cuda.shared.array(32, Real), cuda.shared.array(32, Real)
        else:  # shuffles do without
            s0 = cuda.local.array(1, Real)
            s1, s2, s3, s4, s5, s6 = s0, s0, s0, s0, s0, s0
        lane, teams = int32(thread() & (LANES - 1)), threads() // LANES
        kept, smooth, z = real(keep_share), real(smoothing), real(z_loss)
        scale = factor_of(scale_by, scale_at, divide_by, divisor_at)
        summed = 0.0
        for r in range(block() * teams + thread() // LANES, rows, blocks() * teams):
            row, g = x_at + r * classes * size, g_at + r * classes * size
            mask, ts = mask_at + r * mask_step, t_at + r * classes * size_t
            on = True
            if keep_at != 0:
                on = flag(keep_at, r) != 0
            item = zero
            if on:
                y, poison, weight = -1, zero, one
                if labelled:
                    y = read_t(labels_at, r)
                    if y < 0 or y >= classes:
                        y, poison = 0, nan
                if w_at != 0:
                    weight = read(w_at, r)
                top, count = peak(row, mask, classes, lane)
                top = widest(top, LANES, s0)
                total, lost, tops, first = exponentials(row, mask, top, classes, lane)
                total, lost, tops = sum_up(total, lost, tops, LANES, s1, s2, s3)
                others = (total + (tops - one)) + lost
                if top == -inf or (top == inf and tops > one):
                    others = nan
                first = widest(first, LANES, s0)
                a = int(-first) if first > -inf else 0
                share = smooth / real(classes)
                if masked:
                    count, lost, tops = sum_up(count, zero, zero, LANES, s4, s5, s6)
                    share = smooth / count if count > zero else smooth
                linear, lost, rest, lost_too, at_top = masses(
                    row, ts, y, c_at, mask, kept, share, top, a, classes, lane
                )
                linear, lost, at_top = sum_up(linear, lost, at_top, LANES, s1, s2, s3)
                rest, lost_too, tops = sum_up(rest, lost_too, zero, LANES, s4, s5, s6)
                linear = linear if linear == inf else linear + lost
                rest += lost_too
                at_top += poison
                mass = rest + at_top
                if value:
                    tail = log1p(others)
                    item = linear + mass * tail
                    if z != zero:
                        lse = top + tail
                        item += z * lse * lse
                    item *= weight
                if gradient:
                    slopes(
                        row,
                        ts,
                        y,
                        c_at,
                        mask,
                        kept,
                        share,
                        top,
                        others,
                        mass,
                        rest,
                        at_top,
                        a,
                        z,
                        weight * scale,
                        g,
                        classes,
                        lane,
                    )
            elif gradient:
                for k in range(lane, classes, LANES):
                    store(g, k, zero)
            if value and lane == 0:
                if items_at != 0:
                    write(items_at, r, item)
                summed += float(item)
        if value:
            finish(summed, sums_at, result_at, divide_by, divisor_at)

    return kernel
