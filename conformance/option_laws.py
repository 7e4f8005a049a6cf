"""Laws of options that meet: with each other, with broadcasting, with an axis, and with many rows and classes.

Whole calls are compared with those of `plain`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance import plain
from polyloss.conformance.compare import compare
from polyloss.conformance.exact import LINES, ROWS
from polyloss.conformance.laws import LAYOUTS, law
from polyloss.conformance.routes import to_numpy
from polyloss.conformance.special_laws import INTEGERS, SOFTMAX
from polyloss.conformance.subject import RESOLUTION, Draw, Subject

__all__: list[str] = []


def _like(
    subject: Subject,
    arguments: dict[str, np.ndarray],
    options: dict[str, Any],
    items: plain.Items,
    keep: Any,
    what: str,
) -> None:
    """Raises AssertionError where the route gives another mean or another gradient in the logits."""
    mean, gradients = plain.reduced(items, weights=options.get("weights", 1.0), where=keep)
    loss = subject.row.loss
    subject.last.clear()
    subject.last.update(arguments | options)
    value, gradient = polyloss.value_and_grad(loss)(**subject.route.arrays(subject.last, subject.dtype))
    subject.close(value, mean, f"the mean, {what}", factor=10)
    slopes = gradients["logits"]
    size = np.max(np.abs(slopes))
    compare(gradient, slopes, f"the gradient, {what}", subject.dtype, 30 * RESOLUTION[subject.dtype] * size, size)


SHAPES = (
    ((4, 70), -1),
    ((3, 5, 64), 1),
    ((2, 5, 70), 1),
    ((2, 40, 70), 1),
    ((4, 600), -1),
    ((6, 3, 2), 0),
    ((3, 2, 6), -1),
)
"""Logits and the axis of the classes: each way in which a kernel walks along rows, with and without a remainder."""


@law("options together", once=True, functions=(*SOFTMAX, "sigmoid_cross_entropy"))
def together(subject: Subject, draw: Draw) -> None:
    """Options hold together, for labels and for soft targets, along any axis, whatever is broadcast."""
    rng, slow = draw.rng, subject.route.compiles
    if subject.row.loss is polyloss.sigmoid_cross_entropy:
        for n, k in ((5, 3), (17, 241))[: 1 if slow else 2]:
            for i, (tall, wide) in enumerate((((n, 1), (1, k)), ((1, k), (n, k)), ((n, k), (n,)))):
                _sigmoid_together(subject, rng, (n, k), tall, wide, 0.1 * (i % 2))
        return
    for shape, axis in SHAPES[4:6] if slow else SHAPES:
        for soft in (False, True):
            for options in ((), ("class_weights", "z_loss", "where"), ("class_mask", *OPTIONS)):
                if options or not slow:
                    _softmax_together(subject, rng, shape, axis, soft, options)


def _sigmoid_together(
    subject: Subject,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    one: tuple[int, ...],
    two: tuple[int, ...],
    e: float,
) -> None:
    """With weights and a class weight of shape ``one``, and a mask of shape ``two``."""
    x, t = _as(subject, rng.standard_normal(shape)), _as(subject, rng.random(shape))
    weights, p = _as(subject, rng.random(one) + 0.5), _as(subject, rng.random(one) + 0.5)
    where = rng.random(two) < 0.8
    where.flat[0] = True
    options = {"weights": weights, "where": where, "pos_weight": p, "label_smoothing": e}
    items = plain.sigmoid(x, t, pos_weight=p, label_smoothing=e)
    what = f"weights of shape {one}, a mask of shape {two}"
    _like(subject, {"logits": x, "targets": t}, options, items, where, what)


OPTIONS = ("class_weights", "label_smoothing", "z_loss", "ignore_index", "weights", "where")


def _softmax_together(
    subject: Subject, rng: np.random.Generator, shape: tuple[int, ...], axis: int, soft: bool, names: tuple[str, ...]
) -> None:
    axis %= len(shape)
    items, k = shape[:axis] + shape[axis + 1 :], shape[axis]
    dropped = k // 2  # the class that every other item lacks
    lacking = (np.arange(items[-1])[:, None] % 2 == 1) & (np.arange(k) == dropped)
    mask = ~lacking & np.ones((*items, k), bool)
    columns = (*items[:-1], 1) if len(items) > 1 else items
    drawn: dict[str, Any] = {
        "class_weights": _as(subject, rng.random(k) + 0.5),
        "class_mask": ~lacking if axis == len(items) else np.moveaxis(mask, -1, axis),
        "label_smoothing": 0.125,
        "z_loss": 0.0625,
        "weights": _as(subject, rng.random(items[:1]) + 0.5),
        "where": np.arange(np.prod(columns)).reshape(columns) != 1,
        "ignore_index": -1,
    }
    options = {name: drawn[name] for name in names if not (soft and name == "ignore_index")}
    keep = plain.leading(options.get("where", True), items)
    x = _as(subject, rng.standard_normal(shape))
    if soft:
        t = _as(subject, rng.random(shape) / k) * np.moveaxis(mask, -1, axis)
    else:
        t = rng.integers(k, size=items)
        t[t == dropped] = 0
    if "ignore_index" in options:
        t.flat[-1] = -1
        keep = keep & (t >= 0)
    own = {name: option for name, option in options.items() if name not in ("ignore_index", "weights", "where")}
    found = plain.softmax(x, t, axis=axis, **own)
    what = f"{'soft targets' if soft else 'labels'}, shape {shape}, axis {axis}, {', '.join(options) or 'no options'}"
    _like(subject, {"logits": x, "targets": t}, options | {"axis": axis}, found, keep, what)


def _as(subject: Subject, x: np.ndarray) -> np.ndarray:
    """As the dtype holds them."""
    return x.astype(subject.dtype).astype(np.float64)


TARGETS = {"sigmoid_cross_entropy": "targets", "contrastive": "similar", "contrastive_from_distance": "similar",
           "binary_log_loss": "targets"}  # fmt: skip


@law("targets of every dtype", once=True, functions=tuple(TARGETS))
def target_dtypes(subject: Subject, draw: Draw) -> None:
    """Targets of 0 and 1 may have any integer dtype, or be boolean."""
    arguments, name = subject.draw(draw, 4), TARGETS[subject.row.loss.__name__]
    arguments[name] = np.arange(arguments[name].size).reshape(arguments[name].shape) % 2.0
    first = next(iter(arguments))
    expected, slopes = subject.value_and_gradients(arguments)
    for dtype in INTEGERS if subject.dtype == "float32" else ("bool", "uint64"):
        value, gradients = subject.value_and_gradients(arguments | {name: arguments[name].astype(dtype)})
        subject.close(value, expected, f"the value with {dtype} targets")
        subject.close(gradients[first], slopes[first], f"the gradient with {dtype} targets", factor=10)


@law("axes and layouts", once=True, functions=(*LINES, *ROWS))
def axes(subject: Subject, draw: Draw) -> None:
    """A transform takes any axis, layout and mask, and gives what it gives of rows side by side."""
    transform, route = subject.row.loss, subject.route
    name, x = transform.__name__, _as(subject, draw.rng.standard_normal((3, 3, 3)))  # a cube: no shape tells its axes
    place = functools.partial(route.array, dtype=subject.dtype)
    layouts = {"contiguous": lambda place, x: place(x)} | (LAYOUTS if route.library in ("numpy", "torch") else {})
    few = to_numpy(transform(place(x[..., :2].copy()))) if name in ROWS else None
    expected = to_numpy(transform(place(x)))
    for axis in (-1, 0, 1) if name in ROWS else (-1,):
        moved = np.ascontiguousarray(np.moveaxis(x, -1, axis))
        options = {"axis": axis} if name in ROWS else {}
        back = expected if name == "logsumexp" else np.moveaxis(expected, -1, axis)
        for how, change in layouts.items():
            if not (route.library == "torch" and how.startswith("reversed")):  # it has no negative strides
                subject.close(transform(change(place, moved), **options), back, f"axis {axis}, {how}")
        if name == "logsumexp":
            got = transform(place(moved), keepdims=True, **options)
            subject.close(got, np.expand_dims(expected, axis), f"axis {axis} kept")
        if few is not None:
            where = np.moveaxis(np.arange(3)[None, None] != 2, -1, axis)
            got = to_numpy(transform(place(moved), where=route.array(where), **options))
            got = got if name == "logsumexp" else np.moveaxis(got, axis, -1)[..., :2]
            subject.close(got, few, f"axis {axis}, without a masked entry")
