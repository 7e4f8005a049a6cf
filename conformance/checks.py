"""The checks: accuracy against the oracle, limits, laws, agreement of libraries, all numbers, derivatives."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyloss.conformance import replay_laws, special_laws, torch_laws  # noqa: F401 they put themselves into the table
from polyloss.conformance.budget import FLUSHING, Exact
from polyloss.conformance.compare import Differs, compare, same
from polyloss.conformance.engine import Check, Judgement, Task, command_of
from polyloss.conformance.exact import ROWS, Case, Share, shares
from polyloss.conformance.exhaustive import entry, exhaustive, exhausts, outside
from polyloss.conformance.grid import VARIANTS, Call, case, drawn, grid
from polyloss.conformance.laws import LAWS, Law
from polyloss.conformance.limits import LIMITS, Limit, in_a_long_row
from polyloss.conformance.losses import LOSSES
from polyloss.conformance.plan import ALL_ROWS, LOSS_NAMES, TRANSFORMS, later
from polyloss.conformance.report import Failure
from polyloss.conformance.routes import Route
from polyloss.conformance.search import examples, smallest
from polyloss.conformance.subject import Draw, Subject

__all__ = ["CHECKS"]

# Accuracy.


def answer(task: Task, case: Case, way: str) -> tuple[np.ndarray, np.ndarray | None]:
    """What the route makes of a case."""
    route, dtype = task.route, task.dtype
    if case.function not in TRANSFORMS:
        return route.items(way, case.loss, case.arrays, case.options, case.wrt, dtype)
    x = route.array(case.arrays[0], dtype)
    cotangent = case.cotangent
    given = None if cotangent is None else route.array(cotangent.astype(case.arrays[0].dtype), dtype)
    return route.pulled(way, case.loss, x, given)


def worst(task: Task, case: Case) -> tuple[Share, str]:
    """The largest share of its budget that any way has used, and that way."""
    found = []
    for way in task.route.ways:
        found += [(share, way) for share in shares(case, task.route.library, *answer(task, case, way))]
    return max(found, key=lambda pair: pair[0].used)


def accuracy(task: Task) -> Iterator[Judgement]:
    for name, one in cases_of(task):
        share, way = worst(task, one)
        failure = None
        if not share.used <= 1:
            failure = _inaccurate(task, name, one, share, way)
        yield Judgement(share.used, failure, len(np.atleast_1d(one.items.high)))
    for variant in VARIANTS[task.function] if not _few(task) else ():
        if variant in ("batch", "axis 0"):
            continue
        found = smallest(drawn(task.function, task.dtype, variant), _accurate(task), examples(task), task.seed)
        failure = None
        if found is not None:
            small = case(task.function, task.dtype, found)
            failure = _described(task, f"{variant}, drawn", small, *worst(task, small))
        yield Judgement(None, failure, examples(task))


FEW = ("soft of 10", "z of 10", "rows of 10", "smooth", "one feature, 10 candidates", "a flat row of 1000")


def _accurate(task: Task) -> Callable[[Call], bool]:
    return lambda call: worst(task, case(task.function, task.dtype, call))[0].used <= 1


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


def _inaccurate(task: Task, name: str, one: Case, share: Share, way: str) -> Failure:
    """The failure, with the smallest input that fails likewise."""
    variant = next((v for v in VARIANTS[task.function] if name.startswith(v)), VARIANTS[task.function][0])
    if not _few(task):
        for n, k in ((1, 2), (1, 3), (2, 3)):
            found = smallest(drawn(task.function, task.dtype, variant, n, k), _accurate(task), 60, task.seed)
            if found is not None:
                small = case(task.function, task.dtype, found)
                return _described(task, name, small, *worst(task, small))
    return _described(task, name, one, share, way)


def _described(task: Task, name: str, one: Case, share: Share, way: str, call: str = "") -> Failure:
    size = sum(x.size for x in one.arrays)
    place = f"the {share.of} at {share.at}, by {way}"
    where = f"{task.route}, {task.dtype}, {name}: {place}"
    given = ", ".join(str(x.tolist()) for x in one.arrays) if size <= 24 else f"grid case {name!r}"
    kept = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in one.options.items()}
    if one.cotangent is not None:
        kept["entry"] = int(np.argmax(one.cotangent[0]))
    arguments = [x.tolist() for x in one.arrays]
    if not call and size <= 24:
        call = f"arguments={_literal(arguments)}, options={_literal(kept)}"
    call = call or f"case={name!r}, level={task.level!r}"
    route = task.route
    line = (
        f"from polyloss.conformance import reproduce; reproduce({task.function!r}, {route.library!r}, {route.path!r}, "
        f"{task.dtype!r}, device={route.device!r}, {call})"
    )
    law = "values and gradients are within the budget around the oracle"
    return Failure(law, where, given, line, repr(share.expected), repr(share.got), share.ulps, share.budget)


def _literal(x: Any) -> str:
    """What Python reads as ``x``, NaN and infinities too."""
    if isinstance(x, list):
        return f"[{', '.join(map(_literal, x))}]"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{key!r}: {_literal(value)}' for key, value in x.items())}}}"
    return f"float({str(x)!r})" if isinstance(x, float) and not math.isfinite(x) else repr(x)


# Limits.


def limits(task: Task) -> Iterator[Judgement]:
    stated = {name: limit for name, limit in LIMITS.items() if limit.name == task.function}
    if task.function in (*ROWS, "softmax_cross_entropy"):
        stated |= {f"{name}, in a long row": in_a_long_row(limit) for name, limit in stated.items()}
    for name, limit in stated.items():
        for way in task.route.ways:
            if way != "func" or limit.plain:
                failure = None
                try:
                    _at_limit(task, limit, way)
                except Exception as error:
                    arguments = ", ".join(map(str, limit.arguments))
                    where = f"{task.route}, {task.dtype}, {name}, by {way}"
                    failure = _raised(error, "limits are taken", where, arguments, command_of(task))
                yield Judgement(None, failure)


def _raised(error: Exception, law: str, where: str, given: str, line: str) -> Failure:
    """The failure that an exception stands for: with numbers where it compared some, else in words."""
    if isinstance(error, Differs):
        place, numbers = f"{where}: {error.what}", (repr(error.expected), repr(error.got))
        return Failure(law, place, given, line, *numbers, error.ulps, error.budget)
    got = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return Failure(law, where, given, line, "", got)


def _at_limit(task: Task, limit: Limit, way: str) -> None:
    """Raises AssertionError where the limit is not taken."""
    route, dtype = task.route, task.dtype
    store = np.float64 if dtype == "float64" else np.float32
    arrays = tuple(x.astype(store) if x.dtype.kind == "f" else x for x in limit.arrays())
    options = {key: np.asarray(x) if isinstance(x, list) else x for key, x in limit.options.items()}
    if limit.name in TRANSFORMS:
        kept = route.arrays(options, dtype)
        of = functools.partial(limit.function, **kept)
        cotangent = None if limit.cotangent is None else route.array(np.asarray(limit.cotangent, store), dtype)
        items, gradient = route.pulled(way, of, route.array(arrays[0], dtype), cotangent)
    else:
        items, gradient = route.items(way, limit.function, arrays, options, 0, dtype)
    info = np.finfo(store)
    for what, got, stated in (("the items", items, limit.items), ("the gradient", gradient, limit.gradient)):
        if got is not None and stated is not None:
            expected = np.asarray(stated, float).astype(store).astype(float)
            compare(got, expected, what, dtype, 10 * float(info.tiny) + 40 * float(info.eps) * np.abs(expected))


# Laws.

FURTHER = [("jax", "autodiff", "softmax_cross_entropy, soft, class mask")]
"""What is asked beside the first row of a loss where a call takes long: a formula that no kernel replaces."""


def lawful(law: Law, task: Task) -> Iterator[Judgement]:
    rows = [name for name, row in LOSSES.items() if row.loss.__name__ == task.function]
    few = task.route.compiles and task.level != "thorough"
    if law.functions or (few and (task.level == "quick" or law.name not in ALL_ROWS)):
        rows = [name for name in rows if name == rows[0] or (task.route.library, law.name, name) in FURTHER]
    for name in rows:
        row = LOSSES[name]
        subject = Subject(row, task.route, task.dtype)
        sizes = (3,) if task.route.compiles else (1, 2, 3, 6)
        count = 1 if law.once or few else examples(task)
        if law.once or count == 1:
            yield _obeyed(law, subject, name, Draw(task.seed, max(3, row.fewest)), task)
            continue
        draw = smallest(draws(sizes, row.fewest), functools.partial(law.run, subject), count, task.seed)
        failure = None if draw is None else _obeyed(law, subject, name, draw, task).failure
        yield Judgement(None, failure, count)


def draws(sizes: tuple[int, ...], fewest: int) -> Any:
    from hypothesis import strategies as st

    numbers = st.sampled_from([n for n in sizes if n >= fewest])
    return st.builds(Draw, st.integers(0, 2**32 - 1), numbers, st.sampled_from([1.0, 1e-3, 30.0]))


def _obeyed(law: Law, subject: Subject, name: str, draw: Draw, task: Task) -> Judgement:
    try:
        law.run(subject, draw)
    except Exception as error:
        where = f"{task.route}, {task.dtype}, {name}"
        line = (
            f"from polyloss.conformance import obey; obey({law.name!r}, {name!r}, {task.route.library!r}, "
            f"{task.route.path!r}, {task.dtype!r}, device={task.route.device!r}, {draw})"
        )
        return Judgement(None, _raised(error, law.summary, where, str(draw), line))
    return Judgement()


# Agreement.

ORDER = ("numpy", "torch", "jax", "dask", "array_api_strict", "cupy")
PRIMITIVES = {
    "sigmoid_cross_entropy": "softplus cross-entropy",
    "bpr": "softplus cross-entropy",
    "softmax_cross_entropy": "log-sum-exp cross-entropy",
}


def agreement(task: Task) -> Iterator[Judgement]:
    before = ORDER[: ORDER.index(task.route.library)] if task.route.library in ORDER else ORDER[:1]
    path = "kernel" if task.route.path == "kernel" else "generic"
    for library in before[:1] if task.level == "quick" or task.route.compiles else before:
        other = Route(library, "generic" if library == "array_api_strict" else path)
        if other.missing or other.unless(task.dtype):
            continue
        theirs = dataclasses.replace(task, route=other)
        equal = _shared_kernel(task.function, task.route, other)
        for name, one in cases_of(task):
            got = answer(task, one, task.route.ways[0])
            with other.inside(task.dtype):
                expected = answer(theirs, one, other.ways[0])
            yield _agreed(task, other, name, one, got, expected, equal)


def _agreed(task: Task, other: Route, name: str, one: Case, got: Any, expected: Any, equal: bool) -> Judgement:
    where = f"{task.route} and {other}, {task.dtype}, {name}"
    route, line = task.route, command_of(task)
    if equal:
        try:
            for of, mine, theirs in zip(("the values", "the gradient"), got, expected):
                same(mine, theirs, of)
        except AssertionError as error:
            law = "libraries that share a kernel give the same bits"
            return Judgement(None, _raised(error, law, where, f"grid case {name!r}", line))
        return Judgement(0.0)
    value, gradient = expected
    between = dataclasses.replace(one, items=Exact.of(value.astype(np.float64)))
    pulled = None if gradient is None else got[1]
    if gradient is not None:
        between = dataclasses.replace(between, gradient=Exact.of(gradient.astype(np.float64)))
    flushing = next((name for name in (route.library, other.library) if name in FLUSHING), route.library)
    found = max(shares(between, flushing, got[0], pulled, roundings=2), key=lambda share: share.used)
    failure = None
    if not found.used <= 2:
        law = "every pair of libraries is within twice the budget"
        place = f"{where}: the {found.of} at {found.at}"
        both = repr(found.expected), repr(found.got)
        failure = Failure(law, place, f"grid case {name!r}", line, *both, found.ulps, 2 * found.budget)
    return Judgement(found.used / 2, failure)


def _shared_kernel(function: str, one: Route, other: Route) -> bool:
    """Whether both run the same machine code."""
    primitive = PRIMITIVES.get(function)
    if primitive is None or (one.path, other.path) != ("kernel", "kernel"):
        return False
    taken = _kernels_taken()
    mine = taken.get((one.library, one.device), {}).get(primitive, "")
    theirs = taken.get((other.library, other.device), {}).get(primitive, "")
    return "backends.cpu" in mine and mine == theirs


@functools.cache
def _kernels_taken() -> dict[tuple[str, str], dict[str, str]]:
    from polyloss.environment import paths

    return {(path.library, "cuda" if "cuda" in path.device.lower() else "cpu"): path.taken for path in paths()}


# All numbers.


def exhausted(task: Task) -> Iterator[Judgement]:
    for name, one in exhaustive(task.function, task.dtype, task.route.library):
        share, way = worst(task, one)
        failure = None
        if not share.used <= 1:
            number = share.at[0] if share.at else 0
            failure = _described(task, name, entry(one, number), share, way, f"case={name!r}, number={number}")
        yield Judgement(share.used, failure, one.items.high.size)
    for bad in outside(task.function, task.dtype, task.route.library):
        subject = Subject(LOSSES[task.function], task.route, task.dtype)
        given = {"probabilities": np.full(3, 0.5), "targets": np.array([0.0, 1.0, 1.0])}
        failure = None
        try:
            special_laws.is_refused(subject, "probabilities", given, bad)
        except Exception as error:
            law, where = "what is not valid is refused, or NaN", f"{task.route}, {task.dtype}"
            failure = _raised(error, law, where, f"a probability of {bad}", command_of(task))
        yield Judgement(None, failure)


# Derivatives of every kind.

DERIVATIVES = {
    "numpy": ("threads",),
    "torch": ("double backward", "func.jvp", "func.hessian", "func.vmap of func.grad", "autocast, bfloat16 logits"),
    "jax": ("jvp", "hessian", "vmap over weights and labels"),
    "dask": ("chunks that differ",),
}
"""Rows of the tables of `interchange`, in a run that is not thorough."""


def derivatives(task: Task) -> Iterator[Judgement]:
    from polyloss.conformance import interchange

    library = task.route.library
    for name, row in interchange.table(library).items():
        if (
            row.processes
            or task.function in row.unless
            or not (task.level == "thorough" or name in DERIVATIVES[library])
        ):
            continue
        rows = [loss for loss in interchange.applies(row) if LOSSES[loss].loss.__name__ == task.function]
        for loss in rows[:1] if task.level == "quick" else rows:
            failure = None
            try:
                interchange.check(library, row, loss)
            except Exception as error:
                line = (
                    "from polyloss.conformance import interchange; "
                    f"interchange.check({library!r}, interchange.table({library!r})[{name!r}], {loss!r})"
                )
                law = "a loss under a transformation is the loss"
                failure = _raised(error, law, f"{task.route}, {loss}, {name}", row.summary, line)
            yield Judgement(None, failure)


def _derives(task: Task) -> str | None:
    """In the dtype of each table's own choice, which is named float64 here."""
    if task.route.device != "cpu" or task.route.library not in DERIVATIVES or task.dtype != "float64":
        return None
    if task.route.path not in ("kernel", "generic") or (task.route.library, task.route.path) == ("jax", "generic"):
        return None
    return ""


# The table.


def _check(
    name: str, summary: str, judge: Any, functions: Any = tuple(VARIANTS), unless: Any = lambda task: ""
) -> Check:
    return Check(name, summary, judge, functions, unless, lambda task: later(task, name))


def _law_check(law: Law) -> Check:
    def unless(task: Task) -> str | None:
        return law.unless(task.route, task.dtype, task.function)

    return _check(law.name, law.summary, functools.partial(lawful, law), law.functions or LOSS_NAMES, unless)


def _limits_apply(task: Task) -> str | None:
    return None if task.dtype not in ("float32", "float64") or task.route.path == "compiled" else ""


def _exhausts(task: Task) -> str | None:
    return None if exhausts(task.function, task.dtype) or task.route.path == "compiled" else ""


def _agrees(task: Task) -> str | None:
    return None if task.route.library == "numpy" else ""


CHECKS: tuple[Check, ...] = (
    _check("accuracy", "Values and gradients are within the budget around the oracle.", accuracy),
    _check("limits", "Infinities, NaN, kinks and nothing are as by hand.", limits, unless=_limits_apply),
    _check("all numbers", "All 16-bit numbers, and all pairs of a grid.", exhausted, unless=_exhausts),
    *map(_law_check, LAWS.values()),
    _check("agreement", "Libraries agree, to the bit where the same kernel ran.", agreement, unless=_agrees),
    _check("derivatives", "Second derivatives, forward mode, batches.", derivatives, LOSS_NAMES, _derives),
)
"""Cheap ones first."""
