"""On a device the kernels do what the formula does in host memory, whatever the arrays hold and however they lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from layouts import LAYOUTS, UNALIGNED, agree, agree_all, binary_terms, dtype_of, generic
from simulated.device import launching, on_device, to_device, to_host

import polyloss
from polyloss import dispatch
from polyloss.backends.cuda import compiled, lse
from polyloss.conformance.losses import LOSSES

DTYPES = ("float32", "float64", "float16", "bfloat16")
INF, NAN = math.inf, math.nan

FORMS = {  # classes, by the form of the kernel that they take
    "one": 1,
    "few": 10,
    "few, all lanes": 127,
    "few vectors": 24,
    "few vectors, more lanes": 128,
    "warp": 131,
    "warp, aligned": 256,
    "block64": 1040,
    "block128": 2051,
}


def check(loss: Any, *arrays: Any, classes: int = 1, larger: Any = 0.0, note: Any = "", **options: Any) -> None:
    agree_all(on_device(loss, *arrays, **options), generic(loss, *arrays, **options), classes, note, larger=larger)


def logits(rows: int, classes: int, dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal((rows, classes))).astype(dtype_of(dtype)), rng.integers(0, classes, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_labels(form: str, dtype: str) -> None:
    x, y = logits(5, FORMS[form], dtype)
    check(polyloss.softmax_cross_entropy, x, y, classes=FORMS[form])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("forced", ["long256", "long512", "split", "scalar block"])
def test_long_rows(forced: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a part of a row in registers, one in shared memory, one that is read again, and an edge on both sides."""
    size = dtype_of(dtype).itemsize
    lanes = 512 if forced == "long512" else 256
    k = lanes * 4 * 16 // size * 3 + 5 if forced.startswith("long") else 2500
    x, y = logits(2, k, dtype)
    if forced == "split":
        monkeypatch.setattr(lse, "LONG", k * size // 3)
    elif forced == "scalar block":
        monkeypatch.setattr(lse, "shape_of", lambda *key: lse.Shape(forced, 256, 0, 0))
    else:
        monkeypatch.setattr(lse, "SPLIT", 0)
        monkeypatch.setattr(lse, "shape_of", lambda *key: lse.Shape(forced, lanes, 1, lanes * 64))
    check(polyloss.softmax_cross_entropy, x, y, classes=k)


@pytest.mark.parametrize("labels", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_labels_of_every_dtype(labels: str) -> None:
    x, y = logits(6, 2 if labels == "bool" else 9, "float32")
    check(polyloss.softmax_cross_entropy, x, y.astype(labels), classes=9)


ROWS = np.array(
    [
        [0.0, 40.0, -3.0, 1.0],
        [INF, 0.0, 1.0, 2.0],
        [INF, INF, 1.0, 2.0],
        [-INF, 0.0, 1.0, -INF],
        [-INF, -INF, -INF, -INF],
        [NAN, 0.0, 1.0, 2.0],
        [2.0, 2.0, 2.0, 2.0],
        [-INF, NAN, NAN, -INF],
        [3e38, -3e38, 0.0, 1.0],
        [0.0, 0.0, -1e4, 1e4],
    ]
)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.2}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_at_their_limits(dtype: str, options: dict[str, float]) -> None:
    with np.errstate(over="ignore"):
        x = ROWS.astype(dtype_of(dtype))
    for label in range(4):
        y = np.full(len(x), label)
        got = on_device(polyloss.softmax_cross_entropy, x, y, **options)
        agree_all(got, generic(polyloss.softmax_cross_entropy, x, y, **options), 4, label, larger=1.0)


@pytest.mark.parametrize("targets", ["labels", "smoothed labels", "soft"])
def test_an_infinity_or_a_nan_anywhere_in_a_row_counts(targets: str) -> None:
    options = {"label_smoothing": 0.1} if targets == "smoothed labels" else {}
    for form, k in FORMS.items():
        for special in (INF, NAN):
            x, y = logits(3, k, "float32")
            x[0, 0] = x[1, k // 2] = x[2, k - 1] = special
            t = np.full_like(x, 1 / k) if targets == "soft" else y
            check(polyloss.softmax_cross_entropy, x, t, classes=k, note=(form, special), **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_label_out_of_range_makes_its_row_nan_and_reads_nothing(form: str) -> None:
    k = FORMS[form]
    x, y = logits(3, k, "float32")
    clean = on_device(polyloss.softmax_cross_entropy, x, y)
    for bad in (-1, k, 2**40, -(2**63)):
        y[1] = bad
        _, _, items, slopes = on_device(polyloss.softmax_cross_entropy, x, y)
        assert np.isnan(items[1])
        assert np.all(np.isnan(slopes[1])) or k == 1
        np.testing.assert_array_equal(np.delete(items, 1), np.delete(clean[2], 1))
        np.testing.assert_array_equal(np.delete(slopes, 1, 0), np.delete(clean[3], 1, 0))


@pytest.mark.parametrize("loss", ["soft", "binary"])
def test_a_target_out_of_range_makes_its_item_nan(loss: str) -> None:
    x, _ = logits(4, 5, "float32")
    t = np.full_like(x, 0.2)
    of = polyloss.softmax_cross_entropy if loss == "soft" else polyloss.sigmoid_cross_entropy
    for bad in (-0.5, 1.5, NAN):
        t[1, 2] = bad
        _, _, items, slopes = on_device(of, x, t)
        assert np.isnan(items[1] if loss == "soft" else items[1, 2])
        assert np.all(np.isnan(slopes[1] if loss == "soft" else slopes[1, 2]))
        assert np.isfinite(np.delete(items, 1, 0)).all()
        assert np.isfinite(np.delete(slopes, 1, 0)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["few", "warp", "block64"])
def test_a_masked_row_adds_nothing_whatever_it_holds(form: str, dtype: str) -> None:
    k = FORMS[form]
    x, y = logits(7, k, dtype)
    x[2], y[2], x[3, 0], y[4] = NAN, -5, INF, k + 3
    keep = np.array([True, True, False, False, False, True, True])
    w = np.linspace(0.5, 2, 7).astype(np.float32)
    w[3] = NAN
    check(polyloss.softmax_cross_entropy, x, y, where=keep, weights=w, classes=k)
    y = np.where(keep, y, -100)
    c = np.linspace(0.5, 2, k).astype(np.float32)
    check(polyloss.softmax_cross_entropy, x, y, ignore_index=-100, class_weights=c, z_loss=0.1, classes=k)


def probabilities(n: int, k: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = rng.random((n, k)) * (rng.random((n, k)) < 0.5)
    return (t / np.maximum(t.sum(-1, keepdims=True), 1e-9)).astype(np.float32)


@pytest.mark.parametrize("form", ["long256", "scalar block"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_with_soft_targets(form: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    k = 256 * 4 * 16 // dtype_of(dtype).itemsize * 3 + 5 if form == "long256" else 1500
    shelved = 1 if form == "long256" else 0
    monkeypatch.setattr(lse, "shape_of", lambda *key: lse.Shape(form, 256, shelved, shelved * 256 * 64))
    x, y = logits(2, k, dtype)
    t, c = probabilities(2, k).astype(dtype_of(dtype)), np.linspace(0.5, 1.5, k).astype(np.float32)
    for target, options in ((t, {}), (y, {"label_smoothing": 0.1, "class_weights": c, "class_mask": c > 0.6})):
        check(polyloss.softmax_cross_entropy, x, target, classes=k, larger=2.0, **options)


@pytest.mark.parametrize("targets", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_targets_of_every_dtype(dtype: str, targets: str) -> None:
    x, t = logits(3, 133, dtype)[0], probabilities(3, 133).astype(dtype_of(targets))
    check(polyloss.softmax_cross_entropy, x, t, classes=133, larger=2.0)


def test_soft_targets_that_are_not_aligned_as_the_logits_are() -> None:
    x, t = logits(3, 133, "float32")[0], probabilities(3, 133)
    for offset in range(4):
        base = np.zeros(t.size + 8, t.dtype)
        view = base[offset : offset + t.size].reshape(t.shape)
        view[...] = t
        check(polyloss.softmax_cross_entropy, x, view, classes=133, larger=2.0)


def test_several_largest_logits_with_soft_targets() -> None:
    for k in (4, 40, 300):
        x = np.zeros((3, k), np.float32)
        x[1, 2:] = -1
        t = probabilities(3, k)
        t[2] = np.arange(k) == 1
        check(polyloss.softmax_cross_entropy, x, t, classes=k, larger=2.0)


@pytest.mark.parametrize("k", [4, 40, 133, 1100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_targets_smoothing_class_weights_and_masks(k: int, dtype: str) -> None:
    n = 5 if k < 1000 else 2
    x, y = logits(n, k, dtype)
    t, rng = probabilities(n, k), np.random.default_rng(1)
    c = (rng.random(k) + 0.5).astype(np.float32)
    mask = rng.random((n, k)) < 0.8
    mask[:, 0] = True
    for note, target, options in (
        ("soft", t, {}),
        ("smooth", y, {"label_smoothing": 0.1}),
        ("weighted", t, {"class_weights": c, "label_smoothing": 0.1}),
        ("masked rows", y, {"class_mask": mask, "label_smoothing": 0.1}),
        ("masked classes", t, {"class_mask": mask[0]}),
        ("masked", t, {"where": np.arange(n) % 3 != 1, "z_loss": 0.05}),
    ):
        # What the formula subtracts: a probability and a target, each below 1 times a weight.
        check(polyloss.softmax_cross_entropy, x, target, classes=k, larger=2.0, note=note, **options)


@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    x = (10 * rng.standard_normal(size)).astype(dtype_of(dtype))
    x[: min(size, 4)] = [INF, -INF, 0.0, -0.0][: min(size, 4)]
    t = rng.random(size).astype(dtype_of(dtype))
    t[:2] = [1, 0][:size]
    check(polyloss.sigmoid_cross_entropy, x, t, larger=binary_terms(x, t))
    check(polyloss.bpr, x, (10 * rng.standard_normal(size)).astype(dtype_of(dtype)))


@pytest.mark.parametrize("targets", ["bool", "int8", "uint64", "float16", "float64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_with_weights_and_masks_of_every_shape(dtype: str, targets: str) -> None:
    rng = np.random.default_rng(0)
    x = (5 * rng.standard_normal((4, 5, 3))).astype(dtype_of(dtype))
    t = rng.integers(0, 2, x.shape).astype(targets)
    p = np.array([0.5, 2.0, 3.0], np.float32)
    keep = rng.random((4, 5)) < 0.7
    x[~keep] = NAN
    for options in (
        {"pos_weight": p, "where": keep},
        {"weights": np.linspace(0.1, 1, 4).astype(np.float32), "where": keep, "label_smoothing": 0.1},
        {"weights": rng.random(x.shape).astype(np.float32), "pos_weight": np.float32(2), "where": keep},
    ):
        e, q = options.get("label_smoothing", 0.0), options.get("pos_weight", 1.0)
        check(polyloss.sigmoid_cross_entropy, x, t, larger=binary_terms(np.nan_to_num(x), t, q, e), **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts_and_axes(axis: int) -> None:
    rng = np.random.default_rng(axis)
    x = (3 * rng.standard_normal((6, 5, 4))).astype(np.float32)
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    expected = generic(polyloss.softmax_cross_entropy, x, y, axis=axis)
    for name, lay_out in LAYOUTS.items():
        if name not in UNALIGNED:
            agree_all(on_device(polyloss.softmax_cross_entropy, lay_out(x), lay_out(y), axis=axis), expected, 6, name)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("classes", [24, 301])
def test_rows_that_are_not_aligned(classes: int, dtype: str, offset: int) -> None:
    """Vectors begin where both logits and gradient are aligned; where that is nowhere, numbers go one by one."""
    x, y = logits(3, classes, dtype)
    base = np.zeros(x.size + 16, x.dtype)
    shift = offset + (-base.__array_interface__["data"][0] // x.itemsize) % (16 // x.itemsize)
    view = base[shift : shift + x.size].reshape(x.shape)
    view[...] = x
    check(polyloss.softmax_cross_entropy, view, y, classes=classes)
    check(polyloss.softmax_cross_entropy, view, y, classes=classes, larger=2.0, label_smoothing=0.1)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_loss_gives_the_formulas_numbers(name: str, dtype: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(3, 6, dtype)
    for reduction in ("none", "sum", "mean"):
        for more in ({}, {"where": np.arange(6) % 3 != 1}, {"weights": np.linspace(0.5, 2, 6).astype(dtype)}):
            options = row.options | more | {"reduction": reduction}
            wrt = row.floating(arguments)
            expected = polyloss.value_and_grad(row.loss, wrt)(**arguments, **options)
            given = {key: to_device(x) for key, x in (arguments | options).items()}
            with launching():
                got = polyloss.value_and_grad(row.loss, wrt)(**given)
            tolerance = 1e-4 if dtype == "float32" else 1e-12
            for one, two in zip((got[0], *got[1]), (expected[0], *expected[1])):
                np.testing.assert_allclose(to_host(one), two, rtol=tolerance, atol=tolerance / 100)
    assert not compiled.failures, compiled.failures


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_transforms_of_rows(name: str, dtype: str) -> None:
    of = getattr(polyloss, name)
    long = 256 * 4 * 16 // dtype_of(dtype).itemsize * 3 + 3
    with np.errstate(over="ignore"):
        limits = ROWS.astype(dtype_of(dtype))
    for x in (limits, *(logits(3, k, dtype)[0] for k in FORMS.values()), logits(1, long, dtype)[0]):
        with dispatch.generic():
            expected = of(x)
        with launching() as device:
            got = to_host(of(to_device(x)))
            assert device.launched, "takes no kernel"
        agree(got, expected, x.shape[-1], larger=_largest(x))
    assert not compiled.failures, compiled.failures


def _largest(x: np.ndarray) -> np.ndarray:
    """What the logarithms are differences of: the largest logit in a row, and a logarithm."""
    finite = np.nan_to_num(x.astype(np.float64), nan=0, posinf=0, neginf=0)
    return np.asarray(np.max(np.abs(finite)) + 1)


def test_a_denominator_on_the_device_and_nothing_to_average() -> None:
    x, y = logits(6, 10, "float32")
    loss = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    for d, keep in ((7.0, True), (0.0, True), (3.0, False)):
        where = np.full(6, keep)
        expected = loss(x, y, denominator=np.asarray(d, np.float32), where=where)
        with launching():
            got = loss(
                *map(to_device, (x, y)), denominator=to_device(np.asarray(d, np.float32)), where=to_device(where)
            )
        np.testing.assert_allclose(to_host(got[0]), expected[0], rtol=1e-6)
        np.testing.assert_allclose(to_host(got[1]), expected[1], rtol=1e-5)


def test_the_same_bits_again_and_as_many_blocks_as_there_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = logits(600, 10, "float32")
    first = on_device(polyloss.softmax_cross_entropy, x, y)
    for one, two in zip(first, on_device(polyloss.softmax_cross_entropy, x, y)):
        np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(lse, "MOST_BLOCKS", 2)  # each block takes several rows
    for one, two in zip(first[1:], on_device(polyloss.softmax_cross_entropy, x, y)[1:]):
        np.testing.assert_array_equal(one, two)


def test_a_call_of_a_few_rows_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    real = compiled.Kernel.__call__
    monkeypatch.setattr(compiled.Kernel, "__call__", lambda self, *a: (launched.append(self.key), real(self, *a))[1])
    x, y = logits(64, 10, "float32")
    with launching():
        polyloss.value_and_grad(polyloss.softmax_cross_entropy)(to_device(x), to_device(y))
    assert len(launched) == 1


@pytest.mark.parametrize("missing", ["sums", "rows"])
def test_a_kernel_that_cannot_be_made_leaves_the_formula_its_scores(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient takes their place: whatever comes after its kernel must have been made before."""
    compiled.kernel.cache_clear()
    monkeypatch.setattr(compiled, "failures", {(("sums", "float32"), 0): "no"})
    if missing == "rows":
        monkeypatch.setattr(compiled, "failures", {(("rows", "float32", "int64", "warp", True, True), 0): "no"})
    q, p = np.random.default_rng(0).standard_normal((2, 140, 3)).astype(np.float32)
    both = polyloss.value_and_grad(polyloss.info_nce, ("queries", "positives"))
    with launching():
        value, slopes = both(to_device(q), to_device(p), temperature=0.1)
    compiled.kernel.cache_clear()
    expected, others = both(q, p, temperature=0.1)
    np.testing.assert_allclose(to_host(value), expected, rtol=1e-5)
    for one, two in zip(slopes, others):
        np.testing.assert_allclose(to_host(one), two, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n", [9, 40, 140])
def test_masked_scores_give_their_place_to_the_gradient(n: int) -> None:
    rng = np.random.default_rng(0)
    q, p = rng.standard_normal((2, n, 3)).astype(np.float32)
    mask = rng.random((n, n)) < 0.7
    both = polyloss.value_and_grad(polyloss.info_nce, ("queries", "positives"))
    with launching() as device:
        value, slopes = both(to_device(q), to_device(p), candidate_mask=to_device(mask))
        assert device.launched
    expected, others = both(q, p, candidate_mask=mask)
    np.testing.assert_allclose(to_host(value), expected, rtol=1e-5)
    for one, two in zip(slopes, others):
        np.testing.assert_allclose(to_host(one), two, rtol=1e-4, atol=1e-7)
