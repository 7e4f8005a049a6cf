"""Kernels take arrays as they lie in memory, in any layout and dtype: the formula's numbers every time."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import (
    HALVES,
    LAYOUTS,
    UNALIGNED,
    agree_all,
    binary_terms,
    check_layouts,
    dtype_of,
    every_dtype,
    generic,
    logits_and_labels,
    results,
)

import polyloss
from polyloss.backends.cpu import host

CLASSES = [1, 2, 10, 31, 32, 33, 40, 1000]


@every_dtype
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("classes", CLASSES)
def test_softmax_cross_entropy_of_any_layout(classes: int, axis: int, dtype: str, ran: list[Any]) -> None:
    shape = [3, 23] if classes < 1000 else [2, 17]
    shape.insert(axis, classes)
    check_layouts(
        polyloss.softmax_cross_entropy, [*logits_and_labels(tuple(shape), axis, dtype)], ran, classes, axis=axis
    )


@every_dtype
def test_sigmoid_cross_entropy_of_any_layout(dtype: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1,), (5,), (300,), (7, 13), (3, 5, 41), (2, 3, 2, 50)):
        x = (3 * rng.standard_normal(shape)).astype(dtype_of(dtype))
        t = rng.uniform(0, 1, shape).astype(dtype_of(dtype))
        check_layouts(polyloss.sigmoid_cross_entropy, [x, t], ran, 1)


@every_dtype
def test_bpr_of_any_layout(dtype: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    for shape in ((300,), (3, 5, 41)):
        positive, negative = (3 * rng.standard_normal((2, *shape))).astype(dtype_of(dtype))
        check_layouts_of_pairs(positive, negative, ran)
    positive, negative = rng.standard_normal((5, 7)), rng.standard_normal((5, 7, 11))
    check_layouts_of_pairs(positive.astype(dtype_of(dtype)), negative.astype(dtype_of(dtype)), ran)


def check_layouts_of_pairs(positive: np.ndarray, negative: np.ndarray, ran: list[Any]) -> None:
    expected = generic(polyloss.bpr, positive, negative)
    for name, lay_out in LAYOUTS.items():
        ran.clear()
        got = results(polyloss.bpr, lay_out(positive), lay_out(negative))
        assert len(ran) == 2, (name, "takes no kernel")
        agree_all(got, expected, negative.size // positive.size, name)


def test_a_memory_mapped_file_is_read_and_not_written(tmp_path: Path, ran: list[Any]) -> None:
    x, y = logits_and_labels((40, 50), 1, "float32")
    expected = results(polyloss.softmax_cross_entropy, x, y)
    for name, a in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", a)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for mode in ("r", "r+", "c"):
        ran.clear()
        given = [np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in "xy"]
        assert all(isinstance(a, np.memmap) for a in given)
        for one, two in zip(results(polyloss.softmax_cross_entropy, *given), expected, strict=True):
            assert type(one) in (np.ndarray, np.float32)
            np.testing.assert_array_equal(one, two)
        assert len(ran) == 2
        del given
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("classes", [3, 40])
def test_broadcast_arrays_of_stride_0(classes: int, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    for axis in range(3):
        shape = [5, 19]
        shape.insert(axis, classes)
        for ones in itertools.product([False, True], repeat=3):
            small = tuple(1 if one else n for one, n in zip(ones, shape))
            x = np.broadcast_to(rng.standard_normal(small, np.float32), shape)
            items = tuple(n for i, n in enumerate(shape) if i != axis)
            y = np.broadcast_to(rng.integers(0, classes, items[1:]), items)
            expected = generic(polyloss.softmax_cross_entropy, x.copy(), y.copy(), axis=axis)
            ran.clear()
            agree_all(results(polyloss.softmax_cross_entropy, x, y, axis=axis), expected, classes, (axis, small))
            assert len(ran) == 2
            t = np.broadcast_to(rng.uniform(0, 1, small[1:]).astype(np.float32), shape)
            expected = generic(polyloss.sigmoid_cross_entropy, x.copy(), t.copy())
            got = results(polyloss.sigmoid_cross_entropy, x, t)
            agree_all(got, expected, 1, small, larger=binary_terms(x, t))


LABELS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("classes", [2, 40])
def test_labels_of_any_integer_dtype_and_layout(classes: int, kind: str, ran: list[Any]) -> None:
    x, y = logits_and_labels((9, 31, classes), 2, "float32")
    expected = generic(polyloss.softmax_cross_entropy, x, y)
    for name, lay_out in LAYOUTS.items():
        ran.clear()
        agree_all(results(polyloss.softmax_cross_entropy, x, lay_out(y.astype(kind))), expected, classes, name)
        assert len(ran) == 2 * (name not in UNALIGNED or kind.endswith("8"))
    for bad in {-1 if kind.startswith("int") else 255, classes, np.iinfo(kind).max} - set(range(classes)):
        wrong = y.astype(kind)
        wrong[4, 20] = bad
        for lay_out in LAYOUTS.values():
            with pytest.raises(ValueError, match=rf"got {bad} at index \(4, 20\)"):
                polyloss.softmax_cross_entropy(x, lay_out(wrong))


def test_a_label_that_float32_cannot_hold(ran: list[Any]) -> None:
    classes = 2**24 + 2  # all in one place, so that they take no memory
    x = np.broadcast_to(np.zeros((1, 16), np.float32), (classes, 16))
    weights = np.ones(classes, np.float32)
    weights[-1] = 3
    y = np.full(16, classes - 1)
    found = polyloss.softmax_cross_entropy(x, y, axis=0, class_weights=weights, reduction="none")
    np.testing.assert_allclose(found, 3 * math.log(classes), rtol=1e-5)
    y[5] += 1
    with pytest.raises(ValueError, match=r"at index \(5,\)"):
        polyloss.softmax_cross_entropy(x, y, axis=0)
    assert len(ran) == 2


@pytest.mark.parametrize("classes", [3, 40])
def test_rows_that_are_more_than_2_to_the_31_elements_apart(classes: int, tmp_path: Path, ran: list[Any]) -> None:
    far = 2**31 + 8
    path = tmp_path / "sparse"
    try:
        path.touch()
        os.truncate(path, 4 * (2 * far + classes))
        memory = np.memmap(path, np.float32, "r+").view(np.ndarray)
    except (OSError, ValueError, OverflowError):
        pytest.skip("there is no room for a sparse file of 17 GB")
    x = np.lib.stride_tricks.as_strided(memory, (3, classes), (4 * far, 4))
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    for loss, y in ((polyloss.softmax_cross_entropy, np.array([1, 0, 2])), (polyloss.sigmoid_cross_entropy, x * 0)):
        agree_all(results(loss, x, y), generic(loss, x.copy(), y), classes)
    assert len(ran) == 4
    os.truncate(path, 0)


@pytest.mark.parametrize("argument", ["logits", "targets"])
def test_float16_is_left_to_the_formula_where_the_processor_cannot_convert_it(
    argument: str, monkeypatch: pytest.MonkeyPatch, ran: list[Any]
) -> None:
    """LLVM would call a function of the C compiler's library, which is not there."""
    monkeypatch.setattr(host, "converts_halves", lambda: False)
    arrays = {"logits": np.zeros(9, np.float32), "targets": np.ones(9, np.float32)}
    arrays[argument] = arrays[argument].astype(np.float16)
    np.testing.assert_allclose(polyloss.sigmoid_cross_entropy(**arrays), math.log(2), rtol=1e-6)
    assert ran == []


def test_boolean_labels(ran: list[Any]) -> None:
    x, y = logits_and_labels((70, 2), 1, "float32")
    expected = generic(polyloss.softmax_cross_entropy, x, y)
    agree_all(results(polyloss.softmax_cross_entropy, x, y.astype(bool)), expected, 2)
    assert len(ran) == 2


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", pytest.param("float16", marks=HALVES), "float64"])
def test_targets_of_any_dtype_and_layout(kind: str, ran: list[Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 41), np.float32)
    t = (
        rng.uniform(0, 1, x.shape).astype(kind)
        if kind.startswith("float")
        else rng.integers(0, 2, x.shape).astype(kind)
    )
    check_layouts(polyloss.sigmoid_cross_entropy, [x, t], ran, 1)


def test_arrays_in_byte_order_of_another_machine_are_refused_or_right() -> None:
    x, y = logits_and_labels((20, 7), 1, "float32")
    expected = generic(polyloss.softmax_cross_entropy, x, y)
    agree_all(results(polyloss.softmax_cross_entropy, x, y.astype(">i8")), expected, 7)
    with pytest.raises(TypeError, match="got >f4"):
        polyloss.softmax_cross_entropy(x.astype(">f4"), y)
