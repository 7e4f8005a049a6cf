"""How long a call takes on the device, and until it returns to Python.

Contestants take turns. A turn is as many calls as last about 20 ms, over several sets of inputs which together exceed
the second-level cache, between two events on the contestant's stream. JAX has no events: there the clock of the host
runs until the last result is ready.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.contestants import Contestant
from benchmarks.gpu.workloads import Workload

__all__ = ["Measurement", "measure"]

CACHE = 256 << 20
"""Bytes that several sets of inputs hold together, at least: more than any second-level cache."""

TURN = 0.02
"""Seconds."""


@dataclass
class Measurement:
    """What was measured of a contestant."""

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)  # of a call on the device, one for each turn
    returns: float = float("nan")  # seconds until a call returns, while the device has nothing else to do
    reason: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")


def _events(library: str) -> tuple[Callable[[], Any], Callable[[Any, Any], float], Callable[[], None]]:
    """What records a moment, what tells the seconds between two of them, and what waits for the device."""
    if library == "torch":
        import torch

        def moment() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        return moment, lambda a, b: a.elapsed_time(b) / 1e3, torch.cuda.synchronize
    if library == "cupy":
        import cupy

        def moment() -> Any:
            event = cupy.cuda.Event()
            event.record()
            return event

        wait = cupy.cuda.Device().synchronize
        return moment, lambda a, b: float(cupy.cuda.get_elapsed_time(a, b)) / 1e3, wait
    return time.perf_counter, lambda a, b: float(b - a), lambda: None


class _Turns:
    """A contestant with its inputs in memory."""

    def __init__(self, workload: Workload, contestant: Contestant, dry: bool) -> None:
        self.call = contestant.call
        self.moment, self.between, self.wait = _events("" if dry else contestant.library)
        count = 1 if dry else max(2, min(64, -(-CACHE // max(1, workload.moved))))
        self.inputs = [contestant.make(seed) for seed in range(count)]
        self.call(*self.inputs[0])
        self.wait()
        self.order = itertools.cycle(self.inputs)
        self.calls = 1 if dry else max(1, int(TURN / max(1e-7, self.turn(3))))

    def turn(self, calls: int) -> float:
        start = self.moment()
        for inputs in itertools.islice(self.order, calls):
            self.call(*inputs)
        end = self.moment()
        self.wait()
        return self.between(start, end) / calls

    def returns(self) -> float:
        """The median of many, each with an idle device: so the queue is never full."""
        found = []
        for inputs in itertools.islice(self.order, 50):
            start = time.perf_counter()
            self.call(*inputs)
            found.append(time.perf_counter() - start)
            self.wait()
        return statistics.median(found)


def measure(workload: Workload, contestants: Iterable[Contestant], seconds: float, dry: bool) -> list[Measurement]:
    """By turns, in an order that rotates; at least three rounds, and as many as the seconds allow."""
    measurements, turns = [], {}
    for contestant in contestants:
        found = Measurement(contestant, reason=contestant.reason)
        measurements.append(found)
        if not found.reason:
            try:
                turns[contestant.name] = _Turns(workload, contestant, dry)
            except Exception as error:
                reason = str(error).splitlines()[0][:200] if str(error) else ""
                found.reason = f"NOT RUN: {type(error).__name__}: {reason}"
    running = [found for found in measurements if not found.reason]
    start, rounds = time.perf_counter(), 0
    while running and (rounds < (1 if dry else 3) or (time.perf_counter() - start < seconds and not dry)):
        shift = rounds % len(running)
        for found in running[shift:] + running[:shift]:
            own = turns[found.contestant.name]
            found.seconds.append(own.turn(own.calls))
        rounds += 1
    if workload.microseconds == workload.microseconds and not dry:
        for found in running:
            found.returns = turns[found.contestant.name].returns()
    return measurements
