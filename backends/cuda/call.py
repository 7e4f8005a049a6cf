"""What the calls of all kernels have in common: how arrays come to a kernel, and how its value is made of the sums."""

from __future__ import annotations

import functools
from typing import Any

from polyloss.backends import Array, Library, Unavailable, Work
from polyloss.backends.cuda import compiled
from polyloss.backends.cuda.fields import SUMS_BLOCK

__all__ = ["FLOATS", "WHOLE", "WIDE", "Factors", "Value", "cast", "operand", "room"]

WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
"""The floats that may lie in memory, and what they become in registers, in results and in row statistics."""

FLOATS = frozenset(WIDE)
WHOLE = frozenset(["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])


def cast(library: Library, x: Array, dtype: Any) -> Array:
    """``x`` in that dtype."""
    if x.dtype == dtype:
        return x
    with library.scope(x):
        return library.xp.astype(x, dtype)


def operand(work: Work, x: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """``x`` broadcast to that shape, contiguous, in that dtype."""
    library = work.library
    if x.shape != shape:
        x = library.xp.broadcast_to(x, shape)
    if dtype is not None:
        x = cast(library, x, dtype)
    x = x if library.is_contiguous(x) else library.contiguous(x)
    if library.stored(x) is None:
        raise Unavailable(f"the memory of a {type(x).__name__} cannot be reached")
    return x


class Factors:
    """The scale of the gradient and the divisor, each as a number and as the address of a 0-d array (0: none)."""

    __slots__ = ("alive", "divide_by", "divisor_at", "scale_at", "scale_by")

    def __init__(self, work: Work) -> None:
        self.alive: list[Array] = []
        self.scale_by, self.scale_at = self._split(work, work.scale)
        self.divide_by, self.divisor_at = self._split(work, 1.0 if work.divisor is None else work.divisor)

    def _split(self, work: Work, x: Any) -> tuple[float, int]:
        if isinstance(x, (int, float)):
            return float(x), 0
        x = operand(work, x, (), work.dtype)
        self.alive.append(x)
        return 1.0, work.library.address(x)


class Value:
    """Where a kernel leaves its value: items, or the sums of its blocks, or of a single block the value itself."""

    __slots__ = ("array", "blocks", "items_at", "parts", "queue", "result_at", "summing", "sums_at")

    def __init__(self, work: Work, queue: tuple[int, int], shape: tuple[int, ...], blocks: int, wanted: bool) -> None:
        library, like = work.library, work.arrays[0]
        self.queue, self.blocks = queue, blocks
        self.items_at = self.sums_at = self.result_at = 0
        self.array = self.parts = None
        if not wanted:
            return
        at = library.address
        if work.divisor is None:
            self.array = library.empty(shape, work.dtype, like)
            self.items_at = at(self.array)
            return
        self.array = library.empty((), work.dtype, like)
        if blocks == 1:
            self.result_at = at(self.array)
        else:
            self.parts = library.empty((blocks,), library.xp.float64, like)
            self.sums_at = at(self.parts)
            self.summing = compiled.kernel("sums", WIDE[work.stored[0]])
            self.summing.on(queue[0])  # before any other kernel runs, which may take the place of the predictions

    def finished(self, work: Work, given: Factors) -> Any:
        """The array with the value, once all that was launched is done."""
        if self.parts is not None:
            at, divisor = work.library.address, (given.divisor_at, self.blocks, given.divide_by)
            self.summing(self.queue, 1, SUMS_BLOCK.pack(at(self.parts), 0, at(self.array), *divisor))
        return self.array


@functools.cache
def room(device: int, static: int) -> tuple[int, int]:
    """Bytes of dynamic shared memory that one block may have, and each of two on a multiprocessor.

    ``static``: what it has beside. The system takes a KiB for each block.
    """
    if compiled.SIMULATED:
        return 64 << 10, (31 << 10) - static
    from polyloss.backends.cuda import driver

    block, multiprocessor = driver.shared_memory(device)
    return block - driver.STATIC, min(block, multiprocessor // 2 - 1024) - static
