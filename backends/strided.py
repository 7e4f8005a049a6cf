"""How arrays lie in memory: the strides that a kernel walks along, or None where it takes a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyloss.backends import Array, Library, Unavailable

__all__ = ["merged", "rows_of", "views"]

Strides = tuple[int, ...]


def merged(shape: Sequence[int], *operands: Strides) -> tuple[list[int], list[list[int]]]:
    """The axes as few as possible: neighbours become one where every operand steps through them evenly."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in operands]
    for i, n in enumerate(shape):
        if n == 1:
            continue
        if sizes and all(s[-1] == operand[i] * n for s, operand in zip(steps, operands)):
            sizes[-1] *= n
            for s, operand in zip(steps, operands):
                s[-1] = operand[i]
        else:
            sizes.append(n)
            for s, operand in zip(steps, operands):
                s.append(operand[i])
    return sizes, steps


def rows_of(shape: Sequence[int], strides: Strides, axis: int) -> tuple[int, int, int, int] | None:
    """``(outer step, inner step, class step, inner)`` of the rows along ``axis``; see `fields.Lse`."""
    before, (to_outer,) = merged(shape[:axis], strides[:axis])
    after, (to_inner,) = merged(shape[axis + 1 :], strides[axis + 1 :])
    if not after:  # the rows of the last axis are inner ones, so that lanes may run along them
        before, to_outer, after, to_inner = before[:-1], to_outer[:-1], before[-1:], to_outer[-1:]
    if len(before) > 1 or len(after) > 1:
        return None
    return (
        to_outer[0] if to_outer else 0,
        to_inner[0] if to_inner else 0,
        strides[axis] if shape[axis] > 1 else 1,
        after[0] if after else 1,
    )


def views(
    library: Library, shape: tuple[int, ...], size: int, operands: tuple[Array | None, ...]
) -> tuple[list[int], int, list[Any]]:
    """Address and two strides of every operand, seen as [rows, columns]; the number of columns; and the operands.

    The caller must hold the operands for as long as it uses their addresses.
    """
    given = [None if a is None else _reachable(library, a) for a in operands]
    given = [a if a is None or a.shape == shape else library.xp.broadcast_to(a, shape) for a in given]
    sizes: list[int] = []
    steps: list[list[int]] = []
    if not all(a is None or library.is_contiguous(a) for a in given):
        sizes, steps = merged(shape, *(library.strides(a) for a in given if a is not None))
        if len(sizes) > 2:
            given, sizes, steps = [a if a is None else library.contiguous(a) for a in given], [], []
    rest = iter(steps)
    columns = sizes[-1] if sizes else size
    found = []
    for a in given:
        if a is None:
            found += [0, 0, 0]
        else:
            step = next(rest, None) or [1]
            found += [library.address(a), step[0] if len(step) == 2 else columns, step[-1]]
    return found, columns, given


def _reachable(library: Library, x: Array) -> Array:
    if library.stored(x) is None:
        x = library.contiguous(x)
        if library.stored(x) is None:
            raise Unavailable(f"the memory of a {type(x).__name__} cannot be reached")
    return x
