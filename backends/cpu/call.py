"""What the calls of all kernels have in common: who runs them, and where they leave their value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polyloss.backends import Array, Bound, InvalidTarget, Library, Work
from polyloss.backends.cpu import threads
from polyloss.backends.cpu.compiled import Kernel
from polyloss.backends.numpy import address_of

__all__ = ["FLOATS", "WHOLE", "WIDE", "bound", "is_small", "operand", "run", "space", "value_of"]

WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
"""The floats that may lie in memory, and what they become in registers, in sums and in row statistics."""

FLOATS = frozenset(WIDE)
WHOLE = frozenset(["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])

CUTOFF = 1 << 16
"""Elements from which on several threads are worth waking: about 50 us of work for one."""


def run(library: Library, kernel: Kernel, parameters: bytes, blocks: int, size: int) -> int:
    """The kernel over all its blocks, ``size`` elements; not 0 where a target is invalid."""
    count = 1
    if size >= CUTOFF:
        own, most = library.threads(), threads.limit()
        count = most if own is None else min(own, most)
    return kernel.all(parameters, 0, blocks) if count == 1 else threads.run(kernel, parameters, blocks, count)


def space(work: Work, shape: tuple[int, ...], blocks: int) -> tuple[Any, int, int]:
    """For the value: items, or a partial sum of them for every block; and the address of each (0: not that)."""
    if work.divisor is None:
        items = work.library.empty(shape, work.dtype, work.arrays[0])
        return items, work.library.address(items), 0
    partial = np.empty(blocks)
    return partial, 0, address_of(partial)


def value_of(work: Work, left: Any) -> Any:
    """The value that a kernel left in its `space`."""
    divisor = work.divisor
    if divisor is None or left is None:
        return left
    total = _total(left)
    return total / divisor if divisor else math.nan


def _total(parts: Any) -> float:
    """The sum in one order, whoever computed the parts."""
    if parts.size < 100:  # exactly, and in less time than NumPy's error state takes
        try:
            return math.fsum(parts.tolist())
        except (OverflowError, ValueError):  # beyond the largest number on the way, or infinities of both signs
            pass
    with np.errstate(all="ignore"):
        return float(np.sum(parts))


def is_small(work: Work) -> bool:
    """Whether the work is a loss of few predictions and targets, nothing else, that stand side by side."""
    library, (x, t, *others) = work.library, work.arrays
    return (
        isinstance(work.divisor, float)
        and work.weights is work.keep is None
        and all(a is None for a in others)
        and t is not None
        and math.prod(x.shape) < CUTOFF
        and library.is_contiguous(x)
        and library.is_contiguous(t)
    )


def bound(
    work: Work, kernel: Kernel, pack: Callable[[int, int, int, int], bytes], blocks: int, *, gradient: bool
) -> Bound:
    """`Kernel.bound`. ``pack`` makes the parameters of the addresses of predictions, targets, sums and gradient."""
    address, empty_like, everything, like = work.library.address, work.library.xp.empty_like, kernel.all, work.on()

    def compute(x: Array, t: Array) -> tuple[float, Array | None]:
        g = empty_like(x) if gradient else None
        partial = np.empty(blocks)
        parameters = pack(address(x), address(t), address_of(partial), 0 if g is None else address(g))
        if everything(parameters, 0, blocks) and not like.poison:
            raise InvalidTarget
        return value_of(like, partial), g

    return compute


def operand(work: Work, x: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """``x`` broadcast to that shape, contiguous, in that dtype."""
    library = work.library
    if x.shape != shape:
        x = library.xp.broadcast_to(x, shape)
    if dtype is not None and x.dtype != dtype:
        x = library.xp.astype(x, dtype)
    return x if library.is_contiguous(x) else library.contiguous(x)
