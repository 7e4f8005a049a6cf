"""What is shown: progress and a table for each workload in the terminal, and the Markdown that README quotes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.contestants import OURS, Contestant
from benchmarks.results import NOT_MEASURED, Result, verdicts
from benchmarks.timing import Measurement

__all__ = ["Display", "bar_table", "markdown", "table_of"]

NONE = "-"
STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
WIDTH = 130  # of the output, where no terminal says how wide it is


class Display:
    """The terminal. It is redrawn between measurements only, since a thread that draws would take a core from them."""

    def __init__(self, workloads: int, errors: bool) -> None:
        self.console = Console(stderr=errors)
        if not self.console.is_terminal:
            self.console = Console(stderr=errors, width=WIDTH)
        columns = SpinnerColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn()
        self.progress = Progress(
            *columns,
            TextColumn("{task.description}", markup=False),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self.task = self.progress.add_task("", total=workloads)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def tick(self, what: str) -> None:
        if self.console.is_terminal:
            self.progress.update(self.task, description=what, refresh=True)

    def advance(self) -> None:
        self.progress.advance(self.task)

    def show(self, table: Table | str) -> None:
        self.console.print(table, markup=False)


def table_of(result: Result) -> Table:
    """A workload: a row for each contestant."""
    table = Table(title=f"\n{result.workload.name}", **STYLE)
    table.add_column("contestant", no_wrap=True)
    for heading in ("median ms", "quartiles ms", "time / ours", "GB/s", "of the copy", "peak memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outputs", overflow="fold")
    for found in result.measurements:
        style = "bold" if found.contestant is OURS else "dim" if found.reason else None
        table.add_row(*cells(result, found), style=style)
    return table


def cells(result: Result, found: Measurement) -> Iterator[str]:
    yield found.contestant.name
    if found.reason:
        yield from [NONE] * 6
        yield escape(found.reason)
        return
    low, high = found.quartiles
    yield milliseconds(found.median)
    yield f"{milliseconds(low)} .. {milliseconds(high)}"
    yield figure(result.ratio(found.contestant.name))
    yield figure(1e-9 * result.bandwidth(found))
    yield percent(result.share_of_copy(found))
    yield figure(result.memory(found))
    yield "a limit" if found.contestant.limit else escape(f"WRONG: {found.wrong}") if found.wrong else "agree"


def bar_table(results: Sequence[Result]) -> Table:
    """The goals that were measured."""
    table = Table(title="\nthe bar", **STYLE)
    headings, *rows = _bar_rows(results)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i > 2 else "left")
    for row in rows:
        if row[-1] != NOT_MEASURED:
            table.add_row(*row)
    return table


def markdown(results: Sequence[Result], contestants: Sequence[Contestant]) -> str:
    """Three tables: times, peak memory, and the bar."""
    peers = [c for c in contestants if c is not OURS]
    times = [["workload", f"{OURS.name}, ms", *(c.name for c in peers)]]
    memory = [["workload", OURS.name, *(c.name for c in peers)]]
    for result in results:
        ours = result.of(OURS.name)
        assert ours is not None
        times.append([result.workload.name, _ours(ours), *(_ratio(result, c) for c in peers)])
        memory.append([result.workload.name, *(_memory(result, c) for c in contestants)])
    parts = ["Time of the contestant / ours (1: as fast; 3: ours is three times as fast):", "", _grid(times)]
    if any(found.memory is not None for result in results for found in result.measurements):
        parts += ["", "Peak memory beside the inputs, in sizes of the logits (for info_nce, of the similarities):", ""]
        parts.append(_grid(memory))
    parts += ["", "The bar:", "", _grid(list(_bar_rows(results)))]
    reasons = dict.fromkeys(_reasons(results))
    return "\n".join(parts + (["", *reasons] if reasons else []))


def _bar_rows(results: Sequence[Result]) -> Iterator[list[str]]:
    yield ["workload", "ours", "peer", "time / ours at least", "measured", "holds"]
    for verdict in verdicts(results):
        goal = verdict.goal
        yield [goal.workload, goal.ours, goal.peer, f"{goal.ratio:g}", figure(verdict.ratio), verdict.holds]


def _grid(rows: Sequence[Sequence[str]]) -> str:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def _ours(found: Measurement) -> str:
    time = milliseconds(found.median)
    return f"WRONG ({time})" if found.wrong else time


def _ratio(result: Result, contestant: Contestant) -> str:
    found = result.of(contestant.name)
    if found is None or found.reason:
        return NONE
    ratio = figure(result.ratio(contestant.name))
    return f"WRONG ({ratio})" if found.wrong else ratio


def _memory(result: Result, contestant: Contestant) -> str:
    found = result.of(contestant.name)
    return NONE if found is None else figure(result.memory(found))


def _reasons(results: Sequence[Result]) -> Iterator[str]:
    """Who did not run, and why: a peer that is not installed is said to be so."""
    for result in results:
        for found in result.measurements:
            if found.reason and found.reason != "not for this loss":
                where = "" if "not installed" in found.reason else f" ({result.workload.name})"
                yield f"{found.contestant.name}{where}: {found.reason}."


def milliseconds(seconds: float) -> str:
    return figure(1e3 * seconds)


def figure(number: float) -> str:
    """Three digits, without an exponent."""
    if not math.isfinite(number):
        return NONE
    if number == 0:
        return "0"
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def percent(part: float) -> str:
    return f"{100 * part:.0f} %" if math.isfinite(part) else NONE
