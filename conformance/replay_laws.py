"""Laws of a call that is like an earlier one, which is replayed: it must see its own numbers and options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.compare import same
from polyloss.conformance.laws import law, only
from polyloss.conformance.routes import Route, to_numpy
from polyloss.conformance.subject import Draw, Subject

__all__: list[str] = []


@law("again", once=True)
def again(subject: Subject, draw: Draw) -> None:
    """A later call of the same shapes sees its own numbers and options; the same call gives the same bits.

    Arrays are given by position: such calls are the ones that are replayed.
    """
    n = max(draw.n, 2)
    row, rng = subject.row, draw.rng
    formula = subject.on(Route("numpy", "generic"))
    plain: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"denominator": 3.0}, {"denominator": 7.0}]
    plain += [{"weights": 0.5, "reduction": "sum"}, {"where": False, "reduction": "sum"}]  # numbers, not arrays
    for name in _numbers(row.loss):
        plain += [{name: 0.25}, {name: 0.125}]
    for seed, count in ((draw.seed, n), (draw.seed + 1, n), (draw.seed + 2, n + 1)):
        arguments = subject.draw(Draw(seed, count, draw.magnitude))
        weighted = {"weights": rng.random(count) + 0.1, "where": rng.permutation(count) != 0}
        for options in (*plain, weighted, weighted | {"reduction": "sum"}):
            value, gradients = _value_and_gradients(subject, arguments, options)
            expected, slopes = formula.value_and_gradients(arguments, **options)
            what = f"of a later call, n={count}, with {', '.join(options) or 'no options'}"
            subject.close(value, expected, f"the value {what}", factor=10)
            for key, gradient in gradients.items():
                subject.close(gradient, slopes[key], f"the gradient in {key} {what}", factor=10)
        value_again, gradients_again = _value_and_gradients(subject, arguments, options)
        same(value_again, value, "the value of the same call")
        for key, gradient in gradients.items():
            same(gradients_again[key], gradient, f"the gradient in {key} of the same call")


@dataclass(slots=True)
class Call:
    """One of several in a row."""

    kind: str
    subject: Subject  # of which its results are as accurate
    arguments: dict[str, Any]
    arrays: list[Any]
    rest: dict[str, Any]


@law("again and again", only("numpy", "torch", "cupy", path="kernel"), once=True)
def again_and_again(subject: Subject, draw: Draw) -> None:
    """So does each of several calls in a row: of the loss, of its gradient in the predictions, of torch's autograd.

    The third of the same kind takes a shortcut, which is none where one array has another dtype, layout or shape.
    """
    row, first = subject.row, subject.row.floating(subject.draw(draw))[0]
    formula = Route("numpy", "generic")
    ways = {"": polyloss.value_and_grad(row.loss, first), " alone": row.loss}
    if subject.route.library == "torch":
        ways[" by autograd"] = functools.partial(_by_autograd, row.loss)
        ways[" by autograd, after some without"] = functools.partial(_after_some_without, row.loss)
        ways[" by autograd, after another was computed"] = functools.partial(_after_another, row.loss)
    # Without options once more: those of the call before must be forgotten.
    for options in ({}, {"reduction": "sum"} | dict.fromkeys(_numbers(row.loss), 0.25), {}):
        calls = list(_calls(subject, draw, options))
        expected = [c.subject.on(formula).value_and_gradients(c.arguments, **options) for c in calls]
        for way, compute in ways.items():
            kept = []
            for call, (exact, slopes) in zip(calls, expected):
                what = f"of a call{way}, {call.kind}, with {', '.join(options) or 'no options'}"
                result = compute(*call.arrays, **call.rest)
                value, gradient = (result, None) if compute is row.loss else result
                call.subject.close(value, exact, f"the value {what}", factor=10)
                if gradient is not None:
                    call.subject.close(gradient, slopes[first], f"the gradient in {first} {what}", factor=10)
                    kept.append((gradient, to_numpy(gradient).copy()))
            for gradient, before in kept:
                same(gradient, before, f"a gradient{way}, after later calls")


def _calls(subject: Subject, draw: Draw, options: dict[str, Any]) -> Iterator[Call]:
    """Calls like each other, and after them one at a time that is unlike in one thing."""
    n, narrow = max(draw.n, 2), Subject(subject.row, subject.route, "float32")
    other = Subject(subject.row, subject.route, "float32" if subject.dtype == "float64" else "float64")
    like = [narrow.draw(Draw(draw.seed + i, n, draw.magnitude)) for i in range(3)]
    longer = narrow.draw(Draw(draw.seed + 3, 2 * n, draw.magnitude))

    def call(kind: str, arguments: dict[str, Any], closer: Subject = subject, of: Subject = subject) -> Call:
        return Call(kind, closer, arguments, *_by_position(of, arguments, options))

    if len(like[0]) == 2 and all(x.dtype.kind == "f" for x in like[0].values()):
        one, two = like[0].values()
        if one.shape == two.shape:
            twin = call("of one array twice", dict.fromkeys(like[0], two))
            twin.arrays[0] = twin.arrays[1]
            yield twin  # where it is the first of its kind, later calls must not take both their arrays for one
    yield from (call("like the others", arguments) for arguments in (*like, like[0]))
    yield call("longer", longer)
    if len(like[1]) == 2:  # predictions and targets, which a shortcut is for
        yield call("like the others", like[1])
        yield call("wider", {name: np.pad(x, [(0, 0), (0, 1)]) if x.ndim == 2 else x for name, x in like[1].items()})
    for i in range(2):
        yield call("like the others", like[0])
        strided = call(f"array {i} strided", like[1])
        strided.arrays[i] = call("twice", {name: np.repeat(x, 2, axis=0) for name, x in like[1].items()}).arrays[i][::2]
        yield strided
        yield call("like the others", like[2])
        cast = call(f"array {i} of another dtype", like[1], narrow)
        cast.arrays[i] = call("cast", like[1], of=other).arrays[i]
        yield cast


EQUAL = {"axis": 1, "ignore_index": 1, "denominator": 1, "margin": 1.0, "label_smoothing": 1.0, "z_loss": 1.0,
         "temperature": 1.0, "weights": 1.0}  # fmt: skip
"""Options that are equal to True, and are not the same."""


@law("options of another type", only("numpy", "torch", "jax", "cupy", path="kernel"), once=True)
def other_types(subject: Subject, draw: Draw) -> None:
    """After calls with an option, one that is equal and of another type is what it would have been before them."""
    loss = subject.row.loss
    arguments = subject.draw(draw, 4)
    for name, usual in EQUAL.items():
        if name not in inspect.signature(loss).parameters:
            continue
        arrays, rest = _by_position(subject, arguments, {})
        for compute in (loss, polyloss.value_and_grad(loss)):
            with subject.on(Route(subject.route.library, "generic")).route.inside(subject.dtype):
                expected = _outcome(compute, arrays, rest | {name: True})
            for _ in range(3):
                _outcome(compute, arrays, rest | {name: usual})
            got = _outcome(compute, arrays, rest | {name: True})
            assert got == expected, f"{name}=True, after calls with {usual}, is {got}, and before them {expected}"


def _outcome(compute: Any, arrays: list[Any], rest: dict[str, Any]) -> str:
    try:
        compute(*arrays, **rest)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "a value"


def _by_autograd(loss: Any, x: Any, *arrays: Any, **rest: Any) -> tuple[Any, Any]:
    leaf = x.detach().requires_grad_()
    value = loss(leaf, *arrays, **rest)
    (3 * value).backward()
    return value, leaf.grad / 3


def _after_another(loss: Any, x: Any, *arrays: Any, **rest: Any) -> tuple[Any, Any]:
    """The graph of the first loss is still there while the second one is computed."""
    leaf = x.detach().requires_grad_()
    value = loss(leaf, *arrays, **rest)
    loss(x.detach().flip(0).requires_grad_(), *arrays, **rest)
    value.backward()
    return value, leaf.grad


def _after_some_without(loss: Any, x: Any, *arrays: Any, **rest: Any) -> tuple[Any, Any]:
    import torch

    leaf = x.detach().requires_grad_()
    with torch.no_grad():
        for _ in range(3):
            loss(leaf, *arrays, **rest)
    return _by_autograd(loss, x, *arrays, **rest)


def _numbers(loss: Any) -> list[str]:
    """The parameters that are numbers, such as a margin."""
    return [name for name, p in inspect.signature(loss).parameters.items() if isinstance(p.default, float)]


def _by_position(
    subject: Subject, arguments: dict[str, Any], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arrays that the loss takes by position, and the other arguments by name."""
    given = subject.given(arguments, options)
    parameters = inspect.signature(subject.row.loss).parameters
    arrays = [given.pop(name) for name in arguments if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    return arrays, given


def _value_and_gradients(
    subject: Subject, arguments: dict[str, Any], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    arrays, given = _by_position(subject, arguments, options)
    wrt = subject.row.floating(arguments)
    value, gradients = polyloss.value_and_grad(subject.row.loss, wrt)(*arrays, **given)
    return value, dict(zip(wrt, gradients))
