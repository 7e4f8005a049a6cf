"""Kernels at the limits of numbers and of sizes: infinities, NaN, subnormals; nothing, one, and every remainder."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
from layouts import (
    INF,
    LAYOUTS,
    NAN,
    agree,
    agree_all,
    binary_terms,
    dtype_of,
    every_dtype,
    generic,
    logits_and_labels,
    results,
    unit,
)

import polyloss
from polyloss import dispatch

# Limits.


def edge_rows(classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of every kind, with labels at their ends, in their middle and at their maximum."""
    info = {"float16": (6e4, 6e-8), "bfloat16": (3e38, 1e-40), "float32": (3e38, 1e-45), "float64": (1.7e308, 5e-324)}
    largest, subnormal = info[dtype]
    offset = {"float16": 1e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}[dtype]
    ordinary = np.linspace(-3, 3, classes) if classes > 1 else np.array([0.5])
    rows: list[np.ndarray] = [ordinary, ordinary[::-1], np.zeros(classes), np.full(classes, -INF), ordinary + offset]
    rows += [np.full(classes, offset), np.full(classes, largest), np.arange(classes) * subnormal, ordinary * 1e-30]
    places = sorted({0, classes // 2, classes - 1})
    for at in places:
        for value in (INF, -INF, NAN, largest, -largest, 20.0, 80.0, 100.0, 700.0, 3.0):
            row = ordinary.copy()
            row[at] = value + (3 if 20 <= value < 1e3 else 0)
            rows.append(row)
        alone = np.full(classes, -INF)
        alone[at] = 1.5
        rows.append(alone)
        alone = np.full(classes, -largest)
        alone[at] = largest
        rows.append(alone)
        tie = ordinary.copy()
        tie[[at, (at + 1) % classes]] = 5.0
        rows.append(tie)
        near = np.full(classes, 1.0)
        near[at] = 1 + 2.0**-23
        rows.append(near)
        rows.append(np.where(np.arange(classes) == at, 0, -np.linspace(86, 104, classes)))  # exponentials fade out
        rows.append(np.where(np.arange(classes) == at, 0, -np.linspace(707, 746, classes)))
    for one, two in itertools.combinations(places, 2):
        for pair in ((INF, INF), (INF, NAN), (NAN, INF), (INF, -INF), (80.0, 80.0), (100.0, 0.0)):
            row = ordinary.copy()
            row[[one, two]] = pair
            rows.append(row)
    with np.errstate(all="ignore"):
        x = np.array([row for row in rows for _ in (*places, 0)]).astype(dtype_of(dtype))
    y = np.array([label for row in rows for label in (*places, np.argmax(row))])
    return x, y


def textbook(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Per row, in the widest type that there is: log(1 + sum of the others) + max - x_y."""
    wide = x.astype(np.longdouble)
    top, at = np.max(wide, axis=1), np.argmax(wide, axis=1)
    rows = np.arange(len(x))
    with np.errstate(all="ignore"):
        exps = np.exp(wide - top[:, None])
        exps[rows, at] = 0
        gap = np.where(wide[rows, y] == top, 0, top - wide[rows, y])
        found = np.log1p(np.sum(exps, axis=1)) + gap
    return np.where(np.all(np.isneginf(wide), axis=1), np.longdouble(NAN), found)


def items_of(loss: Any, *arrays: Any, formula: bool = False, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The items and the gradient of their sum."""
    with dispatch.generic() if formula else contextlib.nullcontext():
        items, gradient = polyloss.value_and_grad(loss)(*arrays, reduction="none", **options)
    return items, gradient


def near(items: np.ndarray, exact: np.ndarray, budget: Any, classes: int = 1, note: Any = "") -> None:
    """To so many ulp of the truth, which is in a wider type."""
    if np.finfo(exact.dtype).nmant < 60 and items.dtype == np.float64:
        return  # this platform has none
    with np.errstate(all="ignore"):
        exact = np.where(np.abs(exact) > np.finfo(items.dtype).max, np.sign(exact) * np.longdouble(INF), exact)
        finite = np.isfinite(exact)
        error = np.abs(np.where(finite, items - exact, 0)).astype(np.float64)
    np.testing.assert_array_equal(np.where(finite, 0, items), np.where(finite, 0, exact).astype(np.float64))
    error -= classes * float(unit(np.zeros(()), str(items.dtype)))
    share = error / unit(np.where(finite, exact, 0).astype(np.float64), str(items.dtype)) / budget
    assert np.max(share) <= 1, (note, np.argmax(share), np.max(share))


def same_limits(got: np.ndarray, expected: np.ndarray, note: Any = "") -> None:
    for of in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(of(got), of(expected), err_msg=str(note))


@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 32, 33, 257, 600])
def test_rows_at_their_limits(classes: int, dtype: str, ran: list[Any]) -> None:
    pytest.importorskip("mpmath")
    from polyloss.conformance.budget import spread

    loss = polyloss.softmax_cross_entropy
    x, y = edge_rows(classes, dtype)
    with np.errstate(all="ignore"):
        budget = 6 + math.log2(classes) + np.nan_to_num(spread(x.astype(np.float64)), nan=0, posinf=0)
    items, gradient = items_of(loss, x, y, formula=True)
    with_z = items_of(loss, x, y, z_loss=0.5, formula=True)
    for name in ("C", "Fortran", "every second"):
        given = LAYOUTS[name](x)
        ran.clear()
        got = items_of(loss, given, y)
        assert len(ran) == 1
        agree(got[0], items, classes, note=name)
        agree(got[1], gradient, classes, note=name)
        near(got[0], textbook(x, y), budget, classes, name)
        for one, two in zip(items_of(loss, given, y, z_loss=0.5), with_z, strict=True):
            same_limits(one, two, name)


@pytest.mark.parametrize("apart", [1, 255, 256, 257, 511])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_two_infinite_logits_are_nan_however_far_apart(apart: int, dtype: str) -> None:
    for first in (0, 1, 63, 250):
        x = np.zeros((1, 900), dtype)
        x[0, [first, first + apart]] = INF
        value, gradient = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, np.array([first]))
        assert np.isnan(value)
        assert np.isnan(gradient).all()


@every_dtype
def test_elements_at_their_limits(dtype: str, ran: list[Any]) -> None:
    loss = polyloss.sigmoid_cross_entropy
    largest = {"float16": 6e4, "float64": 1e308}.get(dtype, 3e38)
    least = {"float16": 6e-8, "float64": 5e-324}.get(dtype, 1e-45)
    sizes = [0.0, least, 1e-30, 1e-4, 0.3, 1.0, 17.0, 20.0, 80.0, 87.3, 88.8, 100.0, 103.9, 110.0, 700.0, 709.7, 745.0]
    logits = [sign * size for size in (*sizes, 800.0, 1e4, largest, INF) for sign in (1, -1)] + [NAN]
    targets = [0.0, 1.0, 0.5, 1e-30, NAN, 0.25]
    with np.errstate(all="ignore"):
        x, t = (np.array(a).astype(dtype_of(dtype)) for a in zip(*itertools.product(logits, targets), strict=True))
    for p, e in itertools.product((None, 0.0, 2.5), (0.0, 0.1, 1.0)):
        options = {"pos_weight": p, "label_smoothing": e}
        items, gradient = items_of(loss, x, t, formula=True, **options)
        for name in ("C", "reversed", "every second"):
            ran.clear()
            got = items_of(loss, LAYOUTS[name](x), LAYOUTS[name](t), **options)
            assert len(ran) == 1
            agree(got[0], items, note=(options, name))
            agree(got[1], gradient, larger=binary_terms(x, t, 1.0 if p is None else p, e), note=(options, name))
            near(got[0], _binary_textbook(x, t, 1.0 if p is None else p, e), 6, note=(options, name))


@every_dtype
def test_pairs_at_their_limits(dtype: str, ran: list[Any]) -> None:
    largest = 6e4 if dtype == "float16" else 3e38
    scores = [0.0, 1.0, -1.0, 20.0, 80.0, 100.0, -100.0, 1e4, largest, -largest, INF, -INF, NAN]
    positive, negative = (
        np.array(a).astype(dtype_of(dtype)) for a in zip(*itertools.product(scores, scores), strict=True)
    )
    for lay_out in (LAYOUTS["C"], LAYOUTS["reversed"]):
        got = items_of(polyloss.bpr, lay_out(positive), lay_out(negative))
        for one, two in zip(got, items_of(polyloss.bpr, positive, negative, formula=True), strict=True):
            agree(one, two)
    assert len(ran) == 2


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("weight", [None, 2.0])
def test_a_sum_that_is_too_large_is_infinite(library: str, classes: int, weight: float | None) -> None:
    """It is one of doubles, which torch does not convert."""
    xp = pytest.importorskip(library)
    x = np.zeros((4, classes), np.float32)
    x[:, 0] = 3e38
    logits, labels = xp.asarray(x), xp.asarray(np.array([1, 1, 2, 2]))
    options: dict[str, Any] = {"weights": None if weight is None else xp.asarray(np.full(4, weight, np.float32))}
    for _ in range(4):  # a call, one like it, and shortcuts
        for found in (
            polyloss.softmax_cross_entropy(logits, labels, **options, reduction="sum"),
            polyloss.value_and_grad(polyloss.softmax_cross_entropy)(logits, labels, **options, reduction="sum")[0],
        ):
            assert float(found) == INF and found.dtype == logits.dtype
    mean = polyloss.softmax_cross_entropy(logits, labels, **options, denominator=16.0)
    # Of few classes a block of rows is summed in single precision, and with a weight of 2 an item is infinite.
    assert float(mean) == (np.float32(3e38) / 4 if classes == 40 and weight is None else INF)


def _binary_textbook(x: np.ndarray, t: np.ndarray, p: float, e: float) -> np.ndarray:
    """Of smoothed targets, ``p t softplus(-x) + (1 - t) softplus(x)``, in the widest type that there is."""
    x, t = x.astype(np.longdouble), t.astype(np.longdouble)
    with np.errstate(all="ignore"):
        a, b = (
            p * (t * (1 - np.longdouble(e)) + np.longdouble(e) / 2),
            (1 - t) * (1 - np.longdouble(e)) + np.longdouble(e) / 2,
        )

        def term(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
            softplus = np.where(x > 0, x, 0) + np.log1p(np.exp(-np.abs(x)))
            return np.where((weight == 0) & np.isinf(softplus), 0, weight * softplus)

        return np.asarray(term(a, -x) + term(b, x))


# Sizes.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257])
def test_any_number_of_items(n: int, dtype: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(n)
    for classes in (3, 40):
        for axis in (0, 1):
            x, y = logits_and_labels((n, classes) if axis else (classes, n), axis, dtype)
            agree_all(
                results(polyloss.softmax_cross_entropy, x, y, axis=axis),
                generic(polyloss.softmax_cross_entropy, x, y, axis=axis),
                classes,
            )
    x, t = rng.standard_normal(n).astype(dtype), rng.uniform(0, 1, n).astype(dtype)
    expected = generic(polyloss.sigmoid_cross_entropy, x, t)
    agree_all(results(polyloss.sigmoid_cross_entropy, x, t), expected, larger=binary_terms(x, t))
    agree_all(results(polyloss.bpr, x, t), generic(polyloss.bpr, x, t))
    assert len(ran) == 12


@pytest.mark.parametrize(
    "classes", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 30, 34, 63, 64, 65, 255, 256, 257, 511, 513, 2049]
)
def test_any_number_of_classes(classes: int, ran: list[Any]) -> None:
    for axis in (0, 1):
        x, y = logits_and_labels((67, classes) if axis else (classes, 67), axis, "float32")
        agree_all(
            results(polyloss.softmax_cross_entropy, x, y, axis=axis),
            generic(polyloss.softmax_cross_entropy, x, y, axis=axis),
            classes,
        )
    assert len(ran) == 4


def test_nothing_at_all() -> None:
    for shape in ((0,), (0, 5), (3, 0), (2, 0, 3)):
        x = np.zeros(shape, np.float32)
        for loss in (polyloss.sigmoid_cross_entropy, polyloss.bpr):
            agree_all(results(loss, x, x), generic(loss, x, x))
    for shape, axis in (((0, 5), 1), ((0, 5, 3), 1), ((3, 5, 0), 1), ((5, 0), 0)):
        x = np.zeros(shape, np.float32)
        y = np.zeros(shape[:axis] + shape[axis + 1 :], int)
        got = results(polyloss.softmax_cross_entropy, x, y, axis=axis)
        agree_all(got, generic(polyloss.softmax_cross_entropy, x, y, axis=axis))
        assert np.isnan(got[0])
        assert polyloss.softmax_cross_entropy(x, y, axis=axis, reduction="sum") == 0


def test_a_single_number(ran: list[Any]) -> None:
    x = np.array(0.5, np.float32)
    for loss, arrays in (
        (polyloss.sigmoid_cross_entropy, (x, np.array(1.0, np.float32))),
        (polyloss.sigmoid_cross_entropy, (x, np.array(1))),
        (polyloss.bpr, (x, x)),
        (polyloss.softmax_cross_entropy, (np.array([0.5, 1, 2], np.float32), np.array(1))),
        (polyloss.softmax_cross_entropy, (np.linspace(0, 1, 40), np.array(1))),
    ):
        got = results(loss, *arrays)
        assert type(got[0]) is type(got[2]) is (np.float64 if arrays[0].dtype == np.float64 else np.float32)
        agree_all(got, generic(loss, *arrays), 40)
    assert len(ran) == 2 * 4  # the difference of two 0-d arrays is no array


@pytest.mark.parametrize("blocks", [2, 200])
def test_infinite_losses_of_both_signs_sum_to_nan(blocks: int) -> None:
    """Few partial sums are added exactly, many by NumPy; neither raises or warns."""
    x = np.zeros(256 * blocks, np.float32)
    x[[0, -1]], w = INF, np.ones_like(x)
    w[-1] = -1
    value, gradient = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)(
        x, np.zeros_like(x), weights=w, reduction="sum"
    )
    assert np.isnan(value)
    assert np.isfinite(gradient).all()
