"""Logits to probabilities and the like: one element, or one row of classes for a team of threads.

See `polyloss.transforms` for the formulas.
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
    thread,
    threads,
)
from polyloss.backends.cuda.fields import BATCH, FORMS
from polyloss.backends.cuda.rows import row_of

__all__ = ["PARAMETERS", "build"]

PARAMETERS = "qqqqqq"


def build(function: str, x: str, form: str) -> Any:
    """The kernel for inputs of this dtype; outputs have the same."""
    wide = "float64" if x == "float64" else "float32"
    return _rows(function, x, wide, form) if form else _elements(function, x, wide)


def _elements(function: str, x: str, wide: str) -> Any:
    m, of = number(wide), memory(x, wide)
    real, exp, log1p, ratio, load, store = m.real, m.exp, m.log1p, m.ratio, of.load, of.store
    zero, one = real(0), real(1)
    is_sigmoid, is_softplus = function == "sigmoid", function == "softplus"

    @device
    def result(v):
        e = exp(-abs(v))
        if is_sigmoid:
            return ratio(one if v >= zero else e, one + e)
        if is_softplus:
            return (v if v >= zero else zero) + log1p(e)
        return (zero if v >= zero else v) - log1p(e)

    def kernel(x_at, out_at, size, classes, lanes, shelved):
        for i in range(block() * threads() + thread(), size, blocks() * threads()):
            store(out_at, i, result(load(x_at, i)))

    return kernel


def _rows(function: str, x: str, wide: str, form: str) -> Any:
    shape = FORMS[form]
    LANES, long, shelved_too, whole_block = shape.lanes, shape.long, shape.shelf, shape.block
    m, of, memory_of = number(wide), row_of(x, wide, shape), memory(x, wide)
    Real, real, exp, log1p, inf, nan = m.type, m.real, m.exp, m.log1p, m.inf, m.nan
    Word, E, HELD = of.chunk.word, of.chunk.numbers, BATCH * of.chunk.words
    get, write_chunk, gather, take = of.chunk.get, of.chunk.store, of.gather, of.take
    parts, edge_at, statistics, others_of = of.parts, of.edge_at, of.statistics, of.others_of
    read, write, size = memory_of.load, memory_of.store, memory_of.size
    zero, one = real(0), real(1)
    is_softmax, is_lse = function == "softmax", function == "logsumexp"

    @device
    def entry(v, top, share, tail):
        if is_softmax:
            return share if v == top else exp(v - top) * share
        return (zero if v == top else v - top) - tail

    def kernel(x_at, out_at, rows, classes, lanes, shelved):
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
        for first in range(block() * teams, rows, blocks() * teams):
            r = first + mine
            on = r < rows
            row, out_row = x_at + r * classes * size, out_at + r * classes * size
            head, n = parts(row, classes)
            k = edge_at(head, n, classes, lane) if on else int32(-1)
            edge = read(row, k) if k >= 0 else -inf
            count = n if on else 0
            batches = int32((n + BATCH * size_of_team - 1) // (BATCH * size_of_team)) if long else int32(1)
            gather(row + head * size, count, lane, size_of_team, held, 0)
            top, summed, lost, tops = statistics(
                row, head, count, edge, lane, size_of_team, batches, shelved, held, spare, shelf, scratch, 0
            )
            if is_lse:
                if on and lane == 0:
                    lse = top if top == inf or top == -inf else top + log1p((summed + (tops - one)) + lost)
                    # A NaN is in the sum, or alone in the row: then nothing equals the maximum that was found.
                    write(out_at, r, nan if summed != summed else lse)
            elif on:
                others = others_of(top, summed, lost, tops)
                share, tail = one / (one + others), log1p(others)
                again = opaque(top) if E == 8 else top  # as in `rows`
                base, out_base = row + head * size, out_row + head * size
                for batch in range(batches):
                    at = int32(lane + batch * BATCH * size_of_team)
                    if long and batch > 0:
                        if shelved_too and batch <= shelved:
                            take(shelf, batch - 1, lane, size_of_team, held)
                        else:
                            gather(base, count, at, size_of_team, held, 0)
                    for j in range(BATCH):
                        i = int32(at + j * size_of_team)
                        if i < n:
                            for e in range(E):
                                out[e] = entry(get(held, j, e), again, share, tail)
                            write_chunk(out_base, i, out)
                if k >= 0:
                    write(out_row, k, entry(edge, top, share, tail))

    return kernel
