"""The checks: accuracy against the oracle, limits, laws, agreement of libraries, all numbers, derivatives."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from polyloss.conformance import (  # noqa: F401 into the table
    jax_laws,
    option_laws,
    random_laws,
    replay_laws,
    special_laws,
    torch_laws,
)
from polyloss.conformance.accuracy import SMALL, accuracy, described, worst
from polyloss.conformance.agreement import agreement
from polyloss.conformance.budget import HALF
from polyloss.conformance.compare import Differs, compare
from polyloss.conformance.engine import Check, Judgement, Task, command_of
from polyloss.conformance.exact import ROWS
from polyloss.conformance.exhaustive import entry, exhaustive, exhausts, outside
from polyloss.conformance.grid import VARIANTS
from polyloss.conformance.laws import LAWS, Law
from polyloss.conformance.limits import LIMITS, Limit, in_a_long_row
from polyloss.conformance.losses import LOSSES, row_of
from polyloss.conformance.plan import ALL_ROWS, LOSS_NAMES, TRANSFORMS, later
from polyloss.conformance.report import Failure
from polyloss.conformance.routes import rounded
from polyloss.conformance.search import examples, smallest
from polyloss.conformance.subject import Draw, Subject

__all__ = ["CHECKS"]

# Limits.


def limits(task: Task) -> Iterator[Judgement]:
    stated = {name: limit for name, limit in LIMITS.items() if limit.name == task.function}
    if task.function in (*ROWS, "softmax_cross_entropy"):
        stated |= {f"{name}, in a long row": in_a_long_row(limit) for name, limit in stated.items()}
    for name, limit in stated.items():
        if not _holds_in(limit, task.dtype):
            continue
        arrays = limit.arrays()
        given = {"": arrays}
        if any(np.isnan(x).any() for x in arrays):
            given[", a NaN of other bits"] = tuple(map(_with_other_nan, arrays))
        for (bits, arrays), way in itertools.product(given.items(), task.route.ways):
            if way != "func" or limit.plain:
                failure = None
                try:
                    _at_limit(task, limit, arrays, way)
                except Exception as error:
                    arguments = ", ".join(map(str, limit.arguments))
                    where = f"{task.route}, {task.dtype}, {name}{bits}, by {way}"
                    failure = _raised(error, "limits are taken", where, arguments, command_of(task))
                yield Judgement(None, failure)


def _with_other_nan(x: np.ndarray) -> np.ndarray:
    """The same with the NaN of CUDA, all of whose bits are set, as many as each dtype has."""
    return np.where(np.isnan(x), np.uint64(2**63 - 1).view(np.float64), x) if x.dtype.kind == "f" else x


def _holds_in(limit: Limit, dtype: str) -> bool:
    """Whether 16 bits hold its numbers, to the last digit."""
    arrays = [np.asarray(x) for x in (*limit.arguments, limit.cotangent, *limit.options.values()) if x is not None]
    exact = (np.array_equal(rounded(x, dtype), x, equal_nan=True) for x in arrays if x.dtype.kind == "f")
    return dtype not in HALF or all(exact)


def _raised(error: Exception, law: str, where: str, given: str, line: str) -> Failure:
    """The failure that an exception stands for: with numbers where it compared some, else in words."""
    if isinstance(error, Differs):
        place, numbers = f"{where}: {error.what}", (repr(error.expected), repr(error.got))
        return Failure(law, place, given, line, *numbers, error.ulps, error.budget)
    got = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return Failure(law, where, given, line, "", got)


def _at_limit(task: Task, limit: Limit, arrays: tuple[np.ndarray, ...], way: str) -> None:
    """Raises AssertionError where the limit is not taken."""
    route, dtype = task.route, task.dtype
    store = np.float64 if dtype == "float64" else np.float32
    arrays = tuple(x.astype(store) if x.dtype.kind == "f" else x for x in arrays)
    options = {key: np.asarray(x) if isinstance(x, list) else x for key, x in limit.options.items()}
    if limit.name in TRANSFORMS:
        kept = route.arrays(options, dtype)
        of = functools.partial(limit.function, **kept)
        cotangent = None if limit.cotangent is None else route.array(np.asarray(limit.cotangent, store), dtype)
        items, gradient = route.pulled(way, of, route.array(arrays[0], dtype), cotangent)
    else:
        items, gradient = route.items(way, limit.function, arrays, options, 0, dtype)
    info = np.finfo(store)
    narrow = dtype in HALF
    for what, got, stated, rounds in (
        ("the items", items, limit.items, narrow and limit.name in TRANSFORMS),
        ("the gradient", gradient, limit.gradient, narrow),
    ):
        if got is not None and stated is not None:
            expected = np.asarray(stated, float).astype(store).astype(float)
            allowed = 10 * float(info.tiny) + 40 * float(info.eps) * np.abs(expected)
            if rounds:
                expected, bits = rounded(expected, dtype).astype(float), HALF[dtype][0]
                allowed = allowed + (np.abs(expected) + HALF[dtype][1]) * 2.0**-bits
            compare(got, expected, what, dtype, allowed)


# Laws.

FURTHER = [
    ("jax", "autodiff", "softmax_cross_entropy, soft, class mask"),
    ("torch", "compiled gradients", "softmax_cross_entropy, soft"),
]
"""What is asked beside the first row of a loss where a call takes long: a formula that no kernel replaces."""


def lawful(law: Law, task: Task) -> Iterator[Judgement]:
    rows = [name for name, row in LOSSES.items() if row.loss.__name__ == task.function]
    few = task.route.compiles and task.level != "thorough"
    if law.functions or (few and (task.level == "quick" or law.name not in ALL_ROWS)):
        rows = [name for name in rows if name == rows[0] or (task.route.library, law.name, name) in FURTHER]
    for name in rows or [task.function]:
        row = row_of(name)
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
        return Judgement(None, _raised(error, law.summary, where, f"{draw}; {_in_words(subject.last)}", line))
    return Judgement()


def _in_words(call: dict[str, Any]) -> str:
    """The arrays and options of a call; of a large array its shape."""

    def said(x: Any) -> str:
        if not isinstance(x, np.ndarray):
            return repr(x)
        return f"an array of shape {x.shape}" if x.size > SMALL else str(x.tolist())

    return ", ".join(f"{name}={said(x)}" for name, x in call.items())


# All numbers.


def exhausted(task: Task) -> Iterator[Judgement]:
    for name, one in exhaustive(task.function, task.dtype, task.route.library):
        share, way = worst(task, one)
        failure = None
        if not share.used <= 1:
            number = share.at[0] if share.at else 0
            failure = described(task, name, entry(one, number), share, way, f"case={name!r}, number={number}")
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


def _derives(task: Task) -> str:
    """In the dtype of each table's own choice, which is named float64 here."""
    route = task.route
    if route.library not in DERIVATIVES:
        return f"there is no table of what {route.library} does to a loss"
    if route.device != "cpu":
        return "the tables of what a library does to a loss are of the CPU"
    if route.path not in ("kernel", "generic") or str(route) == "jax generic":
        return "the tables compile by themselves"
    return "" if task.dtype == "float64" else "the tables choose their dtypes, and are asked once"


# The table.


def _check(
    name: str, summary: str, judge: Any, functions: Any = tuple(VARIANTS), unless: Any = lambda task: ""
) -> Check:
    return Check(name, summary, judge, functions, unless, lambda task: later(task, name))


def _law_check(law: Law) -> Check:
    def unless(task: Task) -> str:
        return law.unless(task.route, task.dtype, task.function)

    return _check(law.name, law.summary, functools.partial(lawful, law), law.functions or LOSS_NAMES, unless)


def _limits_apply(task: Task) -> str:
    compiled = task.route.path == "compiled"
    return "torch.compile is asked for its accuracy, gradients and agreement" if compiled else ""


def _exhausts(task: Task) -> str:
    return exhausts(task.function, task.dtype) or (
        "torch.compile is asked for its accuracy, gradients and agreement" if task.route.path == "compiled" else ""
    )


def _agrees(task: Task) -> str:
    return "it is the first, with which the others are compared" if task.route.library == "numpy" else ""


CHECKS: tuple[Check, ...] = (
    _check("accuracy", "Values and gradients are within the budget around the oracle.", accuracy),
    _check("limits", "Infinities, NaN, kinks and nothing are as by hand.", limits, unless=_limits_apply),
    _check("all numbers", "All 16-bit numbers, and all pairs of a grid.", exhausted, unless=_exhausts),
    *map(_law_check, LAWS.values()),
    _check("agreement", "Libraries agree, to the bit where the same kernel ran.", agreement, unless=_agrees),
    _check("derivatives", "Second derivatives, forward mode, batches.", derivatives, LOSS_NAMES, _derives),
)
"""Cheap ones first."""
