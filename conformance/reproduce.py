"""One failing case again, by hand: what the line in a report calls."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from polyloss.conformance import grid as grids
from polyloss.conformance.accuracy import answer
from polyloss.conformance.agreement import apart
from polyloss.conformance.engine import Task, checks
from polyloss.conformance.exact import Case, exact_case, shares
from polyloss.conformance.exhaustive import entry, exhaustive
from polyloss.conformance.laws import LAWS
from polyloss.conformance.losses import row_of
from polyloss.conformance.routes import Route
from polyloss.conformance.subject import Draw, Subject

__all__ = ["obey", "reproduce"]


def reproduce(
    function: str,
    library: str,
    path: str,
    dtype: str,
    *,
    device: str = "cpu",
    arguments: list[Any] | None = None,
    options: dict[str, Any] | None = None,
    case: str | None = None,
    number: int | None = None,
    level: str = "standard",
    against: tuple[str, str, str] | None = None,
) -> float:
    """Judges one call, given by its arguments, as a case of the grid, or by its number in an exhaustive run.

    Beside the oracle, or ``against`` another library, path and device. Prints what came out.

    Returns the largest share of its budget: above 1 it is outside.
    """
    route = Route(library, path, device)
    if number is not None:
        one = entry(dict(exhaustive(function, dtype, library))[str(case)], number)
    elif arguments is None:
        one = grids.grid(function, dtype, level)[str(case)]
    else:
        arrays = tuple(_array(x, dtype) for x in arguments)
        kept = {name: _array(x, dtype) if isinstance(x, list) else x for name, x in (options or {}).items()}
        one = exact_case(function, arrays, dtype, kept)
    task = Task(checks()[0], function, route, dtype, "standard")
    if against is not None:
        return _beside(task, dataclasses.replace(task, route=Route(*against)), one)
    largest = 0.0
    with route.inside(dtype):
        for way in route.ways:
            for share in shares(one, library, *answer(task, one, way)):
                largest = max(largest, share.used)
                print(
                    f"{way}, {share.of} at {share.at}: oracle {share.expected!r}, polyloss {share.got!r}, "
                    f"{share.ulps:.4g} ulp, budget {share.budget:.4g}"
                )
    return largest


def _beside(task: Task, theirs: Task, one: Case) -> float:
    answers = []
    for asked in (task, theirs):
        with asked.route.inside(task.dtype):
            answers.append(answer(asked, one, asked.route.ways[0]))
    share = apart(task, theirs, one, *answers)
    print(
        f"{share.of} at {share.at}: {theirs.route} {share.expected!r}, {task.route} {share.got!r}, "
        f"{share.ulps:.4g} ulp, budget {share.budget:.4g}"
    )
    return share.used


def _array(x: Any, dtype: str) -> np.ndarray:
    found = np.asarray(x)
    return found.astype("float64" if dtype == "float64" else "float32") if found.dtype.kind == "f" else found


def obey(
    law: str, loss: str, library: str, path: str, dtype: str, *, device: str = "cpu", seed: int = 0, n: int = 3,
    magnitude: float = 1.0,
) -> None:  # fmt: skip
    """Asks one law of one row of `LOSSES`, or of a transform; it raises what the law raises."""
    checks()  # have all laws put into the table
    route = Route(library, path, device)
    with route.inside(dtype):
        LAWS[law].run(Subject(row_of(loss), route, dtype), Draw(seed, n, magnitude))
