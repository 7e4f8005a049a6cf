"""The device on the host, for tests without a GPU: `NUMBA_ENABLE_CUDASIM=1`.

Numba's own simulator has no shuffles, and takes a thread of the operating system for each lane. Here a lane is a
greenlet: it runs until it comes to a barrier or a shuffle, and goes on when all who must have come are there. So a
launch is quick and always the same, and it is checked on the way:

- memory by address is inside an array that was given to `allow`, and is not written where that array is read-only;
- no lane reads or writes what another one wrote (nor writes what another one read) with no barrier between, in shared
  memory and by address (blocks have no barrier between them at all);
- every lane of a warp comes to the same shuffle, and every lane of a block to the same barrier.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from polyloss.backends.cuda.lanes import (
    WARP,
    Block,
    Fault,
    Traces,
    barrier,
    block,
    blocks,
    here,
    shuffle,
    thread,
    threads,
    warp_barrier,
)

__all__ = ["Fault", "allow", "barrier", "block", "blocks", "launch", "shuffle", "thread", "threads", "warp_barrier"]

SIZES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}

types = SimpleNamespace(
    float32=np.float32, float64=np.float64, uint32=np.uint32, uint64=np.uint64, int64=np.int64, int32=np.int32
)


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def compile_ptx(*args: Any) -> str:
    raise NotImplementedError("the simulator compiles nothing")


def int32(x: Any) -> int:
    if not -(2**31) <= x < 2**31:
        raise Fault(f"{x} does not fit into 32 bits")
    return int(x)


def uint32(x: Any) -> int:
    if not 0 <= x < 2**32:
        raise Fault(f"{x} does not fit into 32 bits without a sign")
    return int(x)


# Memory of a block, and registers.


def local_array(count: int, dtype: Any) -> Any:
    return [dtype(0)] * count


class _Shared:
    """A shared array. Each element knows who touched it since the last barrier."""

    def __init__(self, count: int, dtype: Any) -> None:
        self.dtype = dtype
        self.values: list[Any] = [None] * count
        self.traces = Traces("shared memory")

    def __getitem__(self, i: int) -> Any:
        self.traces.read(i)
        if self.values[i] is None:
            raise Fault(f"shared memory: element {i} was never written")
        return self.values[i]

    def __setitem__(self, i: int, x: Any) -> None:
        if i < 0:
            raise IndexError(i)
        self.traces.write(i)
        self.values[i] = self.dtype(x)


def shared_array(count: int, dtype: Any) -> _Shared:
    """The array that the other lanes get in the same place of the kernel; all the rest of the memory for 0."""
    lane = here()
    block = lane.block
    if lane.arrays == len(block.shared):
        size = np.dtype(dtype).itemsize
        block.shared.append(_Shared(count or block.dynamic // size, dtype))
    lane.arrays += 1
    found: _Shared = block.shared[lane.arrays - 1]
    return found


cuda = SimpleNamespace(local=SimpleNamespace(array=local_array), shared=SimpleNamespace(array=shared_array))
"""What the kernels call by the names that Numba knows."""


# Memory by address.


class _Memory:
    """The arrays that kernels may touch, by their first address."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ranges: dict[int, tuple[int, bool, Any]] = {}
        self.traces = Traces("memory")

    def allow(self, array: np.ndarray, writable: bool) -> None:
        low, high = np.lib.array_utils.byte_bounds(array)
        if low not in self.ranges:
            bisect.insort(self.starts, low)
        before = self.ranges.get(low, (0, False, None))
        self.ranges[low] = max(high, before[0]), writable or before[1], (array, before[2])

    def check(self, address: int, size: int, write: bool) -> None:
        if address % size:
            raise Fault(f"memory: {size} bytes at {address:#x} are not aligned")
        at = bisect.bisect_right(self.starts, address) - 1
        while at >= 0:
            start = self.starts[at]
            stop, writable, _ = self.ranges[start]
            if address + size <= stop:
                if write and not writable:
                    raise Fault("memory: a write to an input")
                return
            at -= 1
        raise Fault(f"memory: {size} bytes outside of every array")


_memory = _Memory()


@contextmanager
def allow() -> Iterator[Callable[[np.ndarray, bool], None]]:
    """In it, kernels may touch the arrays that are given to what it yields, with whether they may write."""
    global _memory
    before, _memory = _memory, _Memory()
    try:
        yield _memory.allow
    finally:
        _memory = before


_CTYPES: dict[str, Any] = {
    "bool": ctypes.c_uint8,
    "int8": ctypes.c_int8,
    "uint8": ctypes.c_uint8,
    "int16": ctypes.c_int16,
    "uint16": ctypes.c_uint16,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float16": ctypes.c_uint16,
    "bfloat16": ctypes.c_uint16,
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
}


def _at(dtype: str, address: int, write: bool) -> Any:
    size = SIZES[dtype]
    address = int(address)
    _memory.check(address, size, write)
    (_memory.traces.write if write else _memory.traces.read)(address)
    return _CTYPES[dtype].from_address(address)


def load(dtype: str, wide: str) -> Callable[[int, int], Any]:
    size, number = SIZES[dtype], getattr(types, wide)

    def read(address: int, index: int) -> Any:
        value = _at(dtype, address + index * size, False).value
        if dtype in ("float16", "bfloat16"):
            return number(_widened(dtype, value))
        return int(value) if wide == "int64" else number(value)

    return read


def store(dtype: str, wide: str) -> Callable[[int, int, Any], None]:
    size, number = SIZES[dtype], getattr(types, wide)

    def write(address: int, index: int, x: Any) -> None:
        if type(x) not in (number, float, int):
            raise Fault(f"a {type(x).__name__} is stored where a {wide} is expected")
        x = number(x)
        _at(dtype, address + index * size, True).value = _narrowed(dtype, x) if dtype in ("float16", "bfloat16") else x

    return write


def load4(address: int) -> tuple[Any, ...]:
    _aligned(address)
    return tuple(np.uint32(_at("uint32", address + 4 * k, False).value) for k in range(4))


def load2(address: int) -> tuple[Any, ...]:
    _aligned(address)
    return tuple(np.uint64(_at("uint64", address + 8 * k, False).value) for k in range(2))


def store4(address: int, *words: Any) -> None:
    _aligned(address)
    for k, word in enumerate(words):
        _at("uint32", address + 4 * k, True).value = int(word)


def store2(address: int, *words: Any) -> None:
    _aligned(address)
    for k, word in enumerate(words):
        _at("uint64", address + 8 * k, True).value = int(word)


def _aligned(address: int) -> None:
    if address % 16:
        raise Fault(f"a vector at {address:#x} is not aligned")


# Words as numbers.


def as_float(word: Any) -> Any:
    return np.uint32(word).view(np.float32)


def as_int(x: Any) -> Any:
    return np.float32(x).view(np.uint32)


def as_double(word: Any) -> Any:
    return np.uint64(word).view(np.float64)


def as_long(x: Any) -> Any:
    return np.float64(x).view(np.uint64)


def _widened(dtype: str, bits: int) -> Any:
    if dtype == "float16":
        return np.float32(np.uint16(bits).view(np.float16))
    return np.uint32(bits << 16).view(np.float32)


def _narrowed(dtype: str, x: Any) -> int:
    """The bits of a number rounded to the nearest 16-bit one, ties to even."""
    if dtype == "float16":
        return int(np.float16(x).view(np.uint16))
    if x != x:
        return 0x7FFF
    bits = int(np.float32(x).view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def halves(dtype: str) -> tuple[Callable[..., Any], ...]:
    return (
        lambda word: _widened(dtype, int(word) & 0xFFFF),
        lambda word: _widened(dtype, int(word) >> 16),
        lambda lower, upper: np.uint32(_narrowed(dtype, lower) | _narrowed(dtype, upper) << 16),
    )


# Arithmetic.


def exp(x: Any) -> Any:
    return np.exp(x)


def log1p(x: Any) -> Any:
    return np.log1p(x)


def opaque(x: Any) -> Any:
    return x


def maximum(wide: str) -> Callable[[Any, Any], Any]:
    return np.fmax


def ratio(wide: str) -> Callable[[Any, Any], Any]:
    return lambda a, b: a / b


def launch(kernel: Callable[..., None], grid: int, size: int, dynamic: int, arguments: Sequence[Any]) -> None:
    """Runs a kernel, one block after the other."""
    if not (1 <= size <= 1024 and size % WARP == 0 and 1 <= grid < 2**31):
        raise Fault(f"a launch of {grid} blocks of {size}")
    _memory.traces = Traces("memory")
    with np.errstate(all="ignore"):
        for index in range(grid):
            Block(index, size, grid, dynamic).run(lambda: kernel(*arguments))
