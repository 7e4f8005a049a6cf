"""Checks, and the cells in which they run.

A `Check` is run in cells: a function, a route and a dtype. In each it yields judgements: the share of its budget that
a result has used, or a failure. `cells` lists them, `run` runs one, and `check` runs all and makes the report; pytest
runs the same cells one by one (`test_conformance`).
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import itertools
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from polyloss.conformance.environment import describe
from polyloss.conformance.grid import VARIANTS
from polyloss.conformance.report import Cell, Failure, Report, Status
from polyloss.conformance.routes import DTYPES, PATHS, Route, routes

__all__ = ["LATE", "LEVELS", "Check", "Judgement", "Task", "cells", "check", "checks", "command_of", "run"]

Level: TypeAlias = Literal["quick", "standard", "thorough"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "thorough")

LATE = "the time was up"
"""Why a cell is not run that would have begun after the limit of time."""

ASIDE = ("jax", "dask")
"""The libraries that take half of the time: with two jobs they have a process of their own."""


@dataclass(frozen=True)
class Judgement:
    """What came of a few cases: the share of the budget, where there is one, and a failure if they failed."""

    share: float | None = None
    failure: Failure | None = None
    cases: int = 1


@dataclass(frozen=True)
class Task:
    """A cell before it is run."""

    check: Check
    function: str
    route: Route
    dtype: str
    level: Level
    seed: int = 0
    reason: str = ""
    """Why it is not applicable; empty where it is."""
    answers: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What routes have answered to cases of the grid: all cells of a run share it."""

    @property
    def name(self) -> str:
        return f"{self.check.name}-{self.function}-{self.route}-{self.dtype}"


@dataclass(frozen=True)
class Check:
    """One question."""

    name: str
    summary: str
    judge: Callable[[Task], Iterator[Judgement]]
    functions: Sequence[str] = tuple(VARIANTS)
    unless: Callable[[Task], str] = field(default=lambda task: "")
    """Why it is not applicable; empty where it is."""

    later: Callable[[Task], str] = field(default=lambda task: "")
    """Why a run of this level leaves it out; empty where it is run."""


def checks() -> tuple[Check, ...]:
    """All of them, cheap ones first."""
    from polyloss.conformance.checks import CHECKS

    return CHECKS


def cells(
    backend: str | Sequence[str] | None = None,
    *,
    loss: str | Sequence[str] | None = None,
    dtype: str | Sequence[str] | None = None,
    device: str | None = None,
    path: str | Sequence[str] | None = None,
    level: Level = "standard",
    seed: int = 0,
) -> Iterator[Task]:
    """The cells that are selected, in the order in which they are run. Raises ValueError for a name that is unknown.

    A check that is applicable to none of its functions, for one reason, is one cell of the function ``*``.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    everywhere = routes()
    wanted = _chosen("backend", backend, sorted({route.library for route in everywhere}))
    functions = _chosen("loss", loss, tuple(VARIANTS))
    dtypes = _chosen("dtype", dtype, DTYPES)
    paths = _chosen("path", path, PATHS)
    if device is not None:
        _chosen("device", device, sorted({route.device for route in everywhere}))
    answers: dict[Any, Any] = {}
    for route in everywhere:
        if route.library not in wanted or route.path not in paths or device not in (None, route.device):
            continue
        for one, name in itertools.product(checks(), dtypes):
            tasks = [
                Task(one, function, route, name, level, seed) for function in one.functions if function in functions
            ]
            absent = "" if route.missing else route.unless(name)  # of a library that is not here nothing can be asked
            reasons = [one.unless(task) or absent for task in tasks]
            if len(tasks) > 1 and reasons[0] and len(set(reasons)) == 1:
                tasks, reasons = [replace(tasks[0], function="*")], reasons[:1]
            yield from (replace(task, reason=why, answers=answers) for task, why in zip(tasks, reasons))


def _chosen(name: str, given: str | Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    if given is None:
        return known
    patterns = [given] if isinstance(given, str) else list(given)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {pattern!r}")
    return [one for one in known if any(fnmatch.fnmatch(one, pattern) for pattern in patterns)]


def run(task: Task, *, fail_fast: bool = False, until: float = math.inf) -> Cell:
    """Runs one cell, if it begins before that moment of `time.monotonic`."""
    start = time.perf_counter()
    share: float | None = None
    failures: list[Failure] = []
    cases = 0

    def cell(status: Status, reason: str = "") -> Cell:
        place = (task.function, task.route.library, task.route.path, task.dtype, task.route.device)
        seconds = round(time.perf_counter() - start, 4)
        return Cell(task.check.name, *place, status, reason, share, cases, seconds, tuple(failures))

    if task.reason:
        return cell("not applicable", task.reason)
    if reason := task.route.missing:
        return cell("not run", reason)
    if reason := task.check.later(task):
        return cell("not run", reason)
    if time.monotonic() >= until:
        return cell("not run", LATE)
    with task.route.inside(task.dtype), _quiet():
        for judgement in _judged(task):
            cases += judgement.cases
            if judgement.share is not None:
                share = max(share or 0.0, float(judgement.share))
            if judgement.failure is not None:
                failures.append(judgement.failure)
                if fail_fast:
                    break
    return cell("failed" if failures else "passed")


def _run_all(tasks: Sequence[Task], jobs: int, fail_fast: bool, until: float) -> Generator[Cell, None, None]:
    """All cells; with two jobs a second process runs those of `ASIDE`, then the last of the others, from the end on."""
    beside = [task for task in tasks if jobs > 1 and task.route.library in ASIDE and not task.route.missing]
    if not beside or len(beside) == len(tasks):
        yield from (run(task, fail_fast=fail_fast, until=until) for task in tasks)
        return
    own = [task for task in tasks if task.route.library not in ASIDE or task.route.missing]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    left = context.Array("q", [0, len(own)])  # of our own cells those that nobody has taken
    names = [[(task.check.name, *_place(task)) for task in some] for some in (beside, own)]
    process = context.Process(target=_run_named, args=(theirs, *names, left, fail_fast, until), daemon=True)
    process.start()
    theirs.close()
    waiting = len(tasks)
    try:
        while (taken := _take(left, first=True)) is not None:
            waiting -= 1
            yield run(own[taken], fail_fast=fail_fast, until=until)
            while waiting and ours.poll():  # which is true at its end, too
                waiting -= 1
                yield ours.recv()
        describe()  # is kept, and imports every library
        while waiting:
            waiting -= 1
            yield ours.recv()
    except EOFError as error:
        raise RuntimeError(f"the process of {' and '.join(ASIDE)} has died") from error
    finally:
        process.kill()
        process.join()


def _take(left: Any, *, first: bool) -> int | None:
    """The number of the first or the last cell that nobody has taken, which is then taken."""
    with left.get_lock():
        start, stop = left
        if start == stop:
            return None
        left[:] = (start + 1, stop) if first else (start, stop - 1)
        return int(start if first else stop - 1)


def _place(task: Task) -> tuple[str, Route, str, Level, int, str]:
    return task.function, task.route, task.dtype, task.level, task.seed, task.reason


def _run_named(
    pipe: Any, beside: list[tuple[Any, ...]], others: list[tuple[Any, ...]], left: Any, fail_fast: bool, until: float
) -> None:
    """In the second process: a check holds functions, which cannot be sent, so it is sent by its name."""
    known = {one.name: one for one in checks()}
    answers: dict[Any, Any] = {}

    def send(cell: tuple[Any, ...]) -> None:
        name, function, route, dtype, level, seed, reason = cell
        task = Task(known[name], function, route, dtype, level, seed, reason, answers)
        pipe.send(run(task, fail_fast=fail_fast, until=until))

    for one in beside:
        send(one)
    while (taken := _take(left, first=False)) is not None:
        send(others[taken])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Infinities are meant, and a warning of a framework is no finding."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _judged(task: Task) -> Iterator[Judgement]:
    """The judgements; an exception is a failure like another."""
    try:
        yield from task.check.judge(task)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        line = command_of(task)
        yield Judgement(failure=Failure(task.check.summary, "an exception", "", line, "a number", message))


def command_of(task: Task) -> str:
    """The command that runs this cell alone."""
    route = task.route
    return (
        f"polyloss conformance --library {route.library} --path {route.path} --loss {task.function} "
        f"--dtype {task.dtype} --device {route.device} --check '{task.check.name}' --{task.level} --seed {task.seed}"
    )


def check(
    backend: str | Sequence[str] | None = None,
    *,
    loss: str | Sequence[str] | None = None,
    dtype: str | Sequence[str] | None = None,
    device: str | None = None,
    path: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    level: Level = "standard",
    seed: int = 0,
    fail_fast: bool = False,
    jobs: int = 1,
    seconds: float | None = None,
    progress: Callable[[int, int, Cell], None] | None = None,
) -> Report:
    """Checks that backends give the right numbers, and the same ones.

    Parameters
    ----------
    backend, loss, dtype, device, path : str or sequence of str, optional
        What is checked: array libraries ("numpy", "torch", ..., or the name of an entry point), functions ("bpr",
        "softmax", ...), dtypes, devices ("cpu", "cuda"), paths ("kernel", "generic", "compiled", "jit"). Default: all.
        ``*`` stands for any text.
    only : str or sequence of str, optional
        The names of checks. Default: all.
    level : {"quick", "standard", "thorough"}, default "standard"
        How many cases.
    seed : int, default 0
        Of what is drawn.
    fail_fast : bool, default False
        Whether to stop at the first failure.
    jobs : int, default 1
        With 2, JAX and Dask run in a process of their own beside the others, and then share their work.
    seconds : float, optional
        After which no further cell is begun: those that are left are not run. Default: until all are.
    progress : callable, optional
        Called with the number of cells that were run, the number of all, and the last of them.

    Returns
    -------
    Report
        A cell for each check, function, library, path, dtype and device.

    Raises
    ------
    ValueError
        A name that is unknown; the message lists the known ones.

    Examples
    --------
    >>> from polyloss.conformance import check
    >>> report = check("numpy", loss="bpr", dtype="float32", path="generic", only="accuracy")
    >>> report.conforms, report.counts["failed"]
    (True, 0)
    """
    names = _chosen("check", only, [one.name for one in checks()])
    selected = cells(backend, loss=loss, dtype=dtype, device=device, path=path, level=level, seed=seed)
    tasks = [task for task in selected if task.check.name in names]
    created, start = datetime.datetime.now(datetime.UTC), time.perf_counter()
    found: list[Cell] = []
    until = math.inf if seconds is None else time.monotonic() + seconds
    with contextlib.closing(_run_all(tasks, jobs, fail_fast, until)) as running:
        for one in running:
            found.append(one)
            if progress is not None:
                progress(len(found), len(tasks), one)
            if fail_fast and one.status == "failed":
                break
    options = {"level": level, "seed": seed, "backend": backend, "loss": loss, "dtype": dtype, "device": device}
    options |= {"path": path, "only": only, "fail_fast": fail_fast}
    taken = time.perf_counter() - start
    return Report(tuple(found), describe(), options, created.isoformat(timespec="seconds"), taken)
