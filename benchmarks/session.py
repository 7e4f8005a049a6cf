"""One run of the benchmarks, from the options to the files."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import machine, report
from benchmarks.contestants import CONTESTANTS, OURS, Contestant
from benchmarks.memory import LEAST, MemoryUnknown, peak
from benchmarks.options import Options
from benchmarks.results import Result, as_json
from benchmarks.timing import Tick, compete
from benchmarks.workloads import WORKLOADS, Workload, over_classes, over_rows

__all__ = ["Session", "run"]


def run(options: Options) -> int:
    """Measures, shows and writes. The exit status: 1 where an output of polyloss is wrong, 2 where nothing is to do."""
    workloads = [w for w in WORKLOADS if options.only.search(w.name)]
    if not workloads and options.plot is None:
        print(f"no workload matches; there are: {'; '.join(w.name for w in WORKLOADS)}", file=sys.stderr)
        return 2
    if options.plot:
        importlib.import_module("benchmarks.plot")  # what it needs is missed now, not after the measurements
    session = Session(options)
    session.measure(workloads)
    if options.markdown:
        print(f"{report.markdown(session.results, session.contestants)}\n\n{machine.sentence(session.header)}")
    if options.plot:
        importlib.import_module("benchmarks.plot").draw(json.loads(session.document()), options.plot)
    return session.status()


class Session:
    """What was measured so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.contestants: Sequence[Contestant] = [c for c in CONTESTANTS if c is OURS or options.peers.search(c.name)]
        self.header = machine.describe(options)
        self.results: list[Result] = []
        self.sweeps: dict[str, list[Result]] = {}  # by the letter that varies

    def measure(self, workloads: Sequence[Workload]) -> None:
        """The workloads, and the sizes to draw if there is to be a plot."""
        options = self.options
        panels = {} if options.plot is None else {"N": over_rows(options.quick), "K": over_classes(options.quick)}
        with report.Display(len(workloads) + sum(map(len, panels.values())), errors=options.markdown) as display:
            display.show(machine.sentence(self.header))
            for workload in workloads:
                self.results.append(self._time(workload, display.tick))
                self._weigh(self.results[-1], display.tick)
                display.show(report.table_of(self.results[-1]))
                self._done(display)
            if workloads:
                display.show(report.bar_table(self.results))
            for letter, sizes in panels.items():
                sweep = self.sweeps.setdefault(letter, [])
                for workload in sizes:
                    sweep.append(self._time(workload, display.tick, share=1 / 3))
                    self._done(display)

    def document(self) -> str:
        return as_json(self.header, self.results, self.sweeps)

    def status(self) -> int:
        everything = [*self.results, *(result for sweep in self.sweeps.values() for result in sweep)]
        ours = [m for result in everything for m in result.measurements if "polyloss" in m.contestant.packages]
        return int(any(measurement.wrong for measurement in ours))

    def _time(self, workload: Workload, tick: Tick, share: float = 1.0) -> Result:
        """With that share of the seconds of a workload."""
        options = replace(self.options, seconds=share * self.options.seconds)
        return Result(workload, compete(workload, self.contestants, options, tick))

    def _weigh(self, result: Result, tick: Tick) -> None:
        """The peak memory of all who ran, in other processes."""
        for found in result.measurements:
            if not found.reason:
                try:
                    found.memory = self._memory(found.contestant, result.workload, tick)
                except MemoryUnknown as reason:
                    found.memory_unknown = str(reason)

    def _memory(self, contestant: Contestant, workload: Workload, tick: Tick) -> int:
        if not self.options.memory:
            raise MemoryUnknown("not asked for")
        if workload.unit < LEAST:
            raise MemoryUnknown("too small to be measured")
        tick(f"{workload.name}: {contestant.name}, memory")
        return peak(contestant, workload, self.options.threads)

    def _done(self, display: report.Display) -> None:
        """Keeps what there is: a run takes long, and may be interrupted."""
        display.advance()
        if self.options.json:
            self.options.json.write_text(self.document(), encoding="utf-8")
