"""The statistics of few long rows, which would leave most of a device idle: several blocks for each row.

A first kernel sees each piece of a row as `rows` sees a row, and a second one joins the pieces to the row's statistics
and its loss. The gradient is that of `rows`, from the statistics.
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
from polyloss.backends.cuda.fields import BATCH, FORMS
from polyloss.backends.cuda.rows import formulas, row_of
from polyloss.backends.cuda.sums import finishing
from polyloss.backends.cuda.teams import team

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqqqqqqqqqqqdd"


def build(x: str, labels: str, form: str) -> Any:
    """The kernel of pieces, for logits of this dtype and in that form; without a form, that which joins them."""
    wide = "float64" if x == "float64" else "float32"
    return _pieces(x, wide, form) if form else _joined(x, labels, wide)


def _pieces(x: str, wide: str, form: str) -> Any:
    m, of = number(wide), row_of(x, wide, FORMS[form])
    Real, inf, LANES = m.type, m.inf, FORMS[form].lanes
    Word, HELD = of.chunk.word, BATCH * of.chunk.words
    parts, edge_at, gather, statistics = of.parts, of.edge_at, of.gather, of.statistics
    long = FORMS[form].long
    logits, own, flag = memory(x, wide), memory(wide, wide), memory("bool", "int64").load
    read, size, write = logits.load, logits.size, own.store

    def kernel(
        x_at,
        labels_at,
        c_at,
        w_at,
        keep_at,
        items_at,
        sums_at,
        result_at,
        top_at,
        others_at,
        parts_at,
        divisor_at,
        rows,
        classes,
        pieces,
        z_loss,
        divide_by,
    ):
        held = cuda.local.array(HELD, Word)
        spare = cuda.local.array(HELD, Word) if long else held
        scratch = (
            cuda.shared.array(32, Real),
            cuda.shared.array(32, Real),
            cuda.shared.array(32, Real),
            cuda.shared.array(32, Real),
        )
        lane, piece = int32(thread()), (classes + pieces - 1) // pieces
        for unit in range(block(), rows * pieces, blocks()):
            r = unit // pieces
            start = (unit - r * pieces) * piece
            width = max(0, min(piece, classes - start))
            on = True
            if keep_at != 0:
                on = flag(keep_at, r) != 0
            row = x_at + (r * classes + start) * size
            head, n = parts(row, width)
            k = edge_at(head, n, width, lane) if on else int32(-1)
            edge = read(row, k) if k >= 0 else -inf
            count = n if on else 0
            batches = int32((n + BATCH * LANES - 1) // (BATCH * LANES)) if long else int32(1)
            gather(row + head * size, count, lane, LANES, held, 0)
            top, summed, lost, tops = statistics(
                row, head, count, edge, lane, LANES, batches, 0, held, spare, held, scratch, 0
            )
            if lane == 0:
                write(parts_at, unit, top)
                write(parts_at, unit + rows * pieces, summed)
                write(parts_at, unit + 2 * rows * pieces, lost)
                write(parts_at, unit + 3 * rows * pieces, tops)

    return kernel


def _joined(x: str, labels: str, wide: str) -> Any:
    m, group, form = number(wide), team(wide, FORMS["scalar warp"]), FORMS["scalar warp"]
    of, loss = row_of(x, wide, form), formulas(wide).loss
    Real, real, exp, maximum, inf, nan, LANES = m.type, m.real, m.exp, m.maximum, m.inf, m.nan, form.lanes
    widest, sum_up, others_of, finish = group.maximum, group.sums, of.others_of, finishing(wide)
    logits, own, label_at = memory(x, wide), memory(wide, wide), memory(labels, "int64").load
    read_x, size, read, write = logits.load, logits.size, own.load, own.store
    flag = memory("bool", "int64").load
    zero, one = real(0), real(1)

    @device
    def item_of(x_at, labels_at, c_at, w_at, r, classes, top, others, z):
        label, q = label_at(labels_at, r), one
        if label < 0 or label >= classes:
            label, q = 0, nan
        elif c_at != 0:
            q = read(c_at, label)
        item = loss(q, top, others, read_x(x_at + r * classes * size, label), z)
        return item * read(w_at, r) if w_at != 0 else item

    def kernel(
        x_at,
        labels_at,
        c_at,
        w_at,
        keep_at,
        items_at,
        sums_at,
        result_at,
        top_at,
        others_at,
        parts_at,
        divisor_at,
        rows,
        classes,
        pieces,
        z_loss,
        divide_by,
    ):
        unused = cuda.local.array(1, Real)
        z, total = real(z_loss), 0.0
        lane, teams = int32(thread() & (LANES - 1)), threads() // LANES
        for r in range(block() * teams + thread() // LANES, rows, blocks() * teams):
            own_top = -inf
            for piece in range(lane, pieces, LANES):
                own_top = maximum(own_top, read(parts_at, r * pieces + piece))
            top = widest(own_top, LANES, unused)
            summed, lost, tops = zero, zero, zero
            for piece in range(lane, pieces, LANES):
                unit = r * pieces + piece
                its_top, its_sum = read(parts_at, unit), read(parts_at, unit + rows * pieces)
                its_lost = read(parts_at, unit + 2 * rows * pieces)
                its_tops = read(parts_at, unit + 3 * rows * pieces)
                if its_top == top:
                    tops += its_tops
                    summed, lost = two_sum(summed, lost + its_lost, its_sum)
                else:
                    summed, lost = two_sum(summed, lost, ((its_sum + its_tops) + its_lost) * exp(its_top - top))
            summed, lost, tops = sum_up(summed, lost, tops, LANES, unused, unused, unused)
            if lane == 0:
                others = others_of(top, summed, lost, tops)
                on = True
                if keep_at != 0:
                    on = flag(keep_at, r) != 0
                item = item_of(x_at, labels_at, c_at, w_at, r, classes, top, others, z) if on else zero
                if top_at != 0:
                    write(top_at, r, top)
                    write(others_at, r, others)
                if items_at != 0:
                    write(items_at, r, item)
                total += float(item)
        finish(total, sums_at, result_at, divide_by, divisor_at)

    return kernel
