"""Log-sum-exp cross-entropy of many rows side by side: one vector lane for each row.

For rows of few classes, which would not fill a vector, and for classes along another axis than the last, where
neighbours in memory are neighbouring rows. A block of rows is turned into a [classes, lanes] tile first where it is
not one already. See `polyloss.primitives.LseCrossEntropy` for the formulas. Compiled by `compiled`, which imports this.
"""

from __future__ import annotations

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
    whole,
)
from polyloss.backends.cpu.fields import FEW, LANES
from polyloss.backends.cpu.fields import LSE as F

__all__ = ["build"]

RUN = 8
"""Classes that are summed in single precision before their sum goes to a compensated one."""


def build(x: str, labels: str, plain: bool, value: bool, gradient: bool) -> Any:
    """The kernel for logits and labels of these dtypes; plain: no weights, mask or z-loss."""
    wide = "float64" if x == "float64" else "float32"
    m = arithmetic(wide)
    real, exp_neg, log1p, inf, nan = m.real, m.exp_neg, m.log1p, m.inf, m.nan
    logits, own, double, integers = (
        memory(x, wide),
        memory(wide, wide),
        memory("float64", "float64"),
        memory(labels, wide),
    )
    load_x, store_x, shift_x = logits.load, logits.store, logits.shift
    load, store = own.load, own.store
    load_double, store_double = double.load, double.store
    load_label, load_flag = integers.load, memory("bool", wide).load
    zero, one, two = real(0), real(1), real(2)
    same = x == wide
    tiles = [buffer(wide, FEW * LANES) for _ in range(2)]
    tile_x, tile_g = tiles
    lane_top, lane_y, lane_q, lane_w, lane_xy, lane_s, lane_rest = (buffer(wide, LANES) for _ in range(7))
    lane_high, lane_low = buffer("float64", LANES), buffer("float64", LANES)

    @njit(**STRICT)
    def peak(v, stride, classes, n, top, s):
        """The maximum; NaN where there is a NaN."""
        for j in range(n):
            store(top, j, -inf)
            store(s, j, zero)
        for k in range(classes):
            for j in range(n):
                a, m = load(v, k * stride + j), load(top, j)
                store(top, j, a if a > m else m)
                store(s, j, load(s, j) if a == a else nan)
        for j in range(n):
            store(top, j, load(top, j) + load(s, j))

    @njit(**STRICT)
    def others(v, stride, classes, n, top, out, out_stride, s, tops, high, low):
        """The exponentials, and in ``s`` their sum without one top."""
        for j in range(n):
            store_double(high, j, -1.0)
            store_double(low, j, 0.0)
            store(tops, j, zero)
        for start in range(0, classes, RUN):
            for j in range(n):
                store(s, j, zero)
            for k in range(start, classes if classes - start < RUN else start + RUN):
                for j in range(n):
                    a, m = load(v, k * stride + j), load(top, j)
                    is_top = a == m
                    e = one if is_top else exp_neg(a - m)
                    store(tops, j, load(tops, j) + (one if is_top else zero))
                    store(s, j, load(s, j) + (zero if is_top else e))
                    if gradient:
                        store(out, k * out_stride + j, e)
            for j in range(n):
                total, part = load_double(high, j), float(load(s, j))
                larger = total + part
                head = larger - total
                store_double(low, j, load_double(low, j) + ((total - (larger - head)) + (part - head)))
                store_double(high, j, larger)
        for j in range(n):
            m, count = load(top, j), load(tops, j)
            rest = real((load_double(high, j) + float(count)) + load_double(low, j))
            # Two infinite logits, or none that is finite.
            store(s, j, nan if ((m == inf) & (count > one)) | (m == -inf) else rest)

    @njit(**STRICT)
    def losses(n, top, rest, q, w, xy, z, out):
        for j in range(n):
            m, a, b = load(top, j), load(xy, j), load(q, j)
            gap = zero if a == m else m - a
            gap = zero if (b == zero) & (gap == inf) else gap
            tail = log1p(load(rest, j))
            item = b * gap + b * tail
            if not plain:
                lse = m + tail
                item = load(w, j) * (item + (z * lse * lse if z != zero else zero))
            store(out, j, item)

    @njit(**STRICT)
    def slopes(v, stride, classes, n, top, rest, q, w, y, xy, z, scale, out, out_stride, factor, special):
        """The gradient, from the exponentials where `others` left them."""
        for j in range(n):
            m, r, b = load(top, j), load(rest, j), load(q, j)
            norm, weight = one + r, load(w, j) * scale
            pull = zero
            if not plain:
                pull = two * z * (m + log1p(r)) if (z != zero) & (m != inf) else zero
            store(factor, j, weight * ((b + pull) / norm))
            at_top = weight * (pull / norm - b * (r / norm))
            elsewhere = weight * ((b + pull) * (exp_neg(load(xy, j) - m) / norm) - b)
            store(special, j, at_top if load(xy, j) == m else elsewhere)
        for k in range(classes):
            for j in range(n):
                if value:
                    e = load(out, k * out_stride + j)
                else:
                    a, m = load(v, k * stride + j), load(top, j)
                    e = one if a == m else exp_neg(a - m)
                store(out, k * out_stride + j, e * load(factor, j))
        for j in range(n):
            store(out, whole(load(y, j)) * out_stride + j, load(special, j))
        if not plain and z != zero:
            for j in range(n):
                for k in range(classes):
                    if load(top, j) == inf and load(v, k * stride + j) == inf:
                        store(out, k * out_stride + j, load(w, j) * scale * inf + load(rest, j))

    @njit(**SUMMING)
    def total(lane, n):
        s = zero
        for j in range(n):
            s += load(lane, j)
        return s

    def kernel(f, start, stop):
        xp, gp, labels = pointer(field(f, F.x)), pointer(field(f, F.gradient)), pointer(field(f, F.labels))
        cp, wp, keep = pointer(field(f, F.c)), pointer(field(f, F.w)), pointer(field(f, F.keep))
        items, sums = pointer(field(f, F.items)), pointer(field(f, F.sums))
        tops, rests = pointer(field(f, F.top)), pointer(field(f, F.others))
        inner, classes = field(f, F.inner), field(f, F.classes)
        x1, x2, g1, g2 = field(f, F.x1), field(f, F.x2), field(f, F.g1), field(f, F.g2)
        z, scale = real(number(f, F.z)), real(number(f, F.scale))
        tx, tg = tile_x(), tile_g()
        top, y, q, w, xy, s, rest = (
            lane_top(),
            lane_y(),
            lane_q(),
            lane_w(),
            lane_xy(),
            lane_s(),
            lane_rest(),
        )
        high, low = lane_high(), lane_low()
        per = quotient(inner + LANES - 1, LANES)
        bad = 0
        for block in range(start, stop):
            i = quotient(block, per)
            j0 = (block - i * per) * LANES
            n = inner - j0 if inner - j0 < LANES else LANES
            r0 = i * inner + j0
            masked = False
            for j in range(n):
                label = load_label(labels, r0 + j)
                ok = (label >= zero) & (label < real(classes))
                label = label if ok else zero
                store(y, j, label)
                if plain:
                    bad |= not ok
                    store(w, j, one)
                    store(q, j, one if ok else nan)
                else:
                    on = field(f, F.keep) == 0 or load_flag(keep, r0 + j) != zero
                    masked |= not on
                    bad |= on and not ok
                    store(w, j, (load(wp, r0 + j) if field(f, F.w) != 0 else one) if on else zero)
                    share = load(cp, whole(label)) if field(f, F.c) != 0 else one
                    store(q, j, share if ok or not on else nan)
            v, stride = tx, LANES
            base = shift_x(xp, i * field(f, F.x0) + j0 * x1)
            if same and x1 == 1:
                v, stride = base, x2
            else:
                for j in range(n):
                    for k in range(classes):
                        store(tx, k * LANES + j, load_x(base, j * x1 + k * x2))
            for j in range(n):  # before the gradient, which may take the place of the predictions
                store(xy, j, load(v, whole(load(y, j)) * stride + j))
            out, out_stride = tg, LANES
            target = shift_x(gp, i * field(f, F.g0) + j0 * g1)
            if gradient and same and g1 == 1:
                out, out_stride = target, g2
            if value:
                peak(v, stride, classes, n, top, s)
                others(v, stride, classes, n, top, out, out_stride, rest, s, high, low)
                losses(n, top, rest, q, w, xy, z, s)
                if not plain and masked:
                    for j in range(n):
                        store(s, j, load(s, j) if load_flag(keep, r0 + j) != zero else zero)
                if field(f, F.top) != 0:
                    for j in range(n):
                        store(tops, r0 + j, load(top, j))
                        store(rests, r0 + j, load(rest, j))
                if field(f, F.items) != 0:
                    for j in range(n):
                        store(items, r0 + j, load(s, j))
                if field(f, F.sums) != 0:
                    store_double(sums, block, float(total(s, n)))
            else:
                for j in range(n):
                    store(top, j, load(tops, r0 + j))
                    store(rest, j, load(rests, r0 + j))
            if gradient:
                slopes(v, stride, classes, n, top, rest, q, w, y, xy, z, scale, out, out_stride, s, high)
                if not plain and masked:
                    for j in range(n):
                        if load_flag(keep, r0 + j) == zero:
                            for k in range(classes):
                                store(out, k * out_stride + j, zero)
                if not (same and g1 == 1):
                    for j in range(n):
                        for k in range(classes):
                            store_x(target, j * g1 + k * g2, load(tg, k * LANES + j))
        return bad

    return kernel
