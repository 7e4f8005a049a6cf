"""What holds of every loss in every array library, whatever the numbers.

A law is a function of a `Subject` and a `Draw`; it raises AssertionError where it does not hold. `LAWS` is the table
of them. Laws of single losses are in `special_laws`, those of a later call in `replay_laws`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import polyloss
from polyloss import dispatch
from polyloss.conformance import textbook
from polyloss.conformance.compare import compare, same
from polyloss.conformance.losses import of_seven_bits
from polyloss.conformance.routes import DTYPES, Route, to_numpy
from polyloss.conformance.subject import RESOLUTION, Draw, Subject

__all__ = ["LAWS", "Law", "law"]

Run = Callable[[Subject, Draw], None]
Applies = Callable[[Route, str, str], str]


@dataclass(frozen=True)
class Law:
    """One law, and where it is asked."""

    name: str
    run: Run
    unless: Applies  # (route, dtype, function) -> why it is not asked there; empty where it is
    once: bool  # one draw is enough
    functions: tuple[str, ...]  # the losses that it speaks of; empty: all

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]


LAWS: dict[str, Law] = {}


def _wide(route: Route, dtype: str, function: str) -> str:
    if route.path in ("compiled", "jit"):
        return "a compiled call is asked for its accuracy, limits, gradients and agreement"
    return "" if dtype in ("float32", "float64") else "inputs of 16 bits have laws of their own"


def only(*libraries: str, path: str = "", dtypes: tuple[str, ...] = DTYPES, device: str = "", but: str = "") -> Applies:
    """A law of these libraries alone, ``but`` not of one function."""
    place = [f"the {path} path of" if path else "", ", ".join(libraries), f"on the {device}" if device else ""]
    place += [f"in {' and '.join(dtypes)}" if dtypes != DTYPES else ""]
    reason = f"it is asked of {' '.join(filter(None, place))} alone"

    def unless(route: Route, dtype: str, function: str) -> str:
        elsewhere = route.library not in libraries or path not in ("", route.path) or device not in ("", route.device)
        if elsewhere or dtype not in dtypes:
            return reason
        return f"the items of {but} depend on each other" if function == but else _wide(route, dtype, function)

    return unless


def law(
    name: str, unless: Applies = _wide, *, once: bool = False, functions: tuple[str, ...] = ()
) -> Callable[[Run], Run]:
    """Puts a law into the table."""

    def put(run: Run) -> Run:
        assert name not in LAWS and run.__doc__
        LAWS[name] = Law(name, run, unless, once, functions)
        return run

    return put


# Weights, masks, reductions.


@law("mask")
def mask(subject: Subject, draw: Draw) -> None:
    """A masked item is as if it were not there, whatever lies behind the mask."""
    row, rng = subject.row, draw.rng
    n = draw.n + 2
    keep = np.zeros(n, bool)
    least = max(row.fewest, 1)
    keep[rng.permutation(n)[: least + draw.seed % (n - least)]] = True
    arguments = subject.draw(draw, n)
    dirty = {name: x.copy() for name, x in arguments.items()}
    for i, (key, x) in enumerate(dirty.items()):
        if key in row.shared:
            continue
        if x.dtype == bool:
            x[~keep] = False
            continue
        bad: list[Any] = [row.garbage[key]] if key in row.garbage else []
        bad += [np.nan, np.inf, -np.inf] if x.dtype.kind == "f" else []
        if bad:
            x[~keep] = bad[(draw.seed + i) % len(bad)]
    weights = rng.random(n) + 0.5
    weights[~keep] = np.nan
    clean = row.take(arguments, keep)
    for reduction in ("mean", "sum"):
        value, gradients = subject.value_and_gradients(dirty, where=keep, weights=weights, reduction=reduction)
        expected, slopes = subject.value_and_gradients(clean, weights=weights[keep], reduction=reduction)
        subject.close(value, expected, f"the {reduction} with a mask")
        for key, gradient in gradients.items():
            got, want = to_numpy(gradient), to_numpy(slopes[key])
            if key not in row.shared:
                same(got[~keep], np.zeros_like(got[~keep]), f"the gradient in {key} of a masked item")
                got = got[keep]
            subject.close(got, want, f"the gradient in {key} with a mask", factor=10)


@law("reductions")
def reductions(subject: Subject, draw: Draw) -> None:
    """Sum of none = sum; mean = sum(w l) / sum(w); a denominator replaces sum(w); gradients grow with the weights."""
    arguments = subject.draw(draw)
    shape = (draw.n, *subject.row.item_shape)
    plain = subject.items(arguments).astype(np.float64)
    assert plain.shape == shape, f"items of shape {plain.shape}, not {shape}"
    shapes = [(), (draw.n,), shape, (1,) * len(shape)]
    for which, denominator in ((draw.seed % 4, 2.5), ((draw.seed + 1) % 4, -2.5)):
        weights = draw.rng.random(shapes[which]) + 0.1
        weights = np.asarray(weights, subject.dtype).astype(np.float64)
        full = np.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)
        none, total = (subject.value(arguments, weights=weights, reduction=r) for r in ("none", "sum"))
        subject.close(none, full * plain, "the weighted items")
        subject.close(total, np.sum(full * plain), "the weighted sum")
        divided = subject.value(arguments, weights=weights, denominator=denominator)
        subject.close(divided, np.sum(full * plain) / denominator, f"the sum over a denominator of {denominator}")
        if "class_weights" not in arguments:
            mean = subject.value(arguments, weights=weights)
            subject.close(mean, np.sum(full * plain) / np.sum(full), "the weighted mean")
        _, slopes = subject.value_and_gradients(arguments, weights=weights, reduction="sum")
        _, gradients = subject.value_and_gradients(arguments, weights=4 * weights, reduction="sum")
        for key, slope in slopes.items():
            subject.close(gradients[key], 4 * to_numpy(slope), f"the gradient in {key} of four times the weights")


@law("textbook")
def in_textbook(subject: Subject, draw: Draw) -> None:
    """Items and weighted mean of a whole call are those of the textbook's formulas."""
    arguments = subject.draw(Draw(draw.seed, min(draw.n, 4), draw.magnitude))
    n = len(next(iter(arguments.values())))
    weights = np.asarray(draw.rng.random(n) + 0.1, subject.dtype)
    slack = 10 * max(1.0, draw.magnitude) if "info_nce" in subject.row.loss.__name__ else 10
    subject.close(subject.items(arguments), textbook.items(subject.row, arguments), "the items", factor=slack)
    mean = textbook.mean(subject.row, arguments, weights.astype(np.float64))
    subject.close(subject.value(arguments, weights=weights), mean, "the weighted mean", factor=slack)


MASKED: dict[str, Any] = {"where": np.zeros(3, bool)}
NOTHING: tuple[tuple[dict[str, Any], float], ...] = (
    (MASKED, np.nan),
    ({"weights": np.zeros(3)}, np.nan),
    ({"denominator": 0.0}, np.nan),
    ({"denominator": 0}, np.nan),
    (MASKED | {"reduction": "sum"}, 0.0),
    (MASKED | {"denominator": 4.0}, 0.0),
)
"""Options for three items, and what the value is."""


@law("nothing to average", once=True)
def nothing(subject: Subject, draw: Draw) -> None:
    """Without anything to average the mean is NaN, the sum is 0, and the gradient is 0."""
    arguments, route = subject.draw(draw, 3), subject.route
    for options, mean in NOTHING:
        what = f"with {', '.join(options)}"
        value, gradients = subject.value_and_gradients(arguments, **options)
        same(value, np.asarray(mean), f"the value {what}")
        for key, gradient in gradients.items():
            same(gradient, np.zeros(arguments[key].shape), f"the gradient in {key} {what}")
        first = next(iter(gradients))
        of = functools.partial(_in_one, subject.row.loss, subject.given(arguments, options), first)
        x = route.array(arguments[first], subject.dtype)
        for way in (*route.autodiff, *(["twice"] if "backward" in route.autodiff else [])):
            value, gradient = route.pulled(way, of, x)
            same(value, np.asarray(mean), f"{way}'s value {what}")
            same(np.abs(to_numpy(gradient)), np.zeros(arguments[first].shape), f"{way}'s gradient in {first} {what}")


@law("no items", once=True)
def no_items(subject: Subject, draw: Draw) -> None:
    """A batch of nothing has a mean of NaN, a sum of 0, and an empty gradient."""
    empty = subject.row.take(subject.draw(draw, 4), slice(0, 0))
    value, gradients = subject.value_and_gradients(empty)
    same(value, np.asarray(np.nan), "the mean")
    for key, gradient in gradients.items():
        assert tuple(gradient.shape) == empty[key].shape, f"the gradient in {key} has shape {tuple(gradient.shape)}"
    same(subject.value(empty, reduction="sum"), np.asarray(0.0), "the sum")
    assert subject.items(empty).shape == (0, *subject.row.item_shape), "the items have another shape"


# Derivatives.


@law("differences", only("numpy", "torch", "array_api_strict", "cupy", dtypes=("float64",)))
def differences(subject: Subject, draw: Draw) -> None:
    """The gradient is that of the value, by finite differences, with weights and a mask, whatever the reduction."""
    rng, n = draw.rng, max(draw.n, 3)
    row = subject.row
    arguments = row.arguments(draw.seed, n)
    options: dict[str, Any] = {"weights": rng.random(n) + 0.1, "where": np.arange(n) != draw.seed % n}
    options |= ({}, {"reduction": "sum"}, {"reduction": "none"}, {"denominator": -2.5})[draw.seed % 4]
    _, gradients = subject.value_and_gradients(arguments, **options)
    for key, found in gradients.items():
        gradient = to_numpy(found)
        direction = rng.standard_normal(gradient.shape)
        direction = direction * _interior(row.loss, key, arguments, direction)
        step = 1e-6
        ahead, behind = (
            np.sum(to_numpy(subject.value(arguments | {key: arguments[key] + s * step * direction}, **options)))
            for s in (1, -1)
        )
        expected = (ahead - behind) / (2 * step)
        size = 1 + np.sum(np.abs(gradient))
        what = f"the slope in {key}, beside differences"
        compare(np.sum(gradient * direction), expected, what, subject.dtype, 1e-6 * size, size)


def _interior(loss: Any, key: str, arguments: dict[str, np.ndarray], direction: np.ndarray) -> Any:
    """Rows of probabilities keep their sum, and targets at 0 stay there; everything else is free."""
    if key == "targets":
        return arguments[key] > 0
    if loss is polyloss.log_loss and key == "probabilities":
        direction -= direction.mean(axis=-1, keepdims=True)
        return 0.01
    return 1.0


@law("derivatives in weights", only("torch", "jax", dtypes=("float64",)), once=True)
def weights_derivatives(subject: Subject, draw: Draw) -> None:
    """The library's autodiff differentiates what weighs the items too, by finite differences."""
    route, rng, n = subject.route, draw.rng, 4
    arguments = subject.draw(draw, n)
    if set(arguments) == {"logits", "targets"} and not subject.row.options and arguments["targets"].dtype.kind == "i":
        logits, targets = arguments["logits"], arguments["targets"]  # with what has no chance, and does not happen
        logits[2][targets[2] != 1 if targets.ndim > 1 else np.arange(len(logits[2])) != targets[2]] = -np.inf
    weighing = {"weights": rng.random(n) + 0.5}
    if subject.row.loss is polyloss.sigmoid_cross_entropy:
        weighing["pos_weight"] = rng.random(3) + 0.5
    if subject.row.loss is polyloss.softmax_cross_entropy:
        classes = arguments["logits"].shape[subject.row.options.get("axis", -1)]
        weighing["class_weights"] = arguments.get("class_weights", rng.random(classes) + 0.5)
    denominator = {"denominator": np.asarray(2.5)}
    by: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        (weighing, {"reduction": "mean"}),
        (weighing, {"reduction": "sum"}),
        (weighing | denominator, {}),
        (denominator, {"where": True}),
    )
    for differentiated, reduction in by:
        options = {"where": np.arange(n) != 1} | differentiated | reduction
        given = subject.given(arguments, options)
        for key, x in differentiated.items():
            of = functools.partial(_in_one, subject.row.loss, given, key)
            direction, step = np.asarray(rng.standard_normal(x.shape)), 1e-6
            ahead, behind = (
                float(to_numpy(subject.value(arguments, **options | {key: x + s * step * direction}))) for s in (1, -1)
            )
            expected = (ahead - behind) / (2 * step)
            for way in route.autodiff:
                gradient = np.asarray(route.pulled(way, of, given[key])[1])
                size = 1 + np.sum(np.abs(gradient))
                what = f"{way}'s slope in {key}, beside differences"
                compare(np.sum(gradient * direction), expected, what, subject.dtype, 1e-6 * size, size)


def _has_autodiff(route: Route, dtype: str, function: str) -> str:
    if dtype not in ("float32", "float64"):
        return "inputs of 16 bits have laws of their own"
    if str(route) == "jax generic":
        return "JAX's autodiff is asked with kernels, and under jit"
    return "" if route.autodiff else f"{route.library} has no autodiff of its own"


@law("autodiff", _has_autodiff)
def autodiff(subject: Subject, draw: Draw) -> None:
    """The library's autodiff gives the formula's gradient, times whatever comes from above; times 0 it is 0."""
    route, n = subject.route, max(draw.n, 3)
    arguments = subject.draw(draw, n)
    options: dict[str, Any] = {"weights": draw.rng.random(n) + 0.1, "where": np.arange(n) != 1}
    plain = subject.on(Route(route.library, "kernel", route.device) if route.path in ("compiled", "jit") else route)
    _, slopes = plain.value_and_gradients(arguments, **options)
    given = subject.given(arguments, options)
    for way in route.autodiff:
        for key, slope in slopes.items():
            of = functools.partial(_in_one, subject.row.loss, given, key)
            _, gradient = route.pulled(way, of, given[key], route.array(np.asarray(-1.5), subject.dtype))
            subject.close(np.asarray(gradient) / -1.5, slope, f"{way}'s gradient in {key}", factor=10)
            if way in ("compile", "jit"):
                break  # which compile anew for each parameter
        first = next(iter(slopes))
        of = functools.partial(_in_one, subject.row.loss, given | {"reduction": "none"}, first)
        shape = (n, *subject.row.item_shape)
        cotangent = np.asarray(draw.rng.standard_normal(shape), subject.dtype).astype(np.float64)
        weights = np.asarray(options["weights"], subject.dtype).astype(np.float64)
        spread = weights.reshape((-1,) + (1,) * (len(shape) - 1))
        _, expected = plain.value_and_gradients(
            arguments, weights=np.broadcast_to(spread, shape) * cotangent, where=options["where"], reduction="sum"
        )
        _, gradient = route.pulled(way, of, given[first], route.array(cotangent, subject.dtype))
        subject.close(gradient, expected[first], f"{way}'s gradient of the items", factor=10)
        _, gradient = route.pulled(way, of, given[first], route.array(np.zeros(shape), subject.dtype))
        same(np.abs(np.asarray(gradient)), np.zeros(arguments[first].shape), f"{way}'s gradient, times 0")
        if way in ("compile", "jit"):
            continue
        # A factor of all parameters at once: its derivative at 1 is the sum of theirs.
        of = functools.partial(_scaled, subject.row.loss, given, tuple(slopes))
        _, gradient = route.pulled(way, of, route.array(np.asarray(1.0), subject.dtype))
        terms = np.concatenate([np.ravel(to_numpy(slope) * arguments[key]) for key, slope in slopes.items()])
        size = np.sum(np.abs(terms)) + 1e-6
        what = f"{way}'s gradient in all parameters at once"
        compare(gradient, np.sum(terms), what, subject.dtype, 10 * RESOLUTION[subject.dtype] * size, size)


def _in_one(loss: Any, given: dict[str, Any], key: str, x: Any) -> Any:
    return loss(**given | {key: x})


def _scaled(loss: Any, given: dict[str, Any], keys: tuple[str, ...], factor: Any) -> Any:
    return loss(**given | {key: factor * given[key] for key in keys})


# The same numbers, however they come.


def _not_numpy(route: Route, dtype: str, function: str) -> str:
    return (
        "it is NumPy that the others are compared with" if route.library == "numpy" else _wide(route, dtype, function)
    )


@law("agreement in every parameter", _not_numpy)
def numbers_of_numpy(subject: Subject, draw: Draw) -> None:
    """Value and gradients are NumPy's, in the library, dtype and shape of the inputs."""
    n = draw.n + 1
    arguments = subject.draw(draw, n)
    options = {"where": np.arange(n) != 0} if n > subject.row.fewest else {}
    value, gradients = subject.value_and_gradients(arguments, **options)
    expected, slopes = subject.on(Route("numpy", "generic")).value_and_gradients(arguments, **options)
    like = subject.route.array(np.zeros(2, subject.dtype))
    subject.close(value, expected, "the value", factor=10)
    assert value.dtype == like.dtype, f"the value has dtype {value.dtype}, not {like.dtype}"
    for key, gradient in gradients.items():
        assert type(gradient) is type(like), f"the gradient in {key} is a {type(gradient)}"
        assert gradient.dtype == like.dtype, f"the gradient in {key} has dtype {gradient.dtype}"
        subject.close(gradient, slopes[key], f"the gradient in {key}", factor=10)


@law("permutation", once=True)
def permutation(subject: Subject, draw: Draw) -> None:
    """Items may come in any order."""
    arguments = subject.draw(draw, 4)
    order = np.array([2, 0, 3, 1])
    items = subject.items(subject.row.take(arguments, order))
    subject.close(items, subject.items(arguments)[order], "the items in another order", factor=10)


def _cut_out(place: Callable[[np.ndarray], Any], x: np.ndarray, axes: Sequence[int]) -> Any:
    """``x`` as a part of an array that is longer along these axes."""
    return place(np.pad(x, [(0, int(axis in axes)) for axis in range(x.ndim)]))[tuple(map(slice, x.shape))]


LAYOUTS: dict[str, Callable[[Callable[[np.ndarray], Any], np.ndarray], Any]] = {
    "every other item": lambda place, x: place(np.repeat(x, 2, axis=0))[::2],
    "every third of the last axis": lambda place, x: place(np.repeat(x, 3, axis=-1))[..., ::3],
    "cut out of a larger array": lambda place, x: _cut_out(place, x, range(x.ndim)),
    "cut out along the second last axis": lambda place, x: _cut_out(place, x, (max(0, x.ndim - 2),)),
    "reversed": lambda place, x: place(np.ascontiguousarray(x[::-1]))[::-1],
    "reversed along the last axis": lambda place, x: place(np.ascontiguousarray(x[..., ::-1]))[..., ::-1],
    "first axis last": lambda place, x: place(np.ascontiguousarray(x.swapaxes(0, -1))).swapaxes(0, -1),
}
"""Arrays of the same numbers, of which none is contiguous."""


@law("layout", only("numpy", "torch", "cupy"))
def layout(subject: Subject, draw: Draw) -> None:
    """Inputs may be read-only, strided, reversed or Fortran-ordered; they are not touched, and no result is one."""
    arguments = subject.draw(draw, 4)
    expected, slopes = subject.value_and_gradients(arguments)
    wrt = subject.row.floating(arguments)
    place = functools.partial(subject.route.array, dtype=subject.dtype)
    for (name, change), alone in itertools.product(LAYOUTS.items(), (False, True)):
        if name.startswith("reversed") and subject.route.library == "torch":
            continue  # it has no negative strides
        given = {key: place(x) if alone and i else change(place, x) for i, (key, x) in enumerate(arguments.items())}
        name += " in the first array alone" if alone else ""
        if subject.route.library == "numpy":
            for x in given.values():
                x.flags.writeable = False
        value, found = polyloss.value_and_grad(subject.row.loss, wrt)(**given | subject.row.options)
        subject.close(value, expected, f"the value, inputs {name}", factor=10)
        for key, x in given.items():
            same(x, arguments[key], f"the input {key} afterwards, {name}")
        for key, gradient in zip(wrt, found):
            what = f"the gradient in {key}, inputs {name}"
            subject.close(gradient, slopes[key], what, factor=10)
            assert not np.shares_memory(to_numpy(gradient), to_numpy(given[key])), f"{what} shares the memory of {key}"


@law("broadcast layout", only("numpy", "torch", "cupy"), once=True)
def broadcast_layout(subject: Subject, draw: Draw) -> None:
    """Predictions that repeat one number or one item in memory are like those that are written out."""
    arguments, place = subject.draw(draw, 4), functools.partial(subject.route.array, dtype=subject.dtype)
    first = subject.row.floating(arguments)[0]
    x = arguments[first]
    for part in (np.s_[:1], np.s_[..., :1]):
        if subject.row.loss is polyloss.log_loss:  # whose rows must sum to 1
            part = np.s_[:1]
        given = subject.given(arguments | {first: np.broadcast_to(x[part], x.shape).copy()}, {})
        repeated = dispatch.library_of(place(x)).xp.broadcast_to(place(x[part].copy()), x.shape)
        for wrt in ((first,), subject.row.floating(arguments)):
            compute = polyloss.value_and_grad(subject.row.loss, wrt)
            value, gradients = compute(**given | {first: repeated})
            expected, slopes = compute(**given)
            subject.close(value, expected, f"the value, {first} repeated", factor=10)
            for key, gradient, slope in zip(wrt, gradients, slopes):
                subject.close(gradient, slope, f"the gradient in {key}, {first} repeated", factor=10)


@law("large batch", only("numpy", "torch", "cupy", dtypes=("float32",), but="info_nce"), once=True)
def large_batch(subject: Subject, draw: Draw) -> None:
    """An item of a large batch is, to the bit, what it is alone, and the sum is theirs."""
    row = subject.row
    n = 70_001 if subject.route.path == "kernel" else 5_001  # a formula has no blocks and no threads
    arguments = subject.draw(draw, n)
    strided = {key: np.repeat(x, 2, axis=0)[::2] for key, x in arguments.items() if key not in row.shared}
    masked = {"weights": draw.rng.random(n) + 0.5, "where": draw.rng.random(n) < 0.9}
    for given, options in ((arguments | strided, masked), (arguments, {})):
        value, gradients = subject.value_and_gradients(given, reduction="none", **options)
        for part in (slice(0, 40), slice(n // 2, n // 2 + 40), slice(n - 40, n)):
            few = {key: x[part] for key, x in options.items()}
            alone, slopes = subject.value_and_gradients(row.take(arguments, part), reduction="none", **few)
            what = f"items {part.start} to {part.stop} of a large batch, with {', '.join(options) or 'no options'}"
            same(to_numpy(value)[part], alone, what)
            for key, slope in slopes.items():
                same(to_numpy(gradients[key])[part], slope, f"the gradient in {key} of {what}")
    _, gradients_beyond = subject.value_and_gradients(arguments, where=masked["where"], denominator=1e-45)
    for key, gradient in gradients_beyond.items():
        if key not in row.shared:
            behind = to_numpy(gradient)[np.logical_not(masked["where"])]
            same(behind, np.zeros_like(behind), f"the gradient in {key} of masked items, times infinity")
    items = subject.items(arguments)  # a kernel of its own
    halves = [subject.items(row.take(arguments, part)) for part in (slice(0, n // 2), slice(n // 2, n))]
    same(items, np.concatenate(halves), "the items of a large batch")
    total, slopes = subject.value_and_gradients(arguments, reduction="sum")
    exact, size = np.sum(items.astype(np.float64)), np.sum(np.abs(items.astype(np.float64)))
    slack = 30 * 2.0**-24 * size  # log2 N ulp, and some
    compare(total, exact, f"the sum of {n} items", subject.dtype, slack, size)
    for key, slope in slopes.items():
        same(slope, gradients[key], f"the gradient in {key} of the sum")


@law("lists", only("numpy", "torch", path="kernel"), once=True)
def lists(subject: Subject, draw: Draw) -> None:
    """Lists and Python numbers are read, into the dtype of the arrays beside them; alone, into NumPy's float64."""
    arguments = subject.draw(draw, 3)
    expected = subject.value(arguments, weights=np.array(2.0), denominator=np.array(3.0))
    listed = {key: x.tolist() for key, x in arguments.items()}
    subject.close(subject.value(listed, weights=2, denominator=3), expected, "the value of lists")
    given = subject.given(arguments, {})
    for key in list(listed)[1:]:
        value = subject.row.loss(**given | {key: listed[key]})
        subject.close(value, subject.value(arguments), f"the value with a list for {key}")
        assert str(value.dtype).endswith(subject.dtype), f"a list for {key} gives {value.dtype}"
    value, _ = polyloss.value_and_grad(subject.row.loss)(**listed, **subject.row.options)
    assert value.dtype == np.float64, f"lists give {value.dtype}"
    if subject.row.loss in (polyloss.bpr, polyloss.pairwise_hinge):
        value = subject.row.loss(np.asarray(0.5, subject.dtype)[()], 0.25)
        assert value.dtype == subject.dtype, f"a number of NumPy's and one of Python's give {value.dtype}"
        value = subject.row.loss([2, 1], [0, 3])
        same(value, subject.row.loss(np.array([2.0, 1.0]), np.array([0.0, 3.0])), "the value of integers")
        assert value.dtype == np.float64, f"lists of integers give {value.dtype}"


def _sixteen_bits(route: Route, dtype: str, function: str) -> str:
    return "it is a law of 16 bits" if dtype in ("float32", "float64") else _wide(route, "float32", function)


@law("16 bits", _sixteen_bits, once=True)
def sixteen_bits(subject: Subject, draw: Draw) -> None:
    """16-bit inputs give float32 losses, and gradients in their own dtype, those of the rounded inputs."""
    arguments = subject.draw(draw, 3)
    if subject.row.loss is polyloss.log_loss:  # whose rows must still sum to 1
        arguments["probabilities"] = of_seven_bits(subject.row, arguments["probabilities"]).astype(np.float32)
    exact = {key: x.astype(np.float32) if x.dtype.kind == "f" else x for key, x in arguments.items()}
    formula = Subject(subject.row, Route("numpy", "generic"), "float32")
    weighted: dict[str, Any] = {"weights": np.array([0.5, 1.0, 2.0]), "where": np.arange(3) != 1}
    for options in ({},) if subject.route.compiles else ({}, weighted):
        expected, slopes = formula.value_and_gradients(exact, **options)
        value, gradients = subject.value_and_gradients(arguments, **options)
        assert "float32" in str(value.dtype), f"the loss has dtype {value.dtype}"
        products = subject.row.loss is polyloss.info_nce  # are in 16 bits, on some platforms
        formula.close(value, expected, "the value", factor=1e3 if products else 10)
        resolution = 2.0 ** (-10 if subject.dtype == "float16" else -7)
        tiny = 6e-8 if subject.dtype == "float16" else 0.0
        for key, gradient in gradients.items():
            assert subject.dtype in str(gradient.dtype), f"the gradient in {key} has dtype {gradient.dtype}"
            want = to_numpy(slopes[key])
            allowed = resolution * (np.abs(want) + 1e-5) + tiny
            if products:
                allowed = allowed + 4 * resolution * np.max(np.abs(want), initial=0.0)
            compare(gradient, want, f"the gradient in {key}", subject.dtype, allowed, 1e-5)


@law("partial", once=True)
def partial_loss(subject: Subject, draw: Draw) -> None:
    """A `functools.partial` of a loss has its gradient, in several parameters in the order that is asked for."""
    arguments = subject.draw(draw, 4)
    where = np.array([True, True, True, False])
    expected, slopes = subject.value_and_gradients(arguments, where=where, reduction="sum")
    wrt = tuple(reversed(subject.row.floating(arguments)))
    given = subject.given(arguments, {"where": where})
    kept = {key: given.pop(key) for key in list(given) if key not in arguments}
    loss = functools.partial(subject.row.loss, reduction="sum", **kept)
    value, gradients = polyloss.value_and_grad(loss, wrt)(**given)
    subject.close(value, expected, "the value of a partial loss")
    again, _ = polyloss.value_and_grad(functools.partial(loss, reduction="none"), wrt)(**given, reduction="sum")
    subject.close(again, expected, "the value of a partial loss that is called with another option")
    items = to_numpy(loss(**given, reduction="none"))
    subject.close(np.sum(items), expected, "the sum of the items of a partial loss")
    for key, gradient in zip(wrt, gradients):
        subject.close(gradient, slopes[key], f"the gradient in {key} of a partial loss", factor=10)
