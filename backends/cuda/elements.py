"""The softplus cross-entropy of elements: ``a softplus(-x) + b softplus(x)``, value and gradient in one pass.

Operands are [rows, columns] with two strides each, which may be 0. Where all of them are contiguous, and predictions
and targets have one dtype, a thread takes 16 bytes of each at a time. See `polyloss.primitives.SoftplusCrossEntropy`
for the formulas.
"""

from __future__ import annotations

from typing import Any

from polyloss.backends.cuda.device import (
    block,
    blocks,
    cuda,
    device,
    memory,
    number,
    thread,
    threads,
    vectors,
)
from polyloss.backends.cuda.sums import finishing, scaling

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqqqqqqqqqqqqqqqqqqqdddd"


def build(x: str, t: str, vector: bool, value: bool, gradient: bool) -> Any:
    """The kernel for predictions and targets of these dtypes."""
    wide = "float64" if x == "float64" else "float32"
    m = number(wide)
    real, exp, log1p, ratio, inf, nan = m.real, m.exp, m.log1p, m.ratio, m.inf, m.nan
    zero, one = real(0), real(1)
    load_x, store_x, load_t = memory(x, wide).load, memory(x, wide).store, memory(t, wide).load
    own, flag = memory(wide, wide), memory("bool", "int64").load
    load, store = own.load, own.store
    factor_of, finish = scaling(wide), finishing(wide)

    @device
    def coefficients(t, p, keep, smooth):
        if not (zero <= t <= one):
            t = nan
        return p * (t * keep + smooth), (one - t) * keep + smooth

    @device
    def loss(x, a, b, e):
        c, size = b if x >= zero else a, abs(x)
        if c == zero and size == inf:
            size = zero
        return c * size + (a + b) * log1p(e)

    @device
    def slope(x, a, b, e):
        near = ratio(one, one + e)
        far = e * near
        return b * near - a * far if x >= zero else b * far - a * near

    if vector:
        chunk = vectors(x, wide)
        Real, Word, E, W = m.type, chunk.word, chunk.numbers, chunk.words
        fetch, get, put = chunk.load, chunk.get, chunk.store

    def of_vectors(
        x_at,
        t_at,
        p_at,
        w_at,
        keep_at,
        g_at,
        items_at,
        sums_at,
        result_at,
        scale_at,
        divisor_at,
        size,
        columns,
        x0,
        x1,
        t0,
        t1,
        p0,
        p1,
        w0,
        w1,
        keep0,
        keep1,
        kept,
        smoothing,
        scale_by,
        divide_by,
    ):
        xs, ts, out = cuda.local.array(W, Word), cuda.local.array(W, Word), cuda.local.array(E, Real)
        keep, smooth = real(kept), real(smoothing)
        scale = factor_of(scale_by, scale_at, divide_by, divisor_at)
        whole, total = size // E, 0.0
        for i in range(block() * threads() + thread(), whole, blocks() * threads()):
            fetch(x_at, i, xs, 0)
            if t_at != 0:
                fetch(t_at, i, ts, 0)
            s = zero
            for j in range(E):
                v = get(xs, 0, j)
                a, b = coefficients(get(ts, 0, j) if t_at != 0 else one, one, keep, smooth)
                e = exp(-abs(v))
                if value:
                    item = loss(v, a, b, e)
                    s += item
                    if items_at != 0:
                        store(items_at, i * E + j, item)
                if gradient:
                    out[j] = scale * slope(v, a, b, e)
            total += float(s)
            if gradient:
                put(g_at, i, out)
        i = whole * E + thread()
        if block() == 0 and i < size:
            v = load_x(x_at, i)
            a, b = coefficients(load_t(t_at, i) if t_at != 0 else one, one, keep, smooth)
            e = exp(-abs(v))
            if value:
                item = loss(v, a, b, e)
                total += float(item)
                if items_at != 0:
                    store(items_at, i, item)
            if gradient:
                store_x(g_at, i, scale * slope(v, a, b, e))
        if value:
            finish(total, sums_at, result_at, divide_by, divisor_at)

    def of_scalars(
        x_at,
        t_at,
        p_at,
        w_at,
        keep_at,
        g_at,
        items_at,
        sums_at,
        result_at,
        scale_at,
        divisor_at,
        size,
        columns,
        x0,
        x1,
        t0,
        t1,
        p0,
        p1,
        w0,
        w1,
        keep0,
        keep1,
        kept,
        smoothing,
        scale_by,
        divide_by,
    ):
        keep, smooth = real(kept), real(smoothing)
        scale = factor_of(scale_by, scale_at, divide_by, divisor_at)
        total = 0.0
        for i in range(block() * threads() + thread(), size, blocks() * threads()):
            row = i // columns if columns < size else 0
            column = i - row * columns
            item, g, on = zero, zero, True
            if keep_at != 0:
                on = flag(keep_at, row * keep0 + column * keep1) != 0
            if on:
                v, t, p, w = load_x(x_at, row * x0 + column * x1), one, one, one
                if t_at != 0:
                    t = load_t(t_at, row * t0 + column * t1)
                if p_at != 0:
                    p = load(p_at, row * p0 + column * p1)
                if w_at != 0:
                    w = load(w_at, row * w0 + column * w1)
                a, b = coefficients(t, p, keep, smooth)
                e = exp(-abs(v))
                if value:
                    item = w * loss(v, a, b, e)
                if gradient:
                    g = w * scale * slope(v, a, b, e)
            if value:
                total += float(item)
                if items_at != 0:
                    store(items_at, i, item)
            if gradient:
                store_x(g_at, i, g)
        if value:
            finish(total, sums_at, result_at, divide_by, divisor_at)

    return of_vectors if vector else of_scalars
