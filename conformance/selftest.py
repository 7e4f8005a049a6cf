"""Does conformance catch faults? It plants those of `faults`, one at a time, and lets conformance run on each.

A fault is planted in a copy of the installed package, never in the package itself, and conformance runs on the copy in
a process of its own. What it says there must be that some cell failed. A process that hangs or dies has been noticed as
well, and counts as caught by that. First of all conformance must pass on the copy without a fault, or nothing would
follow from its failing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from polyloss.backends import cache
from polyloss.conformance.faults import FAULTS, Fault

__all__ = ["COMMAND", "Outcome", "SelfTest", "self_test", "show"]

RESULT = "result.json"

COMMAND = (sys.executable, "-m", "polyloss", "conformance", "--quick", "--fail-fast", "--json", RESULT)
"""What runs on each copy of the package. It leaves its cells in a file in the folder in which it runs.

Its exit status is 0 if every cell holds, and 1 if one failed.
"""

LONGEST = 1800.0
"""Seconds that the package without a fault may take. It compiles all kernels."""

WIDTH = 130  # of the output, where no terminal says how wide it is


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    fault: Fault

    status: str
    """``"caught"``, ``"survived"`` or ``"not planted"``."""

    by: str = ""
    """What caught it: ``"check"``, ``"crash"`` or ``"timeout"``. Of a fault that was not planted, the reason."""

    cell: Mapping[str, str] | None = None
    """The first cell that failed: its check, function, library, path, dtype and device."""

    seconds: float = 0.0

    output: str = ""
    """The last lines of a process that crashed."""

    @property
    def words(self) -> str:
        """What caught it, or why it was not planted, in one line."""
        return self.by if self.cell is None else " ".join(value for value in self.cell.values() if value)

    def to_json(self) -> dict[str, Any]:
        return {
            "fault": self.fault.name,
            "file": self.fault.file,
            "old": self.fault.old,
            "new": self.fault.new,
            "status": self.status,
            "by": self.by,
            "cell": None if self.cell is None else dict(self.cell),
            "seconds": round(self.seconds, 1),
            "output": self.output,
        }


@dataclass(frozen=True)
class SelfTest:
    """What became of all of them, in the order of the list."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    problem: str = ""
    """Why no fault was planted: conformance fails without one."""

    @property
    def planted(self) -> int:
        return sum(outcome.status != "not planted" for outcome in self.outcomes)

    @property
    def caught(self) -> int:
        return sum(outcome.status == "caught" for outcome in self.outcomes)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "survived")

    @property
    def exit_status(self) -> int:
        """0 if faults were planted and all of them caught, 1 if not, 2 if the self-test says nothing."""
        return 2 if self.problem or not self.planted else int(bool(self.survivors))

    def to_json(self) -> dict[str, Any]:
        """An object that `json.dumps` takes."""
        return {
            "caught": self.caught,
            "planted": self.planted,
            "problem": self.problem,
            "seconds": round(self.seconds, 1),
            "faults": [outcome.to_json() for outcome in self.outcomes],
        }


def self_test(
    names: Sequence[str] | None = None,
    *,
    command: Sequence[str] | None = None,
    jobs: int = 2,
    timeout: float | None = None,
    faults: Sequence[Fault] = FAULTS,
    progress: Callable[[Outcome], None] | None = None,
) -> SelfTest:
    """Plants faults, one at a time, and says which of them conformance catches.

    Parameters
    ----------
    names
        The faults to plant. Default: all.
    command
        What runs on each copy of the package; see `COMMAND`.
    jobs
        How many copies run at a time.
    timeout
        Seconds after which a fault has been caught by hanging. Default: by far more than the package without a fault
        takes.
    faults
        The list that they are from.
    progress
        Called with each outcome as soon as it is known.

    Raises
    ------
    ValueError
        If a name is not in the list, or the text that a fault replaces is not in its file exactly once.
    """
    started = time.monotonic()
    chosen = _chosen(names, faults)
    absent = {fault: reason for fault in chosen if (reason := _absence(fault))}
    with tempfile.TemporaryDirectory(prefix="polyloss-selftest-") as place:
        copies = _Copies(Path(place), command or COMMAND)
        for fault in chosen:  # all of them, before anything is run
            copies.check(fault)
        status, cells, output, seconds = copies.run(None, LONGEST)
        if problem := _problem(status, cells, output):
            return SelfTest((), time.monotonic() - started, problem)
        limit = 5 * seconds + 60 if timeout is None else timeout
        found: dict[Fault, Outcome] = {}

        def report(outcome: Outcome) -> None:
            found[outcome.fault] = outcome
            if progress is not None:
                progress(outcome)

        for fault, reason in absent.items():
            report(Outcome(fault, "not planted", reason))
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            waiting = [pool.submit(_outcome, copies, fault, limit) for fault in chosen if fault not in absent]
            try:
                for done in as_completed(waiting):
                    report(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                copies.clear()
                raise
    return SelfTest(tuple(found[fault] for fault in chosen), time.monotonic() - started)


def show(result: SelfTest) -> None:
    """Prints a table of the outcomes, survivors first. Needs rich, which is in the extra ``demo``."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if result.problem:
        console.print(f"The self-test says nothing. {result.problem}", markup=False, highlight=False)
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        title="Does conformance catch faults?",
        caption=f"caught {result.caught} of {result.planted} planted, in {result.seconds:.0f} s"
        + (f"; {left} could not be planted here" if (left := len(result.outcomes) - result.planted) else ""),
    )
    for heading in ("fault", "file", "outcome", "by"):
        table.add_column(heading, overflow="fold")
    table.add_column("s", justify="right")
    order = {"survived": 0, "not planted": 1, "caught": 2}
    for outcome in sorted(result.outcomes, key=lambda outcome: order[outcome.status]):
        table.add_row(
            escape(outcome.fault.name),
            escape(outcome.fault.file),
            outcome.status,
            escape(outcome.words),
            f"{outcome.seconds:.0f}",
            style="bold red" if outcome.status == "survived" else None,
        )
    console.print(table)


def _chosen(names: Sequence[str] | None, faults: Sequence[Fault]) -> list[Fault]:
    if names is None:
        return list(faults)
    unknown = [name for name in names if name not in {fault.name for fault in faults}]
    if unknown:
        raise ValueError(f"no such fault: {', '.join(map(repr, unknown))}; polyloss.conformance.faults lists them all")
    return [fault for fault in faults if fault.name in names]


def _absence(fault: Fault) -> str:
    """Why a fault cannot show here, or ""."""
    if not any(find_spec(library) for library in fault.lives):
        return f"{' and '.join(fault.lives)} {'is' if len(fault.lives) == 1 else 'are'} not installed"
    if fault.processors > (here := _processors()):
        return f"it takes {fault.processors} processors, and there is {here}"
    return ""


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _problem(status: int | None, cells: list[dict[str, Any]] | None, output: str) -> str:
    """Why the package without a fault is no ground for a self-test, or ""."""
    before = "Without any fault planted, conformance must pass, but "
    if status is None:
        return f"{before}it took more than {LONGEST:.0f} s."
    if status == 1 and (cell := _failed(cells)) is not None:
        return f"{before}it failed: {' '.join(cell.values())}."
    if status != 0:
        return f"{before}it ended with status {status}: {output}"
    if not any(cell.get("status") == "passed" for cell in cells or ()):
        return f"{before}it left no cell in {RESULT} that passed."
    return ""


def _failed(cells: list[dict[str, Any]] | None) -> dict[str, str] | None:
    """What names the first cell that failed."""
    for cell in cells or ():
        if cell.get("status") == "failed":
            return {
                key: str(cell.get(key) or "") for key in ("check", "function", "library", "path", "dtype", "device")
            }
    return None


def _outcome(copies: _Copies, fault: Fault, timeout: float) -> Outcome:
    status, cells, output, seconds = copies.run(fault, timeout)
    if status is None:
        return Outcome(fault, "caught", "timeout", seconds=seconds)
    if status == 0:
        return Outcome(fault, "survived", seconds=seconds)
    if status == 1 and (cell := _failed(cells)) is not None:
        return Outcome(fault, "caught", "check", cell, seconds)
    return Outcome(fault, "caught", "crash", seconds=seconds, output=output)


Ending = tuple[int | None, list[dict[str, Any]] | None, str, float]
"""The exit status (None: it took too long), the cells, the last lines of the output, and the seconds."""


class _Copies:
    """Copies of the package in a temporary folder, and the processes that run on them."""

    def __init__(self, place: Path, command: Sequence[str]) -> None:
        self.place, self.command = place, list(command)
        self.origin = place / "origin"
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        self._lock = threading.Lock()
        _copy_package(self.origin / "polyloss")
        _copy_kernels(place / "kernels")

    def check(self, fault: Fault) -> None:
        """Raises `ValueError` where the fault cannot be planted."""
        fault.plant(self.origin / "polyloss", dry=True)

    def run(self, fault: Fault | None, timeout: float) -> Ending:
        """The command on a copy with that fault."""
        folder = Path(tempfile.mkdtemp(dir=self.place))
        try:
            shutil.copytree(self.origin, folder, dirs_exist_ok=True)
            if fault is not None:
                fault.plant(folder / "polyloss")
            began = time.monotonic()
            status, output = self._process(folder, self._environment(folder), timeout)
            return status, _cells(folder / RESULT), output, time.monotonic() - began
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _environment(self, folder: Path) -> dict[str, str]:
        """Where the copy is found, and where what is compiled of it is kept.

        The files of kernels are named by a hash of what they are made of, and the operations of torch.compile, which
        keeps programs, by a hash of their source. So all copies share both.
        """
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "POLYLOSS_CACHE_DIR": str(self.place / "kernels"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.place / "programs"),
        }

    def _process(self, folder: Path, environment: dict[str, str], timeout: float) -> tuple[int | None, str]:
        written = folder / "output.txt"
        with written.open("wb") as output:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the self-test was interrupted")
                process = subprocess.Popen(
                    self.command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that it can be ended together with its own children
                )
                self._running.add(process)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
                with self._lock:
                    self._running.discard(process)
        lines = written.read_bytes().decode(errors="replace").splitlines()
        return status, "\n".join(lines[-5:])

    def clear(self) -> None:
        """Ends every process, and starts none any more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):  # another thread was here first
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _cells(path: Path) -> list[dict[str, Any]] | None:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else None


def _copy_package(to: Path) -> None:
    """The installed package as one tree. An editable one has its parts in several places."""
    import polyloss
    import polyloss.backends
    import polyloss.conformance

    parts: dict[str, ModuleType] = {"": polyloss, "backends": polyloss.backends, "conformance": polyloss.conformance}
    for name, module in parts.items():
        shutil.copytree(Path(str(module.__file__)).parent, to / name, ignore=_not_python, dirs_exist_ok=True)


def _copy_kernels(to: Path) -> None:
    """The user's compiled kernels, so that only those are compiled that a fault is in."""
    with contextlib.suppress(OSError):  # no folder, or files that come and go
        if (user := cache.folder()) is not None:
            shutil.copytree(user, to)


def _not_python(folder: str, names: list[str]) -> list[str]:
    return [
        name for name in names if name == "__pycache__" or not (name.endswith(".py") or (Path(folder) / name).is_dir())
    ]
