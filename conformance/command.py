"""``polyloss conformance``: the arguments, the progress, and what is printed of a report."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from polyloss.backends import cache
from polyloss.conformance.engine import LEVELS, check, checks
from polyloss.conformance.html import page
from polyloss.conformance.report import Cell, Report
from polyloss.conformance.routes import DTYPES, PATHS
from polyloss.conformance.selftest import self_test
from polyloss.conformance.selftest import show as show_self_test

__all__ = ["add_arguments", "run"]

WIDTH = 110  # of the output, where no terminal says how wide it is
JAX_CACHE = "JAX_COMPILATION_CACHE_DIR"
KEPT = 256 * 2**20  # bytes of XLA's programs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    many: Any = {"action": "append", "metavar": "NAME"}
    parser.add_argument("--library", **many, help="only this array library; may be repeated, * stands for any text")
    parser.add_argument("--loss", **many, help="only this loss or transform")
    parser.add_argument("--dtype", **many, help=f"only this dtype: {', '.join(DTYPES)}")
    parser.add_argument("--path", **many, help=f"only this path: {', '.join(PATHS)}")
    parser.add_argument("--check", **many, help=f"only this check: {', '.join(one.name for one in checks())}")
    parser.add_argument("--device", metavar="NAME", help="only this device: cpu or cuda")
    level = parser.add_mutually_exclusive_group()
    for name, words in zip(LEVELS, ("fewer cases", "the default", "more cases, every transformation")):
        level.add_argument(f"--{name}", dest="level", action="store_const", const=name, help=words)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="begin no further cell after so many")
    parser.add_argument("--json", metavar="FILE", help="save the report")
    parser.add_argument("--html", metavar="FILE", help="save the report as a page")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    parser.add_argument("--self-test", action="store_true", help="plant faults, one at a time: does it catch them?")
    parser.add_argument("--fault", **many, help="with --self-test: only this fault")
    parser.set_defaults(level="standard")


@contextlib.contextmanager
def _programs_kept() -> Iterator[None]:
    """XLA's programs, of which a quick run needs 700, are kept beside the kernels, unless the user's JAX keeps its own.

    JAX knows each by all that it is made of, except the processor. The environment tells it, which it reads when it is
    imported. The oldest programs are removed where they have become too many.
    """
    try:
        from polyloss.backends.cpu import compiled
    except ImportError:  # no llvmlite
        where = None
    else:
        where = cache.folder()
    if where is None or JAX_CACHE in os.environ:
        yield
        return
    processor = hashlib.sha256(repr(compiled.processor()).encode()).hexdigest()[:8]
    ours = {
        JAX_CACHE: str(where / f"xla-{processor}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _shrink(Path(ours[JAX_CACHE]), KEPT)


def _shrink(folder: Path, size: int) -> None:
    """Removes the oldest files of a folder until those that are left have so many bytes at most."""
    with contextlib.suppress(OSError):  # there is none, or another process is at it
        files = [(status.st_mtime, status.st_size, path) for path in folder.iterdir() for status in [path.stat()]]
        left = sum(own for _, own, _ in files)
        for _, own, path in sorted(files):
            if left <= size:
                return
            path.unlink()
            left -= own


def run(options: argparse.Namespace) -> int:
    """Runs the command: 0 if every cell holds, 1 if one failed, 2 if nothing could be run or an option is wrong."""
    with _programs_kept():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for file in (options.json, options.html):
        if file is not None and not Path(file).resolve().parent.is_dir():
            print(f"polyloss conformance: no folder for {file}", file=sys.stderr)
            return 2
    if options.self_test:
        return _self_test(options, console)
    try:
        with _Screen(console) as screen:
            report = check(
                options.library,
                loss=options.loss,
                dtype=options.dtype,
                device=options.device,
                path=options.path,
                only=options.check,
                level=options.level,
                seed=options.seed,
                fail_fast=options.fail_fast,
                jobs=2 if (os.cpu_count() or 1) > 1 else 1,
                seconds=options.seconds,
                progress=screen.update,
            )
    except ValueError as error:
        print(f"polyloss conformance: {error}", file=sys.stderr)
        return 2
    if options.json:
        report.save(options.json)
    if options.html:
        Path(options.html).write_text(page(report), encoding="utf-8")
    show(report, console)
    if report.counts["failed"]:
        return 1
    return 0 if report.conforms else 2


def _self_test(options: argparse.Namespace, console: Console) -> int:
    try:
        found = self_test(
            options.fault, progress=lambda outcome: console.print(outcome.status, outcome.fault.name, outcome.words)
        )
    except ValueError as error:
        print(f"polyloss conformance: {error}", file=sys.stderr)
        return 2
    if options.json:
        import json

        Path(options.json).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    show_self_test(found)
    return found.exit_status


class _Screen:
    """A progress bar above a table that grows: on a terminal. Elsewhere nothing."""

    def __init__(self, console: Console) -> None:
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("", total=None)
        self.cells: list[Cell] = []
        self.live = Live(self.bar, console=console, transient=True, refresh_per_second=4)
        self.shown = console.is_terminal

    def __enter__(self) -> _Screen:
        if self.shown:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self.live.stop()

    def update(self, done: int, total: int, cell: Cell) -> None:
        self.cells.append(cell)
        if self.shown:
            self.bar.update(self.task, completed=done, total=total, description=cell.name[:60])
            if done % 20 == 0 or done == total or cell.status == "failed":
                grid = Table.grid()
                grid.add_row(table(self.cells))
                grid.add_row(self.bar)
                self.live.update(grid)


def table(cells: Sequence[Cell]) -> Table:
    """How the cells of each library and path came out, and the largest share of a budget."""
    found = Table(box=None, pad_edge=False)
    found.add_column("library and path")
    for name in ("passed", "failed", "NOT RUN", "not applicable", "seconds", "largest share"):
        found.add_column(name, justify="right")
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        place = cell.library if cell.device == "cpu" else f"{cell.library} {cell.device}"
        groups.setdefault(f"{place} {cell.path}", []).append(cell)
    for name, group in groups.items():
        counts = [sum(cell.status == status for cell in group) for status in ("passed", "failed", "not run")]
        rest = sum(cell.status == "not applicable" for cell in group)
        shares = [cell.share for cell in group if cell.share is not None]
        style = "red" if counts[1] else None
        seconds = f"{sum(cell.seconds for cell in group):.1f}"
        largest = f"{max(shares):.2f}" if shares else ""
        found.add_row(name, *map(str, (*counts, rest)), seconds, largest, style=style)
    return found


def show(report: Report, console: Console) -> None:
    """Prints the table, the failures, why cells were not run, and the verdict."""
    console.print(table(report.cells))
    for cell in report.failed:
        console.print(f"\nFAILED {cell.name}", style="red", markup=False, highlight=False)
        for failure in cell.failures:
            print(f"  {failure}")
    for reason, count in report.reasons("not run").items():
        console.print(f"NOT RUN ({count}): {reason}", markup=False, highlight=False)
    counts = ", ".join(f"{count} {name.replace('not run', 'NOT RUN')}" for name, count in report.counts.items())
    console.print(f"\n{counts}, in {report.seconds:.0f} s", highlight=False)
    verdict = "Every cell that was run holds." if report.conforms else "It does not conform."
    console.print(verdict if report.counts["passed"] or report.counts["failed"] else "Nothing could be run.")
