"""Accuracy: values and gradients are within the budget around the oracle, on the grid and on what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyloss.conformance.engine import Judgement, Task
from polyloss.conformance.exact import Case, Share, shares
from polyloss.conformance.grid import VARIANTS, Call, case, drawn, grid
from polyloss.conformance.plan import TRANSFORMS
from polyloss.conformance.report import Failure
from polyloss.conformance.search import examples, smallest

__all__ = [
    "SMALL",
    "Answer",
    "accuracy",
    "answer",
    "arguments_of",
    "cases_of",
    "described",
    "gridded",
    "known",
    "line_of",
    "shrunk",
    "worst",
]

Answer = tuple[np.ndarray, np.ndarray | None]

KEPT = 2**22  # bytes of an answer


def answer(task: Task, case: Case, way: str) -> Answer:
    """What the route makes of a case: the items, and the gradient if that way has one."""
    route, dtype = task.route, task.dtype
    if case.function not in TRANSFORMS:
        return route.items(way, case.loss, case.arrays, case.options, case.wrt, dtype)
    x = route.array(case.arrays[0], dtype)
    cotangent = case.cotangent
    given = None if cotangent is None else route.array(cotangent.astype(case.arrays[0].dtype), dtype)
    return route.pulled(way, case.loss, x, given)


def gridded(task: Task, name: str, one: Case) -> Answer:
    """The first way's answer to a case of the grid: that of this run, if there is one."""
    found = known(task, name) or answer(task, one, task.route.ways[0])
    if sum(x.nbytes for x in found if x is not None) <= KEPT:
        task.answers[task.function, task.route, task.dtype, name] = found
    return found


def known(task: Task, name: str) -> Answer | None:
    """The answer that this run has."""
    found: Answer | None = task.answers.get((task.function, task.route, task.dtype, name))
    return found


def worst(task: Task, one: Case, name: str = "") -> tuple[Share, str]:
    """The largest share of its budget that any way has used, and that way; ``name`` is that of a case of the grid."""
    found = []
    for way in task.route.ways:
        got = gridded(task, name, one) if name and way == task.route.ways[0] else answer(task, one, way)
        found += [(share, way) for share in shares(one, task.route.library, *got)]
    return max(found, key=lambda pair: pair[0].used)


def accuracy(task: Task) -> Iterator[Judgement]:
    """Of the grid, and of what hypothesis draws."""
    for name, one in cases_of(task):
        share, way = worst(task, one, name)
        failure = None
        if not share.used <= 1:
            small = shrunk(task, name, lambda small: worst(task, small)[0].used <= 1)
            one, (share, way) = (one, (share, way)) if small is None else (small, worst(task, small))
            failure = described(task, name, one, share, way)
        yield Judgement(share.used, failure, len(np.atleast_1d(one.items.high)))

    def accurate(call: Call) -> bool:
        return worst(task, case(task.function, task.dtype, call))[0].used <= 1

    for variant in VARIANTS[task.function] if not _few(task) else ():
        if variant in ("batch", "axis 0"):
            continue
        found = smallest(drawn(task.function, task.dtype, variant), accurate, examples(task), task.seed)
        failure = None
        if found is not None:
            small = case(task.function, task.dtype, found)
            failure = described(task, f"{variant}, drawn", small, *worst(task, small))
        yield Judgement(None, failure, examples(task))


FEW = (
    "soft of 10",
    "z of 10",
    "rows of 10",
    "smooth",
    "one feature, 10 candidates",
    "hot, 10 candidates",
    "a flat row of 1000",
)


def cases_of(task: Task) -> Iterator[tuple[str, Case]]:
    """Of the grid; few where every shape is compiled anew."""
    found = grid(task.function, task.dtype, task.level)
    for name, one in found.items():
        if task.route.compiles and task.level == "quick":
            compiled = ("hard of 10", "batch", "soft")
            if name not in (compiled if task.route.path == "compiled" else (*compiled, *FEW)) and len(found) > 2:
                continue
        if task.route.path == "compiled" and task.level == "standard" and not (" of 10" in name or " of" not in name):
            continue
        if name == "batch" and str(task.route) == "torch generic" and task.level != "thorough":
            continue  # no threads, no shares: it shows nothing more
        yield name, one


def _few(task: Task) -> bool:
    return task.route.path == "compiled" or (task.route.compiles and task.level == "quick")


def shrunk(task: Task, name: str, holds: Callable[[Case], bool]) -> Case | None:
    """The smallest case like that one of the grid for which it does not hold; None where none is found."""
    variant = max((v for v in VARIANTS[task.function] if name.startswith(v)), key=len, default="")
    slow = task.route.path == "compiled"
    for n, k in ((1, 2),) if slow else ((1, 2), (1, 3), (2, 3)):

        def fits(call: Call) -> bool:
            return holds(case(task.function, task.dtype, call))

        strategy = drawn(task.function, task.dtype, variant or VARIANTS[task.function][0], n, k)
        found = smallest(strategy, fits, 6 if slow else 60, task.seed)
        if found is not None:
            return case(task.function, task.dtype, found)
    return None


def described(task: Task, name: str, one: Case, share: Share, way: str, call: str = "") -> Failure:
    """The failure, with the line that reproduces it."""
    where = f"{task.route}, {task.dtype}, {name}: the {share.of} at {share.at}, by {way}"
    law = "values and gradients are within the budget around the oracle"
    numbers = repr(share.expected), repr(share.got), share.ulps, share.budget
    return Failure(law, where, arguments_of(name, one), line_of(task, name, one, call), *numbers)


SMALL = 24  # numbers, which are printed


def arguments_of(name: str, one: Case) -> str:
    """The input in words."""
    if sum(x.size for x in one.arrays) > SMALL:
        return f"grid case {name!r}"
    return ", ".join(str(x.tolist()) for x in one.arrays)


def line_of(task: Task, name: str, one: Case, call: str = "") -> str:
    """A line of Python that judges the case again; ``call`` are the arguments that say which it is."""
    kept = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in one.options.items()}
    if one.cotangent is not None:
        kept["entry"] = int(np.argmax(one.cotangent[0]))
    if not call and sum(x.size for x in one.arrays) <= SMALL:
        call = f"arguments={_literal([x.tolist() for x in one.arrays])}, options={_literal(kept)}"
    route = task.route
    return (
        f"from polyloss.conformance import reproduce; reproduce({task.function!r}, {route.library!r}, {route.path!r}, "
        f"{task.dtype!r}, device={route.device!r}, {call or f'case={name!r}, level={task.level!r}'})"
    )


def _literal(x: Any) -> str:
    """What Python reads as ``x``, NaN and infinities too."""
    if isinstance(x, list):
        return f"[{', '.join(map(_literal, x))}]"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{key!r}: {_literal(value)}' for key, value in x.items())}}}"
    return f"float({str(x)!r})" if isinstance(x, float) and not math.isfinite(x) else repr(x)
