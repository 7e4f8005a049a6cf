"""Kernels take arrays as they lie in memory, broadcast, masked and at their limits: the formula's numbers every time.

Both routes round the same differences ``x - max x`` and take the exponentials of the same numbers, so an error that
comes from there is in both. What may differ is the exponential and the logarithm themselves (1 ulp in a kernel, 2.4 in
NumPy), the sum of K terms, and a few roundings after. That is the budget of `polyloss.conformance.budget` without its
spread: ``6 + log2 K`` ulp. A gradient in 16 bits is the rounding of one in 32, and may be off by one of its own ulp.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest

import polyloss
from polyloss import dispatch

pytest.importorskip("llvmlite")

from polyloss.backends.cpu import compiled, host

INF, NAN = math.inf, math.nan
CLASSES = [1, 2, 10, 31, 32, 33, 40, 1000]
HALVES = pytest.mark.skipif(not host.converts_halves(), reason="this processor does not convert float16")
BRAINS = pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="NumPy has bfloat16 from ml_dtypes")

every_dtype = pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", pytest.param("float16", marks=HALVES), pytest.param("bfloat16", marks=BRAINS)],
)


def dtype_of(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


# Comparing.

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
LEAST = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}


def unit(x: np.ndarray, dtype: str) -> Any:
    """One ulp of these numbers."""
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.where(np.isfinite(x), np.abs(x), 0))[1] - 1
    exponent = np.where(x == 0, LEAST[dtype], np.maximum(exponent, LEAST[dtype]))
    return np.ldexp(1.0, np.maximum(exponent - MANTISSA[dtype], -1074))


def agree(got: Any, expected: Any, classes: int = 1, *, larger: Any = 0.0, note: Any = "") -> None:
    """NaN and infinity in the same places, all else to the budget; ``larger`` is a term that the formula subtracts."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype, note
    assert got.shape == expected.shape, note
    dtype = str(got.dtype)
    budget = 1.0 if dtype in ("float16", "bfloat16") else 6 + math.log2(classes)
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b), err_msg=str(note))
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), larger)
    floor = classes * float(unit(np.zeros(()), dtype))  # each term may lose a subnormal number
    error = np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)) - floor, 0) / unit(size, dtype)
    assert np.max(error, initial=0) <= budget, (note, float(np.max(error)), np.unravel_index(np.argmax(error), a.shape))


def to_numpy(x: Any) -> np.ndarray:
    """An array of NumPy, or of torch, whose bfloat16 NumPy does not know."""
    if hasattr(x, "detach"):
        x = x.detach()
        if "bfloat16" in str(x.dtype):
            return x.float().numpy().astype(dtype_of("bfloat16"))
        return x.numpy()
    return np.asarray(x)


def results(loss: Any, *arrays: Any, **options: Any) -> list[Any]:
    """The mean and its gradient, the items and theirs."""
    both = polyloss.value_and_grad(loss)
    return [*both(*arrays, **options), *both(*arrays, reduction="none", **options)]


def generic(loss: Any, *arrays: Any, **options: Any) -> list[Any]:
    with dispatch.generic():
        return results(loss, *arrays, **options)


def agree_all(got: list[Any], expected: list[Any], classes: int = 1, note: Any = "", *, larger: Any = 0.0) -> None:
    """For `results`. Items of either sign may cancel in a mean; ``larger`` is of the gradient of the items."""
    mean, slopes, items, item_slopes = map(to_numpy, expected)
    sizes = [
        np.abs(np.nan_to_num(x.astype(np.float64), nan=0, posinf=0, neginf=0)) for x in (slopes, items, item_slopes)
    ]
    most, total, item_most = np.max(sizes[0], initial=0), np.sum(sizes[1]), np.max(sizes[2], initial=0)
    ratio = most / item_most if item_most else 0.0  # of the two gradients, and so of the two values
    agree(to_numpy(got[2]), items, classes, note=(note, "items"))
    agree(to_numpy(got[3]), item_slopes, classes, larger=larger, note=(note, "gradient of items"))
    agree(to_numpy(got[0]), mean, classes * max(1, items.size), larger=total * ratio, note=(note, "mean"))
    agree(to_numpy(got[1]), slopes, classes, larger=larger * ratio, note=(note, "gradient"))


def binary_terms(x: Any, t: Any, p: Any = 1.0, e: float = 0.0) -> np.ndarray:
    """The larger term of the derivative of `sigmoid_cross_entropy`, ``b s(x) - a s(-x)``."""
    x, t, p = (to_numpy(a).astype(np.float64) if hasattr(a, "dtype") else a for a in (x, t, p))
    with np.errstate(all="ignore"):
        s, r = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        a, b = p * (t * (1 - e) + e / 2), (1 - t) * (1 - e) + e / 2
        return np.asarray(np.nan_to_num(np.maximum(np.abs(a * r), np.abs(b * s)), posinf=0, neginf=0))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that have been asked for."""
    found: list[Any] = []
    kernel = compiled.kernel

    def asking(*key: Any) -> Any:
        found.append(key)
        return kernel(*key)

    monkeypatch.setattr(compiled, "kernel", asking)
    return found


# The layouts of NumPy: each makes of an array the same numbers elsewhere.


def _copied(base: np.ndarray, index: tuple[Any, ...], a: np.ndarray) -> np.ndarray:
    view: np.ndarray = base[index]
    view[...] = a
    return view


def _every_second(a: np.ndarray) -> np.ndarray:
    return _copied(np.ones([2 * n for n in a.shape], a.dtype), (slice(None, None, 2),) * a.ndim, a)


def _inside(a: np.ndarray) -> np.ndarray:
    return _copied(np.ones([n + 2 for n in a.shape], a.dtype), (slice(1, -1),) * a.ndim, a)


def _reversed(a: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(a).copy())


def _rotated(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


def _swapped(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 0, -1)), 0, -1)


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _field(a: np.ndarray) -> np.ndarray:
    return _copied(np.zeros(a.shape, [("x", a.dtype), ("y", a.dtype)])["x"], (...,), a)


def _packed_field(a: np.ndarray) -> np.ndarray:
    return _copied(np.zeros(a.shape, [("flag", "i1"), ("x", a.dtype)])["x"], (...,), a)


def _odd_address(a: np.ndarray) -> np.ndarray:
    return _copied(np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), 1), (...,), a)


def _mapped(a: np.ndarray) -> np.ndarray:
    memory = mmap.mmap(-1, max(1, a.nbytes))
    return _copied(np.ndarray(a.shape, a.dtype, memory), (...,), a)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": _reversed,
    "first axis reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a,
    "every second": _every_second,
    "every second of the first axis": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    "inside a larger one": _inside,
    "rotated": _rotated,
    "swapped": lambda a: _swapped(a) if a.ndim else a,
    "read-only": _read_only,
    "field of a structure": _field,
    "field of a packed structure": _packed_field,
    "at an odd address": _odd_address,
    "memory-mapped": _mapped,
}
UNALIGNED = ("field of a packed structure", "at an odd address")


def logits_and_labels(shape: tuple[int, ...], axis: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(shape[axis])
    x = (3 * rng.standard_normal(shape)).astype(dtype_of(dtype))
    return x, rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])


def check_layouts(loss: Any, arrays: list[np.ndarray], ran: list[Any], classes: int, **options: Any) -> None:
    expected = generic(loss, *arrays, **options)
    larger = binary_terms(*arrays) if loss is polyloss.sigmoid_cross_entropy else 0.0
    assert ran == []
    plain: tuple[list[Any], list[Any]] | None = None
    for name, lay_out in LAYOUTS.items():
        given = [lay_out(a) for a in arrays]
        before = [a.tobytes() for a in given]
        ran.clear()
        got = results(loss, *given, **options)
        keys = list(ran)
        ran.clear()
        if name not in UNALIGNED:
            assert len(keys) == 2, (name, "takes no kernel")
        agree_all(got, expected, classes, name, larger=larger)
        if plain is None:
            plain = keys, got
        elif keys == plain[0]:  # the same kernel: the same bits, item by item
            for one, two in zip(got[2:], plain[1][2:], strict=True):
                np.testing.assert_array_equal(one, two, err_msg=name)
        assert [a.tobytes() for a in given] == before, (name, "an input was written")
        for i, a in enumerate(got):
            for other in (*given, *got[:i]):
                assert not np.shares_memory(a, other), (name, "results share memory")


# Every layout.


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


# What goes with them: weights, masks, and so on.

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


# torch.

TORCH_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda x: x.clone(),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "channels last": lambda x: x.clone().contiguous(memory_format=_channels_last()),
    "every second": lambda x: x.repeat_interleave(2, 0).repeat_interleave(2, 3)[::2, :, :, ::2],
    "every second class": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "with an offset": lambda x: x.new_ones(5, *x.shape).copy_(x)[3],
    "negative": lambda x: (-x).clone()._neg_view(),
}


def _channels_last() -> Any:
    import torch

    return torch.channels_last


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("float16", marks=HALVES), "bfloat16"])
@pytest.mark.parametrize("classes", [3, 40])
def test_tensors_of_any_layout(classes: int, dtype: str, ran: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(3, classes, 5, 7, generator=generator)).to(getattr(torch, dtype))
    y = torch.randint(0, classes, (3, 5, 7), generator=generator)
    t = torch.rand(x.shape, generator=generator).to(x.dtype)
    negative = torch.randn(x.shape, generator=generator).to(x.dtype)
    for loss, other, options in (
        (polyloss.softmax_cross_entropy, y, {"axis": 1}),
        (polyloss.sigmoid_cross_entropy, t, {}),
        (polyloss.bpr, negative, {}),
    ):
        expected = generic(loss, x, other, **options)
        k = classes if loss is polyloss.softmax_cross_entropy else 1
        larger = binary_terms(x, t) if loss is polyloss.sigmoid_cross_entropy else 0.0
        for name, lay_out in TORCH_LAYOUTS.items():
            given, before = lay_out(x), x.clone()
            second = other if other.ndim == 3 else lay_out(other)
            ran.clear()
            got = results(loss, given, second, **options)
            if name != "negative":
                assert len(ran) == 2, name
            agree_all(got, expected, k, (loss.__name__, name), larger=larger)
            assert torch.equal(given.resolve_neg(), before)
            backward = []
            for reduction in ("mean", "none"):
                leaf = lay_out(x).requires_grad_()
                value = loss(leaf, second, reduction=reduction, **options)
                value.sum().backward()
                backward += [value, leaf.grad]
            agree_all(backward, expected, k, (loss.__name__, name, "backward"), larger=larger)


@pytest.mark.parametrize("classes", [3, 40])
def test_expanded_tensors(classes: int, ran: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for small in itertools.product([False, True], repeat=4):
        shape = [3, classes, 5, 7]
        x = torch.randn([1 if one else n for one, n in zip(small, shape)], generator=generator).expand(shape)
        y = torch.randint(0, classes, (1, 5, 1), generator=generator).expand(3, 5, 7)
        expected = generic(polyloss.softmax_cross_entropy, x.contiguous(), y.contiguous(), axis=1)
        ran.clear()
        agree_all(results(polyloss.softmax_cross_entropy, x, y, axis=1), expected, classes, small)
        assert len(ran) == 2
        t = torch.rand(7, generator=generator).expand(shape)
        expected = generic(polyloss.sigmoid_cross_entropy, x.contiguous(), t.contiguous())
        agree_all(results(polyloss.sigmoid_cross_entropy, x, t), expected, 1, small, larger=binary_terms(x, t))


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("argument", ["weights", "pos_weight", "targets", "class_weights"])
def test_negative_views_of_torch_are_read_with_their_sign(argument: str, contiguous: bool) -> None:
    """The imaginary part of a conjugate: its memory holds the numbers with the other sign."""
    torch = pytest.importorskip("torch")
    numbers = torch.linspace(0.1, 0.9, 6)
    view = torch.complex(torch.zeros(6), -numbers).conj().imag
    if contiguous:  # as that of a single number is, and the copy of a copy
        view = numbers.neg()._neg_view()
    assert view.is_neg() and torch.equal(view, numbers) and view.is_contiguous() == contiguous
    x = torch.linspace(-2, 2, 36).reshape(6, 6)
    if argument == "class_weights":
        calls: list[Any] = [
            (polyloss.softmax_cross_entropy, (x, torch.arange(6)), {argument: view}, {argument: numbers})
        ]
    elif argument == "targets":
        calls = [(polyloss.sigmoid_cross_entropy, (x[0],), {argument: view}, {argument: numbers})]
    else:
        calls = [(polyloss.sigmoid_cross_entropy, (x, x * 0 + 1), {argument: view}, {argument: numbers})]
        if argument == "weights":
            calls.append((polyloss.softmax_cross_entropy, (x, torch.arange(6)), {argument: view}, {argument: numbers}))
    for loss, arrays, given, plain in calls:
        agree_all(results(loss, *arrays, **given), generic(loss, *arrays, **plain), 6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [3, 40])
def test_torchs_backward_pass_with_weights_masks_and_any_cotangent(
    classes: int, reduction: str, ran: list[Any]
) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x, keep = torch.randn(9, 13, classes, generator=generator), torch.rand(9, 13, generator=generator) < 0.7
    y, w = torch.randint(0, classes, (9, 13), generator=generator), torch.rand(9, 13, generator=generator) + 0.5
    t = torch.rand(x.shape, generator=generator)
    x[~keep] = NAN
    y[~keep] = -100
    for loss, targets, mask in (
        (polyloss.softmax_cross_entropy, y, keep),
        (polyloss.sigmoid_cross_entropy, t, keep),
    ):
        options = {"weights": w, "where": mask, "reduction": reduction}
        found = []
        for formula in (False, True):
            for cotangent in (
                torch.rand((), generator=torch.Generator().manual_seed(1)) + 1,
                "varied",
                "infinite where masked",
            ):
                leaf = x.clone().requires_grad_()
                ran.clear()
                if formula:
                    with dispatch.generic():
                        value = loss(leaf, targets, **options)
                else:
                    value = loss(leaf, targets, **options)
                if isinstance(cotangent, str):
                    if reduction == "mean":
                        continue
                    c = torch.rand(value.shape, generator=torch.Generator().manual_seed(2))
                    if cotangent.startswith("infinite"):
                        c[~keep] = INF
                    cotangent = c
                value.backward(cotangent.expand(value.shape))
                assert len(ran) == (0 if formula else 2)
                found.append(leaf.grad.numpy())
                assert not found[-1][~keep.numpy()].any()
        half = len(found) // 2
        for one, two in zip(found[:half], found[half:], strict=True):
            agree(one, two, classes, larger=6.0 * (loss is not polyloss.softmax_cross_entropy), note=loss.__name__)


# Nothing outside is touched.


class Guarded:
    """Makes the library's new arrays inside larger ones of a byte that nobody writes, and not aligned to vectors."""

    byte, margin = 0xA5, 256

    def __init__(self) -> None:
        self.made: list[tuple[np.ndarray, int, int]] = []
        self._empty, self._empty_like = np.empty, np.empty_like

    def empty(self, shape: Any, dtype: Any = float, **_: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
        whole = np.full(size + 2 * self.margin + 64, self.byte, np.uint8)
        start = (
            self.margin + -(whole.ctypes.data + self.margin) % 64 + dtype.itemsize
        )  # just behind a cache line's start
        self.made.append((whole, start, start + size))
        return np.ndarray(shape, dtype, whole.data, start)

    def empty_like(self, x: np.ndarray, **_: Any) -> np.ndarray:
        order = sorted(range(x.ndim), key=lambda i: -self._empty_like(x).strides[i])
        made = self.empty(tuple(x.shape[i] for i in order), x.dtype)
        return np.transpose(made, np.argsort(order))

    def check(self, note: Any) -> int:
        for whole, start, stop in self.made:
            assert np.all(whole[:start] == self.byte) and np.all(whole[stop:] == self.byte), note
        count = len(self.made)
        self.made.clear()
        return count


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    guard = Guarded()
    for namespace in (np, array_api_compat.numpy):
        monkeypatch.setattr(namespace, "empty", guard.empty)
        monkeypatch.setattr(namespace, "empty_like", guard.empty_like)
    yield guard
    guard.made.clear()


@every_dtype
def test_no_byte_beside_a_result_is_written(dtype: str, guarded: Guarded) -> None:
    rng = np.random.default_rng(0)
    for classes, n, axis in itertools.product((1, 3, 17, 33, 70), (1, 5, 64, 67), (0, 1)):
        x, y = logits_and_labels((n, classes) if axis else (classes, n), axis, dtype)
        w, keep = rng.uniform(0, 1, n).astype(np.float32), rng.uniform(0, 1, n) < 0.5
        for name in ("C", "Fortran", "every second", "reversed"):
            given = LAYOUTS[name](x)
            for options in ({}, {"weights": w, "where": keep}):
                guarded.made.clear()
                got = results(polyloss.softmax_cross_entropy, given, y, axis=axis, **options)
                assert guarded.check((classes, n, axis, name)) >= 4
                assert np.isfinite(got[2].astype(np.float64)).all()
    for n in (1, 7, 255, 256, 257, 600):
        x, t = rng.standard_normal(n).astype(dtype_of(dtype)), rng.uniform(0, 1, n).astype(dtype_of(dtype))
        for name in ("C", "every second", "reversed"):
            guarded.made.clear()
            results(polyloss.sigmoid_cross_entropy, LAYOUTS[name](x), LAYOUTS[name](t))
            assert guarded.check((n, name)) >= 4


def test_a_result_that_is_not_written_is_noticed(guarded: Guarded) -> None:
    """The guard itself: one byte more or less."""
    x = guarded.empty((3,), np.float32)
    whole, start, stop = guarded.made[0]
    assert x.flags.aligned and x.ctypes.data % 64 == 4 and x.nbytes == stop - start
    x[...] = 0
    guarded.check("")
    guarded.empty((3,), np.float32)
    whole, start, stop = guarded.made[0]
    whole[stop] = 0
    with pytest.raises(AssertionError):
        guarded.check("")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by the mprotect of Linux")
def test_no_byte_beside_an_argument_is_read() -> None:
    """Each argument ends where a page begins that must not be touched, or begins where such a page ends."""
    code = """
        import ctypes, itertools, math, mmap
        import numpy as np
        import polyloss

        libc = ctypes.CDLL(None, use_errno=True)
        page = mmap.PAGESIZE
        kept = []

        def place(a, end):
            pages = -(-a.nbytes // page)
            memory = mmap.mmap(-1, (pages + 2) * page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for forbidden in (start, start + (pages + 1) * page):
                assert libc.mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
            kept.append(memory)
            offset = page + pages * page - a.nbytes if end else page
            view = np.ndarray(a.shape, a.dtype, memory, offset)
            view[...] = a
            return view

        rng = np.random.default_rng(0)
        softmax = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        sigmoid = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
        for kind, classes, n, end in itertools.product(
            ("float32", "float64", "float16"), (1, 3, 10, 33, 100), (1, 5, 64, 67), (False, True)
        ):
            x = place(rng.standard_normal((n, classes)).astype(kind), end)
            y = place(rng.integers(0, classes, n), end)
            w = place(rng.uniform(0, 1, n).astype(np.float32), end)
            keep = place(rng.uniform(0, 1, n) < 0.5, end)
            c = place(rng.uniform(0, 1, classes).astype(np.float32), end)
            t = place(rng.uniform(0, 1, (n, classes)).astype(kind), end)
            for reduction in ("mean", "none"):
                for view, labels in ((x, y), (x[::-1], y[::-1]), (x[::2], y[::2])):
                    softmax(view, labels, reduction=reduction)
                softmax(x.T, y, axis=0, reduction=reduction)
                softmax(x, y, weights=w, where=keep, class_weights=c, reduction=reduction)
                sigmoid(x, t, weights=w, where=keep, reduction=reduction)
                sigmoid(x[::-1, ::2], t[::-1, ::2], pos_weight=c[::2], reduction=reduction)
        print("nothing")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "nothing"), run.stderr
