"""Log-sum-exp cross-entropy of rows against any weighted targets ``q``: soft, smoothed, weighted, with masked classes.

As `rows`, a team of threads reads the logits of a row once, and keeps them in registers and in shared memory. The
targets it reads for the sums over them, and for the gradient again, from a cache. At a single largest logit the
gradient is formed from the side that does not cancel; where several are largest, none of their probabilities is above a
half, and there is nothing to take care of. See `polyloss.primitives.LseCrossEntropy` for the formulas.
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
    opaque,
    runs,
    thread,
    threads,
    two_sum,
)
from polyloss.backends.cuda.fields import BATCH, FORMS
from polyloss.backends.cuda.rows import row_of
from polyloss.backends.cuda.sums import finishing, scaling
from polyloss.backends.cuda.teams import team

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqqqqqqqqqqqqqqddddd"


def build(x: str, t: str, general: bool, form: str, gradient: bool) -> Any:
    """The kernel for logits and targets of these dtypes; integers are labels. ``general``: class weights or a mask."""
    wide = "float64" if x == "float64" else "float32"
    labelled, shape = t in ("int32", "int64"), FORMS[form]
    m, group, of = number(wide), team(wide, shape), row_of(x, wide, shape, general)
    LANES, long, shelved_too, whole_block = shape.lanes, shape.long, shape.shelf, shape.block
    Real, real, exp, log1p, inf, nan = m.type, m.real, m.exp, m.log1p, m.inf, m.nan
    Word, E, W, HELD = of.chunk.word, of.chunk.numbers, of.chunk.words, BATCH * of.chunk.words
    get, write_chunk, gather, take = of.chunk.get, of.chunk.store, of.gather, of.take
    parts, edge_at, statistics, others_of, sum_up = of.parts, of.edge_at, of.statistics, of.others_of, group.sums
    logits, own = memory(x, wide), memory(wide, wide)
    load, store, size = logits.load, logits.store, logits.size
    read, write = own.load, own.store
    read_t, size_t = memory(t, "int64" if labelled else wide).load, memory(t, wide).size
    load_run = None if labelled else runs(t, wide, E)
    flag = memory("bool", "int64").load
    factor_of, finish = scaling(wide), finishing(wide)
    zero, half, one, two = real(0), real(0.5), real(1), real(2)

    @device
    def rotate(held):
        """Brings the next vector to place 0, and the first one to the last: no loop over places needs unrolling."""
        for _ in range(W):
            word = held[0]
            for w in range(HELD - 1):
                held[w] = held[w + 1]
            held[HELD - 1] = word

    @device
    def is_in(mask, k):
        """Whether the mask keeps class k."""
        return not general or mask == 0 or flag(mask, k) != 0

    @device
    def weighted(t, k, inside, c_at, kept, share):
        """The target t of class k, smoothed and weighted."""
        q = t * kept + (share if inside else zero)
        if general and c_at != 0:
            q *= read(c_at, k)
        return q

    @device
    def masses(v, q, top, single, linear, rest, at_top):
        """The sums over a row's targets with one more: of q (top - v), and of q beside and at a single top."""
        if v == top:
            if single:
                return linear, rest, at_top + q
            return linear, rest + q, at_top
        gap = top - v
        return linear + (zero if q == zero and gap == inf else q * gap), rest + q, at_top

    @device
    def slope(v, q, top, single, share, factor, at_slope):
        return at_slope if single and v == top else exp(v - top) * share - factor * q

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
        lanes,
        shelved,
        keep_share,
        smoothing,
        z_loss,
        scale_by,
        divide_by,
    ):
        held, out, ts = cuda.local.array(HELD, Word), cuda.local.array(E, Real), cuda.local.array(E, Real)
        spare = cuda.local.array(HELD, Word) if long else held
        shelf = cuda.shared.array(0, Word) if shelved_too else held
        if whole_block:
            scratch = (
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
                cuda.shared.array(32, Real),
            )
            more = cuda.shared.array(32, Real), cuda.shared.array(32, Real), cuda.shared.array(32, Real)
            size_of_team, lane, mine, teams = LANES, int32(thread()), 0, 1
        else:
            scratch, more = (out, out, out, out), (out, out, out)
            size_of_team = LANES if LANES != 0 else int32(lanes)
            lane = int32(thread() & (size_of_team - 1))
            mine, teams = thread() // size_of_team, threads() // size_of_team
        kept, smooth, z = real(keep_share), real(smoothing), real(z_loss)
        scale = factor_of(scale_by, scale_at, divide_by, divisor_at)
        summed = 0.0
        for first in range(block() * teams, rows, blocks() * teams):
            r = first + mine
            there = r < rows
            on = there
            if on and keep_at != 0:
                on = flag(keep_at, r) != 0
            row, ts_row, mask = x_at + r * classes * size, t_at + r * classes * size_t, mask_at + r * mask_step
            head, n = parts(row, classes)
            base, ts_base = row + head * size, ts_row + head * size_t
            mask_base = mask + head if mask_at != 0 else 0
            if mask_at == 0:
                mask = 0
            batches = int32((n + BATCH * size_of_team - 1) // (BATCH * size_of_team)) if long else int32(1)
            count = n if on else 0
            gather(base, count, lane, size_of_team, held, mask_base)  # before the label, for which the rest has to wait
            edge, k = -inf, edge_at(head, n, classes, lane) if there else int32(-1)
            y, at_top, weight, t = int32(-1), zero, one, zero
            if on:
                if labelled:
                    label = read_t(labels_at, r)
                    if label < 0 or label >= classes:
                        at_top = nan
                    else:
                        y = int32(label)
                if w_at != 0:
                    weight = read(w_at, r)
                if k >= 0:
                    if is_in(mask, k):
                        edge = load(row, k)
                    t = (one if k == y else zero) if labelled else read_t(ts_row, k)
            share = smooth / real(classes)
            if general and mask_at != 0 and smooth != zero:  # shared with the classes that the mask keeps
                found, nothing, none = zero, zero, zero
                if on:
                    for c in range(lane, classes, size_of_team):
                        found += one if flag(mask, c) != 0 else zero
                found, nothing, none = sum_up(found, nothing, none, size_of_team, *more)
                share = smooth / found if found > zero else smooth
            top, total, lost, tops = statistics(
                row, head, count, edge, lane, size_of_team, batches, shelved, held, spare, shelf, scratch, mask_base
            )
            others, single = others_of(top, total, lost, tops), tops == one
            # The sums over the targets.
            linear, lost, rest, lost_too = zero, zero, zero, zero
            for batch in range(batches):
                at = int32(lane + batch * BATCH * size_of_team)
                if long:
                    if batch == 0:
                        for w in range(HELD):
                            spare[w] = held[w]
                    elif shelved_too and batch <= shelved:
                        take(shelf, batch - 1, lane, size_of_team, spare)
                    else:
                        gather(base, count, at, size_of_team, spare, mask_base)
                for j in range(BATCH):
                    i = int32(at + j * size_of_team)
                    if i < count:
                        if not labelled:
                            load_run(ts_base, i, ts)
                        part, mass = zero, zero
                        for e in range(E):
                            c = head + i * E + e
                            if labelled:
                                ts[e] = one if c == y else zero
                            elif not (zero <= ts[e] <= one):
                                at_top = nan
                            q = weighted(ts[e], c, is_in(mask, c), c_at, kept, share)
                            part, mass, at_top = masses(get(spare, 0, e), q, top, single, part, mass, at_top)
                        linear, lost = two_sum(linear, lost, part)
                        rest, lost_too = two_sum(rest, lost_too, mass)
                    rotate(spare)
            if on and k >= 0:
                if not (zero <= t <= one):
                    at_top = nan
                q = weighted(t, k, is_in(mask, k), c_at, kept, share)
                part, mass, at_top = masses(edge, q, top, single, zero, zero, at_top)
                linear, lost = two_sum(linear, lost, part)
                rest, lost_too = two_sum(rest, lost_too, mass)
            linear, lost, at_top = sum_up(linear, lost, at_top, size_of_team, *more)
            rest, lost_too, tops = sum_up(rest, lost_too, zero, size_of_team, scratch[1], scratch[2], scratch[3])
            linear = linear if linear == inf else linear + lost
            rest += lost_too
            mass = rest + at_top
            if lane == 0 and there:
                tail = log1p(others)
                item = linear + mass * tail
                if z != zero:
                    lse = top + tail
                    item += z * lse * lse
                item = weight * item if on else zero
                if items_at != 0:
                    write(items_at, r, item)
                summed += float(item)
            if gradient and there:
                factor, norm = weight * scale, one + others
                pull = zero if z == zero or top == inf else two * z * (top + log1p(others))
                share_of_p = factor * ((mass + pull) / norm)
                at_slope = rest - mass * (others / norm) if at_top > half * mass else mass / norm - at_top
                if z != zero:
                    at_slope += inf if top == inf else pull / norm
                at_slope *= factor
                again = opaque(top) if E == 8 else top
                out_row = g_at + r * classes * size
                out_base = out_row + head * size
                for batch in range(batches):
                    at = int32(lane + batch * BATCH * size_of_team)
                    if long and batch > 0:
                        if shelved_too and batch <= shelved:
                            take(shelf, batch - 1, lane, size_of_team, held)
                        else:
                            gather(base, count, at, size_of_team, held, mask_base)
                    for j in range(BATCH):
                        i = int32(at + j * size_of_team)
                        if i < n:
                            if not labelled and on:
                                load_run(ts_base, i, ts)
                            for e in range(E):
                                c = head + i * E + e
                                if labelled:
                                    ts[e] = one if c == y else zero
                                inside = is_in(mask, c)
                                q = weighted(ts[e], c, inside, c_at, kept, share)
                                g = slope(get(held, 0, e), q, again, single, share_of_p, factor, at_slope)
                                out[e] = g if on and inside else zero
                            write_chunk(out_base, i, out)
                        rotate(held)
                if k >= 0:
                    inside = is_in(mask, k)
                    q = weighted(t, k, inside, c_at, kept, share)
                    g = slope(edge, q, top, single, share_of_p, factor, at_slope)
                    store(out_row, k, g if on and inside else zero)
        finish(summed, sums_at, result_at, divide_by, divisor_at)

    return kernel
