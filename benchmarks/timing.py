"""Every contestant of a workload, timed in turn.

A turn calls one contestant, a fast one many times, and the time is that of one call, with the allocation of its outputs
and, as in any loop, the release of the last ones. A round gives each contestant one turn. Rounds begin with another one
each time and every other round runs backwards, so that a slow minute or a busy predecessor hits all of them alike.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.contestants import Contestant, NotRun, Run
from benchmarks.options import Options
from benchmarks.reference import Reference, reference
from benchmarks.workloads import Workload

__all__ = ["Measurement", "compete"]

LEAST_ROUNDS = 5
MOST_ROUNDS = 300
MOST_CALLS = 10**5

Tick = Callable[[str], None]
"""Told what comes next, between measurements."""


@dataclass
class Measurement:
    """What one contestant did on one workload."""

    contestant: Contestant
    reason: str = ""  # why it was not run
    wrong: str = ""  # what is wrong with its outputs
    calls: int = 1  # in a turn
    seconds: list[float] = field(default_factory=list)  # a call, by round
    memory: int | None = None  # peak bytes beside the inputs
    memory_unknown: str = ""  # why there is none

    @property
    def median(self) -> float:
        return float(np.median(self.seconds)) if self.seconds else math.nan

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.seconds, (0.25, 0.75)) if self.seconds else (math.nan, math.nan)
        return float(low), float(high)


def compete(workload: Workload, contestants: Sequence[Contestant], options: Options, tick: Tick) -> list[Measurement]:
    """Measures the contestants, in the order given."""
    x, y = workload.inputs()
    right = reference(workload, x, y)
    measured = [Measurement(contestant) for contestant in contestants]
    runs: list[tuple[Measurement, Run]] = []
    for found in measured:
        tick(f"{workload.name}: {found.contestant.name}, first call")
        try:
            with _quiet():
                run = found.contestant.prepare(workload, x, y, options.threads)
                _warm_up(found, run, right, options.turn)
        except NotRun as reason:
            found.reason = str(reason)
        except Exception as error:  # a peer that is broken here must not stop the others
            found.reason = f"not run: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            runs.append((found, run))
    if runs:
        _rounds(runs, options, lambda step: tick(f"{workload.name}: {step}"))
    return measured


def _warm_up(found: Measurement, run: Run, right: Reference, turn: float) -> None:
    """Compiles, compares the outputs, and finds how many calls make a turn."""
    result = run()
    if not found.contestant.limit:
        found.wrong = right.disagreement(result)
    del result
    while found.calls < MOST_CALLS:
        seconds = found.calls * _seconds_a_call(run, found.calls)
        if seconds >= turn:
            break
        found.calls = min(MOST_CALLS, math.ceil(found.calls * min(10.0, 1.2 * turn / seconds)))


def _rounds(runs: Sequence[tuple[Measurement, Run]], options: Options, tick: Tick) -> None:
    start, number = time.perf_counter(), 0
    with _without_collection():
        while number < LEAST_ROUNDS or (number < MOST_ROUNDS and time.perf_counter() - start < options.seconds):
            tick(f"round {number + 1}")
            first = number % len(runs)
            order = [*runs[first:], *runs[:first]]
            for found, run in order if number % 2 == 0 else reversed(order):
                time.sleep(options.pause)  # until the threads of the one before have gone to sleep
                if found.calls > 1:
                    run()  # the caches and the own threads
                found.seconds.append(_seconds_a_call(run, found.calls))
            number += 1


def _seconds_a_call(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        run()
    return (time.perf_counter() - start) / calls


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of a peer about itself, which would break the display."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
