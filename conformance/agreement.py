"""Agreement: every pair of libraries is within twice the budget, and equal to the bit where the same kernel ran.

A cell compares its route with all that stand before it in the list of routes and are of its kind: with kernels, or
without. So each pair meets once. What accuracy has computed in the same run is taken from there; a partner whose calls
take long is met only so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np

from polyloss.conformance.accuracy import Answer, answer, arguments_of, cases_of, gridded, known, line_of, shrunk
from polyloss.conformance.budget import FLUSHING, Exact
from polyloss.conformance.compare import Differs, same
from polyloss.conformance.engine import Judgement, Task
from polyloss.conformance.exact import Case, Share, shares
from polyloss.conformance.plan import TRANSFORMS, later
from polyloss.conformance.report import Failure
from polyloss.conformance.routes import Route, routes

__all__ = ["agreement", "apart", "partners"]

EQUAL = "libraries that share a kernel give the same bits"
WITHIN = "every pair of libraries is within twice the budget"

KERNELS = {
    "sigmoid_cross_entropy": "softplus cross-entropy",
    "bpr": "softplus cross-entropy",
    "softmax_cross_entropy": "log-sum-exp cross-entropy",
    **dict.fromkeys(("info_nce", *TRANSFORMS), "log-sum-exp cross-entropy"),
}
"""What kernels compute, and whose."""
EVERYWHERE = ("sigmoid_cross_entropy", "bpr", "softmax_cross_entropy")
"""What they compute for JAX and Dask too. The others have a formula there, or one that calls kernels in its own way."""
APART = {"jax": {"axis", "class_weights"}, "dask": {"axis"}}
"""Options with which a library has a formula, or lays its arrays out in its own way."""


def agreement(task: Task) -> Iterator[Judgement]:
    """Of the grid's cases, with each partner."""
    for other in partners(task):
        theirs = dataclasses.replace(task, route=other)
        common = dict(cases_of(theirs))
        for name, one in cases_of(task):
            if name in common and (not other.compiles or known(theirs, name)):
                with other.inside(task.dtype):
                    expected = gridded(theirs, name, one)
                found = _judged(task, theirs, name, one, gridded(task, name, one), expected)
                yield found
                if found.failure:
                    break  # the others of this pair say the same


def partners(task: Task) -> Iterator[Route]:
    """The routes with which a cell compares its own: those of which a run of this level asks the accuracy too."""
    for other in routes():
        if other == task.route:
            return
        if (other.path == "generic") != (task.route.path == "generic") or other.missing or other.unless(task.dtype):
            continue
        if not later(dataclasses.replace(task, route=other), "accuracy"):
            yield other


def _judged(task: Task, theirs: Task, name: str, one: Case, got: Answer, expected: Answer) -> Judgement:
    share = apart(task, theirs, one, got, expected)
    if share.used <= 1:
        return Judgement(share.used)

    def agrees(small: Case) -> bool:
        return _asked(task, theirs, small).used <= 1

    small = shrunk(task, name, agrees)
    if small is not None:
        one, share = small, _asked(task, theirs, small)
    other = theirs.route
    where = f"{task.route} and {other}, {task.dtype}, {name}: the {share.of} at {share.at}"
    against = f"against=({other.library!r}, {other.path!r}, {other.device!r}))"
    line = f"{line_of(task, name, one)[:-1]}, {against}"
    law = EQUAL if _share_a_kernel(one, task.route, other) else WITHIN
    numbers = repr(share.expected), repr(share.got), share.ulps, share.budget
    return Judgement(share.used, Failure(law, where, arguments_of(name, one), line, *numbers))


def _asked(task: Task, theirs: Task, one: Case) -> Share:
    with theirs.route.inside(task.dtype):
        expected = answer(theirs, one, theirs.route.ways[0])
    return apart(task, theirs, one, answer(task, one, task.route.ways[0]), expected)


def apart(task: Task, theirs: Task, one: Case, got: Answer, expected: Answer) -> Share:
    """How far two routes are apart, as a share of what they may be."""
    flushing = next((x.route.library for x in (task, theirs) if x.route.library in FLUSHING), "")
    if _share_a_kernel(one, task.route, theirs.route):
        share = _bits(one, got, expected, flushing)
        if share.used or not flushing:
            return share
    value, slope = expected
    between = dataclasses.replace(one, items=Exact.of(value.astype(np.float64)))
    pulled = None if slope is None else got[1]
    if pulled is not None and slope is not None:
        between = dataclasses.replace(between, gradient=Exact.of(slope.astype(np.float64)))
    found = max(shares(between, flushing, got[0], pulled, roundings=2), key=lambda share: share.used)
    return dataclasses.replace(found, used=found.used / 2, budget=2 * found.budget)


def _bits(one: Case, got: Answer, expected: Answer, flushing: str) -> Share:
    """Nothing, or infinity with the first difference.

    Where a library takes subnormal numbers for 0, those of both are, as a sum of them is; and items that have one among
    their inputs are not compared here.
    """
    for of, mine, theirs in zip(("value", "gradient"), got, expected):
        if mine is None or theirs is None:
            continue
        if flushing:
            mine, theirs = (_without_faint(one, x) for x in (mine, theirs))
        try:
            same(mine, theirs, of)
        except Differs as error:
            return Share(np.inf, error.at, error.expected, error.got, error.ulps, 0.0, of)
        except AssertionError:
            return Share(np.inf, of=f"{of} (of shape {mine.shape}, not {theirs.shape})")
    return Share(0.0)


def _without_faint(one: Case, result: np.ndarray) -> np.ndarray:
    """The items, or their gradients, in rows; 0 where they are subnormal or come from subnormal numbers."""
    shape, axis = one.items.high.shape, one.options.get("axis", -1)

    def rows(x: np.ndarray) -> np.ndarray:
        return (np.moveaxis(x, axis, -1) if x.ndim > len(shape) else x).reshape(*shape, -1)

    inputs = [rows(x) for x in one.arrays if x.dtype.kind == "f"]
    faint = np.any(np.concatenate([(x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny) for x in inputs], -1), -1)
    found = rows(result)
    return np.where(faint[..., None] | (np.abs(found) < one.terms * np.finfo(found.dtype).tiny), 0, found)


def _share_a_kernel(one: Case, route: Route, other: Route) -> bool:
    """Whether both run the same machine code."""
    mine, theirs = (_code(one.function, place, one.options) for place in (route, other))
    return mine != "" and mine == theirs


def _code(function: str, route: Route, options: Iterable[str] = ()) -> str:
    """The machine code that computes a loss on this route: it is the same one where the name is; empty if it is none's.

    JAX reaches those of host memory through a call of its own, and Dask in each of its blocks.
    """
    primitive = KERNELS.get(function)
    if route.path != "kernel" or primitive is None:
        return ""
    if route.library in APART and (function not in EVERYWHERE or APART[route.library] & set(options)):
        return ""
    library = "numpy" if route.library == "dask" else route.library
    taken = _taken().get((library, route.device), {}).get(primitive, "")
    if "backends.cpu" in taken or "jax_kernels" in taken:
        return "host"
    return taken if "backends.cuda" in taken else ""


@functools.cache
def _taken() -> dict[tuple[str, str], dict[str, str]]:
    from polyloss.environment import paths

    return {(path.library, "cuda" if "cuda" in path.device.lower() else "cpu"): path.taken for path in paths()}
