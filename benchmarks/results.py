"""What follows from the measurements: ratios, bandwidths, whether the bar holds, and the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.contestants import OURS
from benchmarks.timing import Measurement
from benchmarks.workloads import BAR, Goal, Workload

__all__ = ["NOT_MEASURED", "Result", "Verdict", "as_json", "verdicts"]

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Result:
    """A workload, measured."""

    workload: Workload
    measurements: Sequence[Measurement]

    def of(self, name: str) -> Measurement | None:
        return next((m for m in self.measurements if m.contestant.name == name), None)

    def ratio(self, name: str, ours: str = OURS.name) -> float:
        """Its time over ours, or NaN."""
        own, theirs = self.of(ours), self.of(name)
        return math.nan if own is None or theirs is None else theirs.median / own.median

    def bandwidth(self, measurement: Measurement) -> float:
        """Bytes a second: what the operation must move, or the copy moves, by the time that it took."""
        copies = measurement.contestant.name == "copy"
        return (2 * self.workload.unit if copies else self.workload.moved) / measurement.median

    def share_of_copy(self, measurement: Measurement) -> float:
        """The bandwidth as a part of the copy's, or NaN."""
        copy = self.of("copy")
        return math.nan if copy is None else self.bandwidth(measurement) / self.bandwidth(copy)

    def memory(self, measurement: Measurement) -> float:
        """Peak memory beside the inputs, in sizes of the logits, or NaN."""
        return math.nan if measurement.memory is None else measurement.memory / self.workload.unit


@dataclass(frozen=True)
class Verdict:
    """A goal and what was reached: NaN where it was not measured."""

    goal: Goal
    ratio: float

    @property
    def holds(self) -> str:
        return NOT_MEASURED if math.isnan(self.ratio) else "yes" if self.ratio >= self.goal.ratio else "no"


def verdicts(results: Sequence[Result]) -> Iterator[Verdict]:
    """The bar, goal by goal."""
    by_name = {result.workload.name: result for result in results}
    for goal in BAR:
        result = by_name.get(goal.workload)
        yield Verdict(goal, result.ratio(goal.peer, goal.ours) if result else math.nan)


def as_json(header: dict[str, object], results: Sequence[Result], sweeps: dict[str, list[Result]]) -> str:
    """Everything. Figures that were not measured are null."""
    document = {
        "header": header,
        "workloads": [_result(result) for result in results],
        "bar": [
            {**vars(verdict.goal), "measured": _number(verdict.ratio), "holds": verdict.holds}
            for verdict in verdicts(results)
        ],
        "plot": {name: [_result(result) for result in sweep] for name, sweep in sweeps.items()},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _result(result: Result) -> dict[str, object]:
    workload = result.workload
    return {
        "name": workload.name,
        **vars(workload),
        "bytes to move": workload.moved,
        "contestants": [_measurement(result, found) for found in result.measurements],
    }


def _measurement(result: Result, found: Measurement) -> dict[str, object]:
    low, high = found.quartiles
    return {
        "name": found.contestant.name,
        "limit": found.contestant.limit,
        "not run": found.reason,
        "wrong": found.wrong,
        "median ms": _number(1e3 * found.median),
        "quartiles ms": [_number(1e3 * low), _number(1e3 * high)],
        "rounds": len(found.seconds),
        "calls a round": found.calls,
        "time over ours": _number(result.ratio(found.contestant.name)),
        "GB/s": _number(1e-9 * result.bandwidth(found)),
        "share of the copy's GB/s": _number(result.share_of_copy(found)),
        "peak memory in sizes of the logits": _number(result.memory(found)),
        "peak memory unknown because": found.memory_unknown,
    }


def _number(number: float) -> float | None:
    return number if math.isfinite(number) else None
