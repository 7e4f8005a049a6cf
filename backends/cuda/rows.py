"""Log-sum-exp cross-entropy of rows against labels: one team of threads for each row.

A row is read from memory once, for the value with its gradient or alone. Each thread keeps its part of the first batch
in registers, and of the next ones in shared memory, as far as that goes; what is beyond comes again, from the
second-level cache. The sum of the exponentials leaves out what equals the maximum, and counts it: so nothing cancels in
a row that the model is sure of. The gradient alone needs no team, so there a long row is cut into pieces. See
`polyloss.primitives.LseCrossEntropy` for the formulas.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from polyloss.backends.cuda.device import (
    block,
    blocks,
    cuda,
    device,
    int32,
    memory,
    number,
    opaque,
    scalars,
    thread,
    threads,
    two_sum,
    uint32,
    vectors,
    warp_barrier,
)
from polyloss.backends.cuda.fields import BATCH, FORMS, Form
from polyloss.backends.cuda.sums import finishing, scaling
from polyloss.backends.cuda.teams import team

__all__ = ["PARAMETERS", "build", "row_of"]

PARAMETERS = "qqqqqqqqqqqqqqqqqqqddd"


@functools.cache
def row_of(x: str, wide: str, form: Form, masked: bool = False) -> SimpleNamespace:
    """What a team does with a row, a batch of vectors for each thread at a time.

    A row is some single numbers before the first aligned vector, ``n`` vectors, and some single numbers more: those
    are the ``edge``, of which each thread holds one, or -inf. If it is ``masked``, the addresses of a flag for each
    number are given (0: none), first of the row and then of its vectors; a number whose flag is not set is -inf.
    """
    chunk = vectors(x, wide) if form.vector else scalars(x, wide)
    m, group, long, shelved_too = number(wide), team(wide, form), form.long, form.shelf
    real, exp, maximum, inf, nan = m.real, m.exp, m.maximum, m.inf, m.nan
    load, blank, get, drop = chunk.load, chunk.blank, chunk.get, chunk.drop
    widest, sum_up, flag = group.maximum, group.sums, memory("bool", "int64").load
    E, HELD = chunk.numbers, BATCH * chunk.words
    zero, one = real(0), real(1)
    size = memory(x, wide).size
    branching = wide == "float64"  # without branches several exponentials are computed at a time, in more registers

    @device
    def parts(row, classes):
        """How many numbers stand before the first vector, and how many vectors there are."""
        if E == 1:
            return int32(0), int32(classes)
        head = (E - ((row // size) & (E - 1))) & (E - 1)
        head = head if head < classes else classes
        return int32(head), int32((classes - head) // E)

    @device
    def edge_at(head, n, classes, lane):
        """The place of a thread's single number, or -1."""
        k = lane if lane < head else lane + n * E
        return int32(k) if k < classes else int32(-1)

    @device
    def gather(base, n, first, lanes, held, mask):
        for j in range(BATCH):
            i = int32(first + j * lanes)
            if i < n:
                load(base, i, held, j)
                if masked and mask != 0:
                    for e in range(E):
                        if flag(mask, i * E + e) == 0:
                            drop(held, j, e)
            else:
                blank(held, j)

    @device
    def put(shelf, batch, lane, lanes, held):
        for w in range(HELD):  # neighbouring lanes side by side
            shelf[uint32((batch * HELD + w) * lanes + lane)] = held[w]  # of a signed index Numba looks at the sign

    @device
    def take(shelf, batch, lane, lanes, held):
        for w in range(HELD):
            held[w] = shelf[uint32((batch * HELD + w) * lanes + lane)]

    @device
    def peak(held, top):
        """The maximum; a NaN is not seen, and the exponentials show it then."""
        for j in range(BATCH):
            for e in range(E):
                top = maximum(top, get(held, j, e))
        return top

    @device
    def sums(held, top, total, lost, tops):
        """The exponentials of what is not the top, and how often the top is there."""
        for j in range(BATCH):
            s = zero
            for e in range(E):
                v = get(held, j, e)
                if branching:
                    if v == top:
                        tops += one
                    else:
                        s += exp(v - top)
                else:
                    part, is_top = exp(v - top), v == top
                    s += zero if is_top else part
                    tops += one if is_top else zero
            total, lost = two_sum(total, lost, s)
        return total, lost, tops

    @device
    def statistics(row, head, n, edge, lane, lanes, batches, shelved, held, spare, shelf, scratch, mask):
        """The maximum of a row, and what `others_of` takes; ``held`` has the first batch, and keeps it."""
        base, step = row + head * size, BATCH * lanes
        top = peak(held, edge)
        if long:
            for batch in range(1, batches):
                gather(base, n, lane + batch * step, lanes, spare, mask)
                if shelved_too and batch <= shelved:
                    put(shelf, batch - 1, lane, lanes, spare)
                top = peak(spare, top)
        top = widest(top, lanes, scratch[0])
        total, lost, tops = sums(held, top, zero, zero, zero)
        if edge == top:
            tops += one
        else:
            total, lost = two_sum(total, lost, exp(edge - top))
        if long:
            for batch in range(1, batches):
                if shelved_too and batch <= shelved:
                    take(shelf, batch - 1, lane, lanes, spare)
                else:
                    gather(base, n, lane + batch * step, lanes, spare, mask)
                total, lost, tops = sums(spare, top, total, lost, tops)
        total, lost, tops = sum_up(total, lost, tops, lanes, scratch[1], scratch[2], scratch[3])
        return top, total, lost, tops

    @device
    def others_of(top, total, lost, tops):
        """The sum of the exponentials without one top."""
        undefined = top == -inf or (top == inf and tops > one)  # nothing finite, or two infinite logits
        return nan if undefined else (total + (tops - one)) + lost

    return SimpleNamespace(
        chunk=chunk,
        parts=parts,
        edge_at=edge_at,
        gather=gather,
        take=take,
        statistics=statistics,
        others_of=others_of,
    )


@functools.cache
def formulas(wide: str) -> SimpleNamespace:
    """The loss of a row, and its gradient at and beside the label."""
    m = number(wide)
    real, exp, log1p, inf = m.real, m.exp, m.log1p, m.inf
    zero = real(0)

    @device
    def loss(q, top, others, xy, z):
        gap = zero if xy == top or (q == zero and top - xy == inf) else top - xy
        tail = log1p(others)
        item = q * gap + q * tail
        if z != zero:
            lse = top + tail
            item += z * lse * lse
        return item

    @device
    def slope(e, top, norm, q, share, z, factor):
        """The gradient beside the label, of an exponential; ``share`` is that of a probability not normalised yet."""
        if top == inf and e != e:  # of inf - inf
            return factor * (q / norm + (zero if z == zero else inf))
        return e * share

    @device
    def slope_at_label(xy, top, others, norm, q, pull, z, factor):
        if xy == top:
            rise = zero if z == zero else (inf if top == inf else pull / norm)
            return factor * (rise - q * (others / norm))
        return factor * ((q + pull) * (exp(xy - top) / norm) - q)

    return SimpleNamespace(loss=loss, slope=slope, slope_at_label=slope_at_label)


def build(x: str, labels: str, form: str, value: bool, gradient: bool) -> Any:
    """The kernel for logits and labels of these dtypes; see `fields.Form`."""
    wide = "float64" if x == "float64" else "float32"
    shape = FORMS[form]
    m, of, LANES, long, shelved_too, whole_block = (
        number(wide),
        row_of(x, wide, shape),
        shape.lanes,
        shape.long,
        shape.shelf,
        shape.block,
    )
    real, exp, log1p, inf, nan = m.real, m.exp, m.log1p, m.inf, m.nan
    Real, Word, E, HELD = m.type, of.chunk.word, of.chunk.numbers, BATCH * of.chunk.words
    get, write_chunk, gather, take = of.chunk.get, of.chunk.store, of.gather, of.take
    parts, edge_at, statistics, others_of = of.parts, of.edge_at, of.statistics, of.others_of
    loss, slope, slope_at_label = formulas(wide).loss, formulas(wide).slope, formulas(wide).slope_at_label
    logits, own = memory(x, wide), memory(wide, wide)
    read, write, size = logits.load, logits.store, logits.size
    read_own, write_own = own.load, own.store
    label_at, flag = memory(labels, "int64").load, memory("bool", "int64").load
    factor_of, finish = scaling(wide), finishing(wide)
    zero, one, two = real(0), real(1), real(2)
    early = wide != "float64"  # which has no registers left for it

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
        g_at,
        scale_at,
        divisor_at,
        rows,
        classes,
        lanes,
        shelved,
        pieces,
        piece,
        z_loss,
        scale_by,
        divide_by,
    ):
        held, out = cuda.local.array(HELD, Word), cuda.local.array(E, Real)
        spare = cuda.local.array(HELD, Word) if long else held
        shelf = cuda.shared.array(0, Word) if shelved_too else held
        if whole_block:
            scratch = (
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
            )
            size_of_team, lane, mine, teams = LANES, int32(thread()), 0, 1
        else:
            scratch = out, out, out, out
            size_of_team = LANES if LANES != 0 else int32(lanes)
            lane = int32(thread() & (size_of_team - 1))
            mine, teams = thread() // size_of_team, threads() // size_of_team
        z, scale = real(z_loss), factor_of(scale_by, scale_at, divide_by, divisor_at)
        total = 0.0
        units = rows if value else rows * pieces
        for first in range(block() * teams, units, blocks() * teams):
            r, start, width = first + mine, 0, classes
            there = r < units
            if not value:
                r //= pieces
                start = (first + mine - r * pieces) * piece
                width = min(piece, classes - start)
            on = there
            if on and keep_at != 0:
                on = flag(keep_at, r) != 0
            row = x_at + (r * classes + start) * size
            head, n = parts(row, width)
            edge, k = -inf, edge_at(head, n, width, lane) if there else int32(-1)
            count = n if on else 0
            if value and early:  # before the label, for which the rest has to wait
                gather(row + head * size, count, lane, size_of_team, held, 0)
            item, top, others, q, weight, xy, y = zero, zero, zero, one, one, zero, int32(0)
            if on:
                label = label_at(labels_at, r)
                if label < 0 or label >= classes:
                    q = nan
                else:
                    y = int32(label)
                    if c_at != 0:
                        q = read_own(c_at, y)
                if w_at != 0:
                    weight = read_own(w_at, r)
                xy = read(row, y - start)  # before the gradient, which may take the place of the predictions
                if k >= 0:
                    edge = read(row, k)
            batches = int32((n + BATCH * size_of_team - 1) // (BATCH * size_of_team)) if long else int32(1)
            if value:
                if not early:
                    gather(row + head * size, count, lane, size_of_team, held, 0)
                top, summed, lost, tops = statistics(
                    row, head, count, edge, lane, size_of_team, batches, shelved, held, spare, shelf, scratch, 0
                )
                others = others_of(top, summed, lost, tops)
                if gradient and not whole_block:  # the gradient may take the place of what another lane has read
                    warp_barrier()
                if lane == 0 and there:
                    item = weight * loss(q, top, others, xy, z) if on else zero
                    if top_at != 0:
                        write_own(top_at, r, top)
                        write_own(others_at, r, others)
                    if items_at != 0:
                        write_own(items_at, r, item)
                    total += float(item)
            elif on:
                top, others = read_own(top_at, r), read_own(others_at, r)
            if gradient and there:
                factor, norm = weight * scale, one + others
                pull = zero if z == zero or top == inf else two * z * (top + log1p(others))
                share = factor * ((q + pull) / norm)
                # To compute an exponential again costs less than a register for each: of a pair of halves, two.
                again = opaque(top) if E == 8 else top
                out_row = g_at + (r * classes + start) * size
                base, out_base = row + head * size, out_row + head * size
                for batch in range(batches):
                    at = int32(lane + batch * BATCH * size_of_team)
                    if not value:
                        gather(base, count, at, size_of_team, held, 0)
                    elif long and batch > 0:
                        if shelved_too and batch <= shelved:
                            take(shelf, batch - 1, lane, size_of_team, held)
                        else:
                            gather(base, count, at, size_of_team, held, 0)
                    for j in range(BATCH):
                        i = int32(at + j * size_of_team)
                        if i < n:
                            for e in range(E):
                                e_k = exp(get(held, j, e) - again)
                                out[e] = slope(e_k, top, norm, q, share, z, factor) if on else zero
                            write_chunk(out_base, i, out)
                if k >= 0:
                    write(out_row, k, slope(exp(edge - top), top, norm, q, share, z, factor) if on else zero)
                if on:  # by the lane that wrote there before
                    at_label = int32(y - start)
                    p = at_label - head
                    owner = k >= 0 and at_label == k
                    if p >= 0 and p < n * E:
                        owner = (p // E) % size_of_team == lane
                    if owner:
                        write(out_row, at_label, slope_at_label(xy, top, others, norm, q, pull, z, factor))
        if value:
            finish(total, sums_at, result_at, divide_by, divisor_at)

    return kernel
