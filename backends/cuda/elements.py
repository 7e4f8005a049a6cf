"""The softplus cross-entropy of elements: ``a softplus(-x) + b softplus(x)``, value and gradient in one pass.

Operands are [rows, columns] with two strides each, which may be 0. Where the predictions are contiguous, a thread takes
16 bytes of them at a time, and of every other operand that is contiguous as many numbers. See
`polyloss.primitives.SoftplusCrossEntropy` for the formulas.
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
    runs,
    scalars,
    thread,
    threads,
    vectors,
)
from polyloss.backends.cuda.sums import finishing, scaling

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqqqqqqqqqqqqqqqqqqqdddd"


def build(x: str, t: str, form: str, value: bool, gradient: bool) -> Any:
    """The kernel for predictions and targets of these dtypes.

    The form is "scalars"; "vectors", for contiguous predictions; or "plain", for those with no weights and no mask.
    """
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

    vector, plain = form != "scalars", form == "plain"
    chunk = vectors(x, wide) if vector else scalars(x, wide)
    Real, Word, E, W = m.type, chunk.word, chunk.numbers, chunk.words
    fetch, get, put = chunk.load, chunk.get, chunk.store

    def filling(dtype: str) -> Any:
        one_by_one, run = memory(dtype, wide).load, runs(dtype, wide, E)

        @device
        def fill(at, to_row, to_column, i, columns, out):
            """``out`` with what an operand has for the i-th vector; 1 where there is no such operand."""
            if at == 0:
                for e in range(E):
                    out[e] = one
            elif plain or (to_column == 1 and to_row == columns and at & 15 == 0):
                run(at, i, out)
            else:
                row = i * E // columns
                column = i * E - row * columns
                for e in range(E):
                    out[e] = one_by_one(at, row * to_row + column * to_column)
                    column += 1
                    if column == columns:
                        row, column = row + 1, 0

        return fill

    fill_t, fill, fill_flags = filling(t), filling(wide), filling("bool")

    def kernel(
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
        first, total = block() * threads() + thread(), 0.0
        if vector:
            xs, ts, out = cuda.local.array(W, Word), cuda.local.array(E, Real), cuda.local.array(E, Real)
            ps = ts if plain else cuda.local.array(E, Real)
            ws = ts if plain else cuda.local.array(E, Real)
            flags = ts if plain else cuda.local.array(E, Real)
            for i in range(first, size // E, blocks() * threads()):
                fetch(x_at, i, xs, 0)
                fill_t(t_at, t0, t1, i, columns, ts)
                if not plain:
                    fill(p_at, p0, p1, i, columns, ps)
                    fill(w_at, w0, w1, i, columns, ws)
                    fill_flags(keep_at, keep0, keep1, i, columns, flags)
                s = zero
                for j in range(E):
                    v = get(xs, 0, j)
                    a, b = coefficients(ts[j], one if plain else ps[j], keep, smooth)
                    e = exp(-abs(v))
                    if value:
                        item = loss(v, a, b, e)
                        if not plain:
                            item = ws[j] * item if flags[j] != zero else zero
                        s += item
                        if items_at != 0:
                            store(items_at, i * E + j, item)
                    if gradient:
                        g = scale * slope(v, a, b, e)
                        if not plain:
                            g = ws[j] * g if flags[j] != zero else zero
                        out[j] = g
                total += float(s)
                if gradient:
                    put(g_at, i, out)
            first += size // E * E
        for i in range(first, size, blocks() * threads()):
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

    return kernel
