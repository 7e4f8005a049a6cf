"""The lanes of the simulator: they run in turn, meet at barriers and shuffles, and leave traces of what they touch."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple

import greenlet

__all__ = ["WARP", "Block", "Fault", "Traces", "barrier", "here", "shuffle", "warp_barrier"]

WARP = 32


class Fault(Exception):
    """A kernel did what the hardware would not forgive, or would do at random."""


class _Lane(greenlet.greenlet):  # type: ignore[misc]
    def __init__(self, run: Callable[[], None], hub: Any, block: Block, index: int) -> None:
        super().__init__(run, hub)
        self.gr_context = contextvars.copy_context()  # NumPy's error state is there
        self.block, self.index = block, index
        self.arrays = 0  # how many shared arrays it has named
        self.waits: Any = None  # for what: a value and a distance, or a distance of 0 for the warp alone
        self.epoch = 0  # barriers of the warp that were passed


class Block:
    """Lanes that can wait for each other."""

    def __init__(self, index: int, size: int, grid: int, dynamic: int) -> None:
        self.index, self.size, self.grid, self.dynamic = index, size, grid, dynamic
        self.shared: list[Any] = []
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
        warps: dict[int, list[_Lane]] = {}
        for lane in alive:
            warps.setdefault(lane.index // WARP, []).append(lane)
        for warp in warps.values():
            if all(lane.waits is not None for lane in warp):
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


def here() -> _Lane:
    lane = greenlet.getcurrent()
    assert isinstance(lane, _Lane)
    return lane


def thread() -> int:
    return here().index


def threads() -> int:
    return here().block.size


def block() -> int:
    return here().block.index


def blocks() -> int:
    return here().block.grid


def barrier() -> None:
    here().parent.switch()


def warp_barrier() -> None:
    shuffle(None, 0)


def shuffle(x: Any, distance: int) -> Any:
    lane = here()
    lane.waits = x, distance
    return lane.parent.switch()


class _Touch(NamedTuple):
    """Who touched an element, and after which barriers; -1 for several."""

    block: int
    epoch: int
    lane: int
    warp: int
    warp_epoch: int


def _touch() -> _Touch:
    lane = here()
    return _Touch(lane.block.index, lane.block.epoch, lane.index, lane.index // WARP, lane.epoch)


class Traces:
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
