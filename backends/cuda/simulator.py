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
import contextvars
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import greenlet
import numpy as np

__all__ = ["Fault", "allow", "launch"]

WARP = 32

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


class Fault(Exception):
    """A kernel did what the hardware would not forgive, or would do at random."""


def device(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def compile_ptx(*args: Any) -> str:
    raise NotImplementedError("the simulator compiles nothing")


def int32(x: Any) -> int:
    if not -(2**31) <= x < 2**31:
        raise Fault(f"{x} does not fit into 32 bits")
    return int(x)


# Lanes.


class _Lane(greenlet.greenlet):  # type: ignore[misc]
    def __init__(self, run: Callable[[], None], hub: Any, block: _Block, index: int) -> None:
        super().__init__(run, hub)
        self.gr_context = contextvars.copy_context()  # NumPy's error state is there
        self.block, self.index = block, index
        self.arrays = 0  # how many shared arrays it has named
        self.waits: Any = None  # for what: a value and a distance, or a distance of 0 for the warp alone
        self.epoch = 0  # barriers of the warp that were passed


class _Block:
    def __init__(self, index: int, size: int, grid: int, dynamic: int) -> None:
        self.index, self.size, self.grid, self.dynamic = index, size, grid, dynamic
        self.shared: list[_Shared] = []
        self.epoch = 0  # barriers that were passed

    def run(self, body: Callable[[], None]) -> None:
        hub = greenlet.getcurrent()
        lanes = [_Lane(body, hub, self, i) for i in range(self.size)]
        # Not in the order of their numbers, so that nothing seems to work because lane 0 always comes first.
        runnable = [(lane, ()) for lane in lanes[::-1]]
        while runnable:
            for lane, news in runnable:
                lane.switch(*news)
            runnable = self._released([lane for lane in lanes if not lane.dead])

    def _released(self, alive: list[_Lane]) -> list[tuple[_Lane, tuple[Any, ...]]]:
        """The lanes that need not wait any longer, and what each is told."""
        found: list[tuple[_Lane, tuple[Any, ...]]] = []
        for first in range(0, self.size, WARP):
            warp = [lane for lane in alive if first <= lane.index < first + WARP]
            if all(lane.waits is not None for lane in warp) and warp:
                found += _exchanged(warp)
        if not found and alive:
            if any(lane.waits is not None for lane in alive) or len(alive) < self.size:
                raise Fault("a barrier that not every lane of the block comes to")
            self.epoch += 1
            found = [(lane, ()) for lane in alive]
        return found


def _exchanged(warp: list[_Lane]) -> list[tuple[_Lane, tuple[Any, ...]]]:
    distance = warp[0].waits[1]
    if len(warp) < WARP or any(lane.waits[1] != distance for lane in warp):
        raise Fault("a shuffle that not every lane of the warp comes to")
    values = [lane.waits[0] for lane in warp]
    kinds = {float if isinstance(value, float) else type(value) for value in values}  # numpy.float64 is a float
    if len(kinds) > 1:
        raise Fault(f"a shuffle of several types: {sorted(kind.__name__ for kind in kinds)}")
    for lane in warp:
        lane.waits = None
        lane.epoch += distance == 0
    return [(lane, (values[i ^ distance],)) for i, lane in enumerate(warp)]


def _lane() -> _Lane:
    lane = greenlet.getcurrent()
    assert isinstance(lane, _Lane)
    return lane


def thread() -> int:
    return _lane().index


def threads() -> int:
    return _lane().block.size


def block() -> int:
    return _lane().block.index


def blocks() -> int:
    return _lane().block.grid


def barrier() -> None:
    _lane().parent.switch()


def warp_barrier() -> None:
    shuffle(None, 0)


def shuffle(x: Any, distance: int) -> Any:
    lane = _lane()
    lane.waits = x, distance
    return lane.parent.switch()


# Memory of a block, and registers.


def local_array(count: int, dtype: Any) -> Any:
    return [dtype(0)] * count


class _Shared:
    """A shared array. Each element knows who touched it since the last barrier."""

    def __init__(self, count: int, dtype: Any) -> None:
        self.dtype = dtype
        self.values: list[Any] = [None] * count
        self.traces = _Traces("shared memory")

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
    lane = _lane()
    block = lane.block
    if lane.arrays == len(block.shared):
        size = np.dtype(dtype).itemsize
        block.shared.append(_Shared(count or block.dynamic // size, dtype))
    lane.arrays += 1
    return block.shared[lane.arrays - 1]


cuda = SimpleNamespace(local=SimpleNamespace(array=local_array), shared=SimpleNamespace(array=shared_array))
"""What the kernels call by the names that Numba knows."""


class _Touch(NamedTuple):
    """Who touched an element, and after which barriers; -1 for several."""

    block: int
    epoch: int
    lane: int
    warp: int
    warp_epoch: int


def _touch() -> _Touch:
    lane = _lane()
    return _Touch(lane.block.index, lane.block.epoch, lane.index, lane.index // WARP, lane.epoch)


class _Traces:
    """Who read and who wrote, where, and after which barrier."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.written: dict[int, _Touch] = {}
        self.seen: dict[int, _Touch] = {}

    def _compare(self, before: _Touch | None, now: _Touch, what: str) -> None:
        if before is None or (before.block, before.lane) == (now.block, now.lane):
            return
        if before.block == now.block and (
            before.epoch != now.epoch or (before.warp == now.warp and before.warp_epoch != now.warp_epoch)
        ):
            return
        raise Fault(f"{self.where}: a race, {what}: {before} and {now}")

    def read(self, i: int) -> None:
        now = _touch()
        self._compare(self.written.get(i), now, "a read after a write")
        before = self.seen.get(i)
        if before is None or before[:2] != now[:2] or before == now:
            self.seen[i] = now
        else:  # several readers: whoever writes here next races with one of them at least
            same = before.warp == now.warp and before.warp_epoch == now.warp_epoch
            self.seen[i] = now._replace(lane=-1) if same else now._replace(lane=-1, warp=-1)

    def write(self, i: int) -> None:
        now = _touch()
        self._compare(self.written.get(i), now, "two writes")
        self._compare(self.seen.get(i), now, "a write after a read")
        self.written[i] = now


# Memory by address.


class _Memory:
    """The arrays that kernels may touch, by their first address."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ranges: dict[int, tuple[int, bool, Any]] = {}
        self.traces = _Traces("memory")

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
    _memory.traces = _Traces("memory")
    with np.errstate(all="ignore"):
        for index in range(grid):
            _Block(index, size, grid, dynamic).run(lambda: kernel(*arguments))
