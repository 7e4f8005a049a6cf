"""What holds of every loss in every array library, whatever the numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import polyloss
from polyloss.conformance.losses import LOSSES, Row
from polyloss.conformance.routes import from_numpy, installed, to_numpy
from polyloss.dispatch import generic

EXAMPLES = {"numpy": 30, "torch": 15, "array_api_strict": 8, "dask": 4, "jax": 3}  # by what one call costs
RESOLUTION = {"float64": 1e-13, "float32": 4e-6}

every_loss = pytest.mark.parametrize("name", LOSSES)
every_library = pytest.mark.parametrize(
    ("library", "path"),
    [pytest.param(name, "kernel", id=name) for name in installed()]
    + [pytest.param(name, "generic", id=f"{name} generic") for name in installed() if name in ("numpy", "torch")],
    indirect=["path"],
)


@pytest.fixture(autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Laws hold of kernels and of the formula, where a library has both."""
    with generic() if getattr(request, "param", "") == "generic" else contextlib.nullcontext():
        yield


def value_and_gradients(
    row: Row, library: str, arguments: dict[str, np.ndarray], **options: Any
) -> tuple[Any, dict[str, Any]]:
    """In that library, by the formula."""
    wrt = row.floating(arguments)
    given = {name: from_numpy(library, x) for name, x in (arguments | row.options | options).items()}
    value, gradients = polyloss.value_and_grad(row.loss, wrt)(**given)
    return value, dict(zip(wrt, gradients))


def value_of(row: Row, library: str, arguments: dict[str, np.ndarray], **options: Any) -> Any:
    given = {name: from_numpy(library, x) for name, x in (arguments | row.options | options).items()}
    return row.loss(**given)


def assert_close(got: Any, expected: Any, dtype: str, factor: float = 1.0) -> None:
    """Equal to rounding, measured at the largest number of the array; NaN and infinities in the same places."""
    got, expected = to_numpy(got), to_numpy(expected)
    assert got.shape == expected.shape
    scale = np.max(np.abs(expected), where=np.isfinite(expected), initial=1e-6)
    np.testing.assert_allclose(got, expected, rtol=RESOLUTION[dtype], atol=RESOLUTION[dtype] * scale * factor)


@st.composite
def draws(draw: Any, row: Row, library: str) -> tuple[int, int, str, float]:
    """Seed, number of items, dtype, magnitude."""
    sizes = (3,) if library == "jax" else (1, 2, 3, 6)  # JAX compiles every operation anew for every shape
    n = max(row.fewest, draw(st.sampled_from(sizes)))
    dtype = "float32" if library == "jax" else draw(st.sampled_from(["float32", "float64"]))
    return draw(st.integers(0, 2**32 - 1)), n, dtype, draw(st.sampled_from([1e-3, 1.0, 30.0]))


def examples(library: str) -> Any:
    return settings(
        max_examples=EXAMPLES[library],
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@every_library
@every_loss
def test_a_mask_equals_a_slice_whatever_lies_behind_it(name: str, library: str) -> None:
    row = LOSSES[name]

    @examples(library)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        seed, n, dtype, magnitude = data.draw(draws(row, library))
        n += 2
        keep = np.zeros(n, bool)
        kept = data.draw(st.sampled_from(range(max(row.fewest, 1), n)))
        keep[np.random.default_rng(seed).permutation(n)[:kept]] = True
        arguments = row.arguments(seed, n, dtype, magnitude)
        dirty = {name: x.copy() for name, x in arguments.items()}
        for i, (key, x) in enumerate(dirty.items()):
            if key in row.shared:
                continue
            if x.dtype == bool:
                x[~keep] = False
                continue
            bad = [row.garbage[key]] if key in row.garbage else []
            bad += [np.nan, np.inf, -np.inf] if x.dtype.kind == "f" else []
            if bad:
                x[~keep] = bad[(seed + i) % len(bad)]
        weights = np.random.default_rng(seed).random(n).astype(dtype) + 0.5
        weights[~keep] = np.nan
        reduction = data.draw(st.sampled_from(["mean", "sum"]))
        value, gradients = value_and_gradients(row, library, dirty, where=keep, weights=weights, reduction=reduction)
        clean = row.take(arguments, keep)
        expected, slopes = value_and_gradients(row, library, clean, weights=weights[keep], reduction=reduction)
        assert_close(value, expected, dtype)
        for key, gradient in gradients.items():
            got, want = to_numpy(gradient), to_numpy(slopes[key])
            if key not in row.shared:
                assert not np.any(got[~keep]), f"a masked item has a gradient in {key}"
                got = got[keep]
            assert_close(got, want, dtype, factor=10)

    law()


@every_library
@every_loss
def test_reductions_agree(name: str, library: str) -> None:
    """Sum of none = sum; mean = sum(w l) / sum(w); a denominator replaces sum(w)."""
    row = LOSSES[name]

    @examples(library)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        seed, n, dtype, magnitude = data.draw(draws(row, library))
        arguments = row.arguments(seed, n, dtype, magnitude)
        rng = np.random.default_rng(seed)
        shape = (n, *row.item_shape)
        weights = rng.random(data.draw(st.sampled_from([(), (n,), shape, (1,) * len(shape)]))).astype(dtype)
        full = np.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)
        plain = to_numpy(value_of(row, library, arguments, reduction="none")).astype(np.float64)
        assert plain.shape == shape
        none, total = (value_of(row, library, arguments, weights=weights, reduction=r) for r in ("none", "sum"))
        assert_close(to_numpy(none).astype(np.float64), full * plain, dtype)
        assert_close(to_numpy(total).astype(np.float64), np.sum(full * plain), dtype)
        divided = value_of(row, library, arguments, weights=weights, denominator=2.5)
        assert_close(to_numpy(divided).astype(np.float64), np.sum(full * plain) / 2.5, dtype)
        if "class_weights" not in arguments:
            mean = value_of(row, library, arguments, weights=weights)
            assert_close(to_numpy(mean).astype(np.float64), np.sum(full * plain) / np.sum(full), dtype)

    law()


@every_loss
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    """Against finite differences in float64, in every differentiable parameter, with weights and a mask."""
    row = LOSSES[name]

    @examples("numpy")
    @given(st.integers(0, 2**32 - 1), st.sampled_from(["mean", "sum", "none"]))
    def law(seed: int, reduction: str) -> None:
        rng = np.random.default_rng(seed)
        n = 4
        arguments = row.arguments(seed, n)
        options = {"weights": rng.random(n) + 0.1, "where": np.arange(n) != seed % n, "reduction": reduction}
        _, gradients = value_and_gradients(row, "numpy", arguments, **options)
        for key, gradient in gradients.items():
            direction = rng.standard_normal(gradient.shape)
            direction *= _interior(row, key, arguments, direction)
            step = 1e-6
            ahead, behind = (
                np.sum(value_of(row, "numpy", arguments | {key: arguments[key] + s * step * direction}, **options))
                for s in (1, -1)
            )
            expected = (ahead - behind) / (2 * step)
            assert abs(np.sum(gradient * direction) - expected) <= 1e-6 * (1 + np.sum(np.abs(gradient)))

    law()


def _interior(row: Row, key: str, arguments: dict[str, np.ndarray], direction: np.ndarray) -> Any:
    """Rows of probabilities keep their sum, and targets at 0 stay there; everything else is free."""
    if key == "targets":
        return arguments[key] > 0
    if row.loss is polyloss.log_loss and key == "probabilities":
        direction -= direction.mean(axis=-1, keepdims=True)
        return 0.01
    return 1.0


@every_library
@every_loss
def test_every_library_gives_numpys_number_in_its_own_arrays(name: str, library: str) -> None:
    """Same value and gradients, and the library, dtype and shape of the inputs."""
    row = LOSSES[name]

    @examples(library)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        seed, n, dtype, magnitude = data.draw(draws(row, library))
        n += 1
        arguments = row.arguments(seed, n, dtype, magnitude)
        options = {"where": np.arange(n) != 0} if n > row.fewest else {}
        value, gradients = value_and_gradients(row, library, arguments, **options)
        expected, slopes = value_and_gradients(row, "numpy", arguments, **options)
        like = from_numpy(library, np.zeros(2, dtype))
        assert_close(value, expected, dtype, factor=10)
        assert value.dtype == like.dtype
        for key, gradient in gradients.items():
            assert type(gradient) is type(like)
            assert gradient.dtype == like.dtype
            assert_close(gradient, slopes[key], dtype, factor=10)

    law()


@every_loss
def test_torch_and_jax_autodiff_give_the_formulas_gradient(name: str) -> None:
    row = LOSSES[name]
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    for seed in range(5):
        n = 4
        arguments = row.arguments(seed, n, "float32")
        options = {"weights": np.random.default_rng(seed).random(n).astype("f"), "where": np.arange(n) != 1}
        _, slopes = value_and_gradients(row, "numpy", arguments, **options)
        given = {key: from_numpy("torch", x) for key, x in (arguments | row.options | options).items()}
        for key in slopes:
            given[key].requires_grad_()
        (3 * row.loss(**given)).backward()
        for key, slope in slopes.items():
            assert_close(given[key].grad / 3, slope, "float32", factor=10)
        rest = {key: from_numpy("jax", x) for key, x in (arguments | row.options | options).items()}
        primals = {key: rest.pop(key) for key in slopes}
        found = jax.grad(lambda p, rest=rest: 3 * row.loss(**p, **rest))(primals)
        for key, slope in slopes.items():
            assert_close(found[key] / 3, slope, "float32", factor=10)
    assert torch


@every_library
@every_loss
def test_items_can_be_permuted(name: str, library: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(0, 4, "float32")
    order = np.array([2, 0, 3, 1])
    expected = to_numpy(value_of(row, library, arguments, reduction="none"))[order]
    got = value_of(row, library, row.take(arguments, order), reduction="none")
    assert_close(got, expected, "float32", factor=10)


@every_loss
def test_inputs_may_be_read_only_strided_reversed_or_fortran_ordered_and_are_not_touched(name: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(1, 4)
    expected, slopes = value_and_gradients(row, "numpy", arguments)

    def every_other(x: np.ndarray) -> np.ndarray:
        wide = np.repeat(x, 2, axis=0)
        return wide[::2]

    def reversed_twice(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x[::-1])[::-1]

    for layout in (every_other, reversed_twice, np.asfortranarray):
        laid = {key: layout(x) for key, x in arguments.items()}
        copies = {key: x.copy() for key, x in laid.items()}
        for x in laid.values():
            x.flags.writeable = False
        value, gradients = value_and_gradients(row, "numpy", laid)
        assert_close(value, expected, "float64")
        for key, x in laid.items():
            np.testing.assert_array_equal(x, copies[key])
            if key in gradients:
                assert_close(gradients[key], slopes[key], "float64", factor=10)
                assert not np.shares_memory(gradients[key], x)
        items = value_of(row, "numpy", laid, reduction="none")
        assert not any(np.shares_memory(items, x) for x in laid.values())


@every_library
@every_loss
def test_nothing_to_average_is_nan_with_gradient_zero(name: str, library: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(2, 3, "float32")
    nothing = {"where": np.zeros(3, bool)}
    zero = {"weights": np.zeros(3, np.float32)}
    for options, mean in (
        (nothing, np.nan),
        (zero, np.nan),
        ({"denominator": 0.0}, np.nan),
        (nothing | {"reduction": "sum"}, 0.0),
        (nothing | {"denominator": 4.0}, 0.0),
    ):
        value, gradients = value_and_gradients(row, library, arguments, **options)
        np.testing.assert_array_equal(to_numpy(value), mean)
        for gradient in gradients.values():
            assert not np.any(to_numpy(gradient))


@every_library
@every_loss
def test_no_items_at_all(name: str, library: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(3, 4, "float32")
    empty = row.take(arguments, slice(0, 0))
    value, gradients = value_and_gradients(row, library, empty)
    assert np.isnan(to_numpy(value))
    for key, gradient in gradients.items():
        assert gradient.shape == empty[key].shape
    assert to_numpy(value_of(row, library, empty, reduction="sum")) == 0
    assert to_numpy(value_of(row, library, empty, reduction="none")).shape == (0, *row.item_shape)


@every_loss
def test_lists_and_python_numbers_are_read(name: str) -> None:
    row = LOSSES[name]
    arguments = row.arguments(4, 3)
    expected = value_of(row, "numpy", arguments, weights=np.array(2.0), denominator=np.array(3.0))
    lists = {key: x.tolist() for key, x in arguments.items()}
    assert_close(value_of(row, "numpy", lists, weights=2, denominator=3), expected, "float64")
    value, _ = polyloss.value_and_grad(row.loss)(**lists, **row.options)
    assert value.dtype == np.float64


@every_library
@every_loss
def test_sixteen_bit_inputs_give_float32_losses_and_their_own_gradients(name: str, library: str) -> None:
    row = LOSSES[name]
    for half in ("float16", "bfloat16"):
        cast = _half(library, half)
        if cast is None:
            continue
        arguments = row.arguments(5, 3, "float32")
        given = {
            key: cast(x) if key in row.floating(arguments) else from_numpy(library, x) for key, x in arguments.items()
        }
        rounded = {key: _wide(given[key]) if key in row.floating(arguments) else x for key, x in arguments.items()}
        expected, slopes = value_and_gradients(row, "numpy", rounded)
        wrt = row.floating(arguments)
        value, gradients = polyloss.value_and_grad(row.loss, wrt)(**given, **row.options)
        assert "float32" in str(value.dtype)
        assert_close(value, expected, "float32", factor=10)
        for key, gradient in zip(wrt, gradients):
            assert gradient.dtype == given[key].dtype
            resolution = 2.0 ** (-10 if half == "float16" else -7)
            tiny = 6e-8 if half == "float16" else 0.0
            np.testing.assert_allclose(_wide(gradient), slopes[key], rtol=resolution, atol=1e-5 * resolution + tiny)


def _half(library: str, half: str) -> Any:
    """A cast from NumPy's float32 to a 16-bit dtype of that library, or None."""
    if library == "torch":
        import torch

        return lambda x: from_numpy("torch", x).to(getattr(torch, half))
    if library == "jax":
        import jax.numpy as jnp

        return lambda x: jnp.asarray(x).astype(half)
    if library == "numpy" and half == "float16":
        return lambda x: x.astype(half)
    if library == "numpy":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        return lambda x: x.astype(ml_dtypes.bfloat16)
    return None  # not in the standard, nor in Dask's own arithmetic


def _wide(x: Any) -> np.ndarray:
    return to_numpy(x.float() if hasattr(x, "detach") else x).astype(np.float32)


# Laws of single losses.

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


@every_library
@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_every_integer_dtype(dtype: str, library: str) -> None:
    logits = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    labels = np.array([0, 1, 1, 0])
    expected = polyloss.softmax_cross_entropy(logits, labels, reduction="none")
    given = from_numpy(library, labels.astype(dtype))
    got = polyloss.softmax_cross_entropy(from_numpy(library, logits), given, reduction="none")
    assert_close(got, expected, "float32")
    p = np.full((4, 2), 0.5, np.float32)
    assert_close(polyloss.log_loss(from_numpy(library, p), given), np.log(np.float32(2)), "float32")
    binary = polyloss.sigmoid_cross_entropy(from_numpy(library, logits[:, 0]), given)
    assert_close(binary, polyloss.sigmoid_cross_entropy(logits[:, 0], labels), "float32")


@every_library
def test_a_label_and_its_one_hot_row_are_the_same(library: str) -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((5, 4)).astype("f"), rng.integers(4, size=5)
    rows = np.eye(4, dtype="f")[labels]
    for options in (
        {},
        {"class_weights": np.array([1.0, 2.0, 0.5, 3.0], "f")},
        {"class_weights": np.array([1.0, 2.0, 0.5, 3.0], "f"), "label_smoothing": 0.1, "weights": np.arange(1.0, 6)},
    ):
        row = Row(polyloss.softmax_cross_entropy, lambda *_: {}, options)
        hard, slope = value_and_gradients(row, library, {"logits": logits, "targets": labels})
        soft, slopes = value_and_gradients(row, library, {"logits": logits, "targets": rows})
        assert_close(hard, soft, "float32")
        assert_close(slope["logits"], slopes["logits"], "float32")


@every_library
def test_softmax_cross_entropy_does_not_change_with_a_shift(library: str) -> None:
    rng = np.random.default_rng(2)
    logits, labels = rng.integers(-64, 64, (5, 4)).astype("f") / 8, rng.integers(4, size=5)
    row = Row(polyloss.softmax_cross_entropy, lambda *_: {})
    expected, slopes = value_and_gradients(row, library, {"logits": logits, "targets": labels})
    value, gradients = value_and_gradients(row, library, {"logits": logits + 1024, "targets": labels})
    np.testing.assert_array_equal(to_numpy(value), to_numpy(expected))  # the shift itself rounds nothing
    np.testing.assert_array_equal(to_numpy(gradients["logits"]), to_numpy(slopes["logits"]))


@every_loss
def test_a_cotangent_of_zero_gives_a_gradient_of_exactly_zero(name: str) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    row = LOSSES[name]
    arguments = row.arguments(6, 3, "float32", magnitude=50.0)
    given = {key: from_numpy("torch", x) for key, x in (arguments | row.options).items()}
    for key in row.floating(arguments):
        given[key].requires_grad_()
    (0 * row.loss(**given)).backward()
    assert not any(torch.any(given[key].grad) for key in row.floating(arguments))
    rest = {key: from_numpy("jax", x) for key, x in (arguments | row.options).items()}
    primals = {key: rest.pop(key) for key in row.floating(arguments)}
    found = jax.grad(lambda p: 0 * row.loss(**p, **rest))(primals)
    assert not any(np.any(to_numpy(g)) for g in found.values())


@every_loss
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    torch = pytest.importorskip("torch")
    row = LOSSES[name]
    n = 64 if row.loss is polyloss.info_nce else 70_000  # info_nce has a matrix product of torch's own
    arguments = row.arguments(7, n, "float32")
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            value, gradients = value_and_gradients(row, "torch", arguments)
        finally:
            torch.set_num_threads(threads)
        found.append([to_numpy(value), *(to_numpy(g) for g in gradients.values())])
    for one, two in zip(*found):
        np.testing.assert_array_equal(one, two)


@every_library
def test_one_item_alone_may_be_0d(library: str) -> None:
    """The loss of an item is that of a batch of one."""
    for row in LOSSES.values():
        if row.loss is polyloss.info_nce:
            continue
        arguments = row.arguments(8, 1, "float32")
        batch, slopes = value_and_gradients(row, library, arguments, reduction="none")
        alone = row.take(arguments, 0)
        options = {"axis": 0} if "axis" in row.options else {}
        value, gradients = value_and_gradients(row, library, alone, reduction="none", **options)
        assert_close(value, to_numpy(batch)[0], "float32")
        for key, gradient in gradients.items():
            assert_close(gradient, to_numpy(slopes[key])[0], "float32")
    x = np.float32(0.5)
    for transform in (polyloss.sigmoid, polyloss.softplus, polyloss.log_sigmoid):
        assert_close(transform(from_numpy(library, np.asarray(x))), transform(np.asarray([x]))[0], "float32")


@every_library
def test_one_query_alone_has_the_loss_of_a_batch_of_one(library: str) -> None:
    rng = np.random.default_rng(9)
    query, positive, negatives = (rng.standard_normal(shape).astype("f") for shape in ((4,), (4,), (3, 4)))
    alone = {"queries": query, "positives": positive, "negatives": negatives}
    batch = {"queries": query[None], "positives": positive[None], "negatives": negatives}
    row = Row(polyloss.info_nce, lambda *_: {})
    value, gradients = value_and_gradients(row, library, alone)
    expected, slopes = value_and_gradients(row, library, batch)
    assert_close(value, expected, "float32")
    for key in alone:
        assert_close(np.reshape(to_numpy(gradients[key]), slopes[key].shape), slopes[key], "float32")
