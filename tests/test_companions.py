"""What goes with the logits in a kernel: weights, masks and targets, broadcast and in any layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layouts import (
    INF,
    LAYOUTS,
    NAN,
    UNALIGNED,
    agree,
    agree_all,
    binary_terms,
    generic,
    logits_and_labels,
    results,
)

import polyloss

SHAPE = (4, 15, 10)  # more than two blocks of the kernel


def leading_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What `weights` and `where` may look like."""
    full = [(), shape[:1], shape[:2], shape]
    ones = [tuple(1 if one else n for one, n in zip(which, shape)) for which in itertools.product([0, 1], repeat=3)]
    return sorted({*full, *ones, (1,), (1, shape[1]), (shape[0], 1)})


def spoil(a: np.ndarray, keep: np.ndarray, worst: Any) -> np.ndarray:
    """``a`` with the worst possible number in masked items."""
    return np.where(np.broadcast_to(keep, a.shape), a, worst).astype(a.dtype)


@pytest.mark.parametrize("where", leading_shapes(SHAPE), ids=str)
def test_sigmoid_cross_entropy_with_all_that_broadcasts(where: tuple[int, ...], ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE, np.float32)
    t = rng.uniform(0, 1, SHAPE).astype(np.float32)
    keep = rng.uniform(0, 1, where) < 0.6
    full = np.broadcast_to(keep.reshape(where + (1,) * (3 - len(where))), SHAPE)
    bad_x, bad_t = spoil(x, full, NAN), spoil(t, full, 7)
    for weights in (None, *leading_shapes(SHAPE)):
        for positive in (None, (), (1,), SHAPE[2:], (15, 1), SHAPE[1:], (4, 1, 1), (4, 1, 10), SHAPE):
            options: dict[str, Any] = {"where": keep}
            if weights is not None:
                options["weights"] = rng.uniform(-1, 2, weights).astype(np.float32)
            if positive is not None:
                options["pos_weight"] = rng.uniform(0, 3, positive).astype(np.float32)
            note = weights, positive
            expected = generic(polyloss.sigmoid_cross_entropy, x, t, **options)
            larger = binary_terms(x, t, options.get("pos_weight", 1.0))
            if weights is not None:
                larger = larger * np.abs(options["weights"].reshape(weights + (1,) * (3 - len(weights))))
            for name in options.keys() - {"where"}:
                if options[name].shape == SHAPE:
                    options[name] = spoil(options[name], full, NAN)
            ran.clear()
            got = results(polyloss.sigmoid_cross_entropy, bad_x, bad_t, **options)
            assert len(ran) == 2
            agree_all(got, expected, 1, note, larger=larger)
            assert not np.any(got[1][~full]) and not np.any(got[2][~full]) and not np.any(got[3][~full]), note


@pytest.mark.parametrize("classes", [6, 40])
@pytest.mark.parametrize("where", leading_shapes((4, 9, 4)), ids=str)
def test_softmax_cross_entropy_with_all_that_broadcasts(where: tuple[int, ...], classes: int, ran: list[Any]) -> None:
    rng = np.random.default_rng(1)
    items = (4, 9, 4)
    keep = rng.uniform(0, 1, where) < 0.6
    full = np.broadcast_to(keep.reshape(where + (1,) * (3 - len(where))), items)
    y = rng.integers(0, classes, items)
    weight_shapes = (None, *leading_shapes(items))
    others = ((False, None), (True, 2), (False, -100))
    for axis, (weights, (class_weights, ignored)) in zip(
        itertools.cycle((3, 0, 1, 2)), itertools.product(weight_shapes, others), strict=False
    ):
        x = np.moveaxis(rng.standard_normal((*items, classes), np.float32), -1, axis)
        mask = np.expand_dims(full, axis)
        options: dict[str, Any] = {"where": keep, "axis": axis, "ignore_index": ignored}
        if weights is not None:
            options["weights"] = rng.uniform(0.1, 2, weights).astype(np.float32)
        if class_weights:
            options["class_weights"] = rng.uniform(0.1, 2, classes).astype(np.float32)
        note = axis, weights, class_weights, ignored
        expected = generic(polyloss.softmax_cross_entropy, x, y, **options)
        if weights == items:
            options["weights"] = spoil(options["weights"], full, NAN)
        ran.clear()
        got = results(polyloss.softmax_cross_entropy, spoil(x, mask, NAN), spoil(y, full, -5), **options)
        assert len(ran) == 2
        agree_all(got, expected, classes, note)
        off = np.broadcast_to(~mask, x.shape)
        assert not np.any(got[1][off]) and not np.any(got[2][~full]) and not np.any(got[3][off]), note


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [10, 40])
def test_z_loss_on_every_axis(classes: int, dtype: str, ran: list[Any]) -> None:
    for axis in range(3):
        shape = [3, 23]
        shape.insert(axis, classes)
        x, y = logits_and_labels(tuple(shape), axis, dtype)
        x += 9  # so that the log-sum-exp is not the difference of two numbers
        for z in (1e-4, 0.5):
            expected = generic(polyloss.softmax_cross_entropy, x, y, axis=axis, z_loss=z)
            ran.clear()
            for name in ("C", "Fortran", "every second", "rotated"):
                got = results(polyloss.softmax_cross_entropy, LAYOUTS[name](x), y, axis=axis, z_loss=z)
                for one, two in ((got[0], expected[0]), (got[2], expected[2])):
                    agree(one, two, classes * y.size, note=(name, axis, z))
                # The gradient is 2 z lse p + p - 1 at the label.
                larger = np.max(np.abs(got[3])) + 1
                agree(got[3], expected[3], classes, larger=larger, note=(name, axis, z))
            assert len(ran) == 8


SOFT: dict[str, dict[str, Any]] = {
    "soft targets": {"soft": True},
    "smoothing": {"label_smoothing": 0.1},
    "a class mask": {"masked": True},
    "smoothed labels of a masked class": {"masked": True, "label_smoothing": 0.1},
    "all at once": {"soft": True, "masked": True, "weighted": True, "label_smoothing": 0.25, "z_loss": 1e-2},
}


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 257])
def test_soft_smoothed_and_masked_targets_of_any_layout(classes: int, name: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    options = dict(SOFT[name])
    soft, masked, weighted = (options.pop(key, False) for key in ("soft", "masked", "weighted"))
    for axis in range(3):
        shape = [3, 7]
        shape.insert(axis, classes)
        x, y = logits_and_labels(tuple(shape), axis, "float32")
        x += 9
        t = rng.uniform(0, 1, shape).astype(np.float32) if soft else y
        if masked:
            options["class_mask"] = rng.uniform(0, 1, classes) < 0.8
            options["class_mask"][y.min()] = True
        if weighted:
            options["class_weights"] = rng.uniform(0.5, 2, classes).astype(np.float32)
        for masks in ("one", "many") if masked else ("one",):
            if masks == "many":
                options["class_mask"] = np.moveaxis(rng.uniform(0, 1, (3, 7, classes)) < 0.8, -1, axis)
            expected = generic(polyloss.softmax_cross_entropy, x, t, axis=axis, **options)
            for layout in ("C", "Fortran", "reversed", "every second", "rotated", "field of a packed structure"):
                got = results(
                    polyloss.softmax_cross_entropy, LAYOUTS[layout](x), LAYOUTS[layout](t), axis=axis, **options
                )
                # A sum over the classes of q times the gap has no cancellation; a gradient is p Q - q.
                note = name, axis, layout, masks
                agree(got[2], expected[2], classes, note=note)
                larger = np.where(np.isfinite(expected[3]), np.abs(expected[3]), 0).max() + 2 * classes
                agree(got[3], expected[3], 1, larger=larger, note=note)
                agree(got[0], expected[0], classes * y.size, note=note)


@pytest.mark.parametrize("kept", ["first half", "second half", "every third"])
@pytest.mark.parametrize("size", [256, 257, 512, 700])
def test_a_mask_in_one_block_of_elements_leaves_the_others_alone(size: int, kept: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    at = np.arange(size)
    keep = {"first half": at < size // 2, "second half": at >= size // 2, "every third": at % 3 == 0}[kept]
    x, t, w = rng.standard_normal(size), rng.uniform(0, 1, size), rng.uniform(0.5, 2, size)
    for loss, options in (
        (polyloss.sigmoid_cross_entropy, {"targets": t}),
        (polyloss.sigmoid_cross_entropy, {"targets": t, "weights": w}),
        (polyloss.sigmoid_cross_entropy, {"targets": t, "pos_weight": w}),
        (polyloss.sigmoid_cross_entropy, {"targets": at % 2}),
        (polyloss.bpr, {"negative_scores": t}),
        (polyloss.bpr, {"negative_scores": t, "weights": w}),
    ):
        expected = generic(loss, x, where=keep, **options)
        agree_all(results(loss, x, where=keep, **options), expected, note=(loss.__name__, [*options]), larger=3.0)
    assert len(ran) == 12


def test_a_masked_item_adds_nothing_whatever_it_is_divided_by(ran: list[Any]) -> None:
    """Where the denominator is so small that its reciprocal is infinite."""
    keep, y = np.array([True, False, True]), np.ones(3, int)
    for denominator in (1e-39, 1e-45):
        options = {"where": keep, "denominator": denominator, "reduction": "mean"}
        for loss, x in (
            (polyloss.sigmoid_cross_entropy, np.zeros(3)),
            (polyloss.softmax_cross_entropy, np.zeros((3, 2))),
        ):
            assert not np.any(polyloss.grad(loss)(x.astype(np.float32), y, **options)[1])
    assert len(ran) == 4


def test_a_sum_beyond_the_largest_number_is_infinite_without_a_warning() -> None:
    for dtype, largest in (("float32", 3e38), ("float64", 1.7e308)):
        x, t = np.full(600, largest, dtype), np.zeros(600, int)
        assert polyloss.sigmoid_cross_entropy(x, t, reduction="sum") == INF
        rows = np.array([[largest / 2, -largest / 4]] * 8, dtype)
        assert polyloss.softmax_cross_entropy(rows, np.ones(8, int), reduction="sum") == INF
        assert polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)(x, t, denominator=0.5)[0] == INF


def test_infinities_of_both_signs_are_nan_without_a_warning() -> None:
    x, w = np.zeros(600), np.ones(600)
    x[[0, 300]], w[300] = INF, -1
    assert np.isnan(polyloss.sigmoid_cross_entropy(x, np.zeros(600), weights=w, reduction="sum"))


class Mine(np.ndarray):
    """An array of someone else's."""


STRANGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: LAYOUTS[name] for name in (*UNALIGNED, "reversed", "every second", "read-only", "Fortran")},
    "subclass": lambda a: a.view(Mine),
}


@pytest.mark.parametrize("layout", STRANGE)
@pytest.mark.parametrize("argument", ["weights", "where", "pos_weight", "targets", "logits"])
def test_a_companion_of_any_layout_is_read_right_by_the_softplus_kernel(argument: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "logits": rng.standard_normal((5, 70), np.float32),
        "targets": rng.uniform(0, 1, (5, 70)).astype(np.float32),
        "weights": rng.uniform(0.5, 2, (5, 70)).astype(np.float32),
        "where": rng.uniform(0, 1, (5, 70)) < 0.7,
        "pos_weight": rng.uniform(0.5, 2, (5, 70)).astype(np.float32),
    }
    expected = generic(polyloss.sigmoid_cross_entropy, **arrays)
    larger = arrays["weights"] * binary_terms(arrays["logits"], arrays["targets"], arrays["pos_weight"])
    arrays[argument] = STRANGE[layout](arrays[argument])
    agree_all(results(polyloss.sigmoid_cross_entropy, **arrays), expected, larger=larger)


@pytest.mark.parametrize("layout", STRANGE)
@pytest.mark.parametrize("argument", ["weights", "where", "class_weights", "targets", "logits"])
@pytest.mark.parametrize("classes", [7, 40])
def test_a_companion_of_any_layout_is_read_right_by_the_row_kernels(argument: str, layout: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "logits": rng.standard_normal((5, 14, classes), np.float32),
        "targets": rng.integers(0, classes, (5, 14)),
        "weights": rng.uniform(0.5, 2, (5, 14)).astype(np.float32),
        "where": rng.uniform(0, 1, (5, 14)) < 0.7,
        "class_weights": rng.uniform(0.5, 2, classes).astype(np.float32),
    }
    expected = generic(polyloss.softmax_cross_entropy, **arrays)
    arrays[argument] = STRANGE[layout](arrays[argument])
    agree_all(results(polyloss.softmax_cross_entropy, **arrays), expected, classes, (argument, layout))
