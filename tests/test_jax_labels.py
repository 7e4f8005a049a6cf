"""Cross-entropy with labels in JAX without the kernels has the numbers of its formula."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.backends import jax_labels
from polyloss.conformance.routes import wide
from polyloss.dispatch import generic

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from polyloss.backends import jax as library  # noqa: E402

inf, nan = np.inf, np.nan
softmax = polyloss.softmax_cross_entropy
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The calls that this form was given."""
    found: list[Any] = []

    def faster(primitive: Any, *arrays: Any) -> Any:
        if not jax_labels.take(primitive, *arrays):
            return None
        found.append(arrays)
        return jax_labels

    monkeypatch.setattr(library, "_faster", faster)
    jax.clear_caches()
    yield found
    jax.clear_caches()


def rows(dtype: Any) -> np.ndarray:
    most, tiny = np.finfo(dtype).max, np.finfo(dtype).tiny
    return np.array(
        [
            [0, 40, 1, 2],
            [1, 1, 1, 1],
            [0, -100, -200, -90],
            [3, 3, -1, -inf],
            [-inf, 0, -inf, 1],
            [inf, 0, 1, 2],
            [inf, inf, 1, 2],
            [inf, inf, inf, inf],
            [inf, most, -most, -inf],
            [most, inf, most, most],
            [most, most, -most, 0],
            [-most, -most, -most, -most],
            [0, tiny, -tiny, 2 * tiny],
            [-inf, -inf, -inf, -inf],
            [nan, 0, 1, 2],
            [inf, nan, 1, 1],
        ],
        dtype,
    )


def both(x: Any, y: Any) -> tuple[Any, Any]:
    items, pull = jax.vjp(lambda x: softmax(x, y, reduction="none"), x)
    return items, pull(jnp.ones_like(items))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_rows(dtype: str, without_kernels: list[Any]) -> None:
    with wide("jax", dtype):
        x = jnp.asarray(np.repeat(rows(dtype), 4, axis=0))
        y = jnp.asarray(np.tile(np.arange(4), len(x) // 4))
        results = jax.jit(both)(x, y), polyloss.value_and_grad(softmax)(x, y, reduction="none")
        assert len(without_kernels) == 2
        with generic():
            expected = jax.jit(lambda x, y: both(x, y))(x, y)
    for result in results:
        for one, two in zip(result, expected):
            np.testing.assert_allclose(one, two, rtol=8 * float(jnp.finfo(dtype).eps), atol=0)


@pytest.mark.parametrize("k", [1, 2, 7, 1000])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32"])
def test_labels_of_every_type_ties_and_confident_rows(k: int, kind: str) -> None:
    x = jnp.asarray(np.round(RNG.standard_normal((200, k)) * 3 * RNG.choice([1, 30], (200, 1))).astype(np.float32))
    y = jnp.asarray(RNG.integers(min(k, 128), size=200).astype(kind))
    got = jax.jit(both)(x, y)
    with generic():
        expected = jax.jit(lambda x, y: both(x, y))(x, y)
    for one, two in zip(got, expected):
        np.testing.assert_allclose(one, two, rtol=3e-6, atol=0)


def test_an_invalid_label_poisons_its_own_row() -> None:
    x = jnp.asarray(RNG.standard_normal((5, 40)).astype(np.float32))
    items, slopes = jax.jit(both)(x, jnp.asarray([0, 40, 2, -1, 2**31 - 1]))
    bad = np.array([False, True, False, True, True])
    np.testing.assert_array_equal(np.isnan(items), bad)
    np.testing.assert_array_equal(np.isnan(slopes), np.repeat(bad[:, None], 40, axis=1))


def test_every_transformation_is_that_of_the_formula() -> None:
    x, v = (jnp.asarray(a) for a in RNG.standard_normal((2, 6, 5)).astype(np.float32) * 2)
    y = jnp.asarray([0, 4, 1, 1, 3, 2])

    def f(x: Any) -> Any:
        return softmax(x, y) ** 2

    transformed = [
        jax.grad(f),
        jax.hessian(f),
        lambda x: jax.jvp(f, (x,), (v,)),
        lambda x: jax.jvp(jax.grad(f), (x,), (v,)),
        lambda x: jax.vmap(jax.value_and_grad(softmax))(x[:, None], y[:, None]),
        lambda x: jax.vmap(jax.grad(softmax), (None, 0))(x, jnp.stack([y, y[::-1]])),
        lambda x: jax.grad(jax.checkpoint(lambda x: f(x)))(x),  # a function of its own, which is traced anew
        lambda x: jax.grad(polyloss.softmax_cross_entropy)(jnp.zeros((0, 5)) + x[:0], y[:0]),
    ]
    for transform in transformed:
        got = transform(x)
        with generic():
            expected = transform(x + 0)
        for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_what_it_does_not_take(without_kernels: list[Any]) -> None:
    x, y = jnp.zeros((3, 4)), jnp.zeros(3, int)
    softmax(x, y, label_smoothing=0.1)
    softmax(x, y, z_loss=0.1)
    softmax(x, y, class_weights=jnp.ones(4))
    softmax(x, y, class_mask=jnp.ones(4, bool))
    softmax(x, jnp.full((3, 4), 0.25))
    polyloss.bpr(y * 1.0, y * 2.0)
    polyloss.sigmoid_cross_entropy(x, x)
    polyloss.pairwise_hinge(y * 1.0, x)
    with generic():
        softmax(x, y)
    assert without_kernels == []
    softmax(x, y, weights=jnp.ones(3))
    assert len(without_kernels) == 1


def test_an_exported_program_of_any_size() -> None:
    from jax import export

    rows, classes = export.symbolic_shape("b,k")
    shapes = jax.ShapeDtypeStruct((rows, classes), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    x, y = jnp.asarray([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]]), jnp.asarray([2, 0], jnp.int32)
    got = export.export(jax.jit(both))(*shapes).call(x, y)
    for one, two in zip(got, both(x, y)):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_conformance_on_several_devices() -> None:
    command = (
        "conformance --library jax --loss softmax_cross_entropy --dtype float32 --path jit --check accuracy --quick"
    )
    code = f"""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import polyloss
from polyloss.__main__ import main
main({command.split()})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed, 0 failed" in result.stdout
