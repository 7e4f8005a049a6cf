"""What an invalid value does where no error can be raised, and where its item is masked: `INVALID` holds such items."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from calls import (
    HOST,
    INF,
    NAN,
    P,
    S,
    T,
    V,
    X,
    Y,
    bce,
    given,
    namespace,
    pair,
    put,
    sce,
)

import polyloss

ble = partial(given, "binary_log_loss", probabilities=S, targets=S)
# A call, and what turns its item 1 invalid.
INVALID: list[tuple[Any, ...]] = [
    ("label K", sce(), {"targets": put(Y, 1, 4)}),
    ("label -1", sce(), {"targets": put(Y, 1, -1)}),
    ("label far", sce(), {"targets": put(Y.astype(np.int32), 1, 2**31 - 1)}),
    ("label far below", sce(), {"targets": put(Y.astype(np.int32), 1, -(2**31))}),
    ("label uint8", sce(targets=Y.astype(np.uint8)), {"targets": put(Y.astype(np.uint8), 1, 255)}),
    ("label, smoothed", sce(label_smoothing=0.25, z_loss=0.1), {"targets": put(Y, 1, 4)}),
    ("label, class_weights", sce(class_weights=[1, 0.5, 2, 0.25]), {"targets": put(Y, 1, 4)}),
    ("label, log_loss", given("log_loss"), {"targets": put(Y, 1, 4)}),
    ("label, log_loss, eps", given("log_loss", eps=0.3), {"targets": put(Y, 1, -1)}),
    ("soft target > 1", sce(targets=T), {"targets": put(T, (1, 2), 1.5)}),
    ("soft target < 0", sce(targets=T), {"targets": put(T, (1, 2), -0.5)}),
    ("soft target NaN", sce(targets=T), {"targets": put(T, (1, 2), NAN)}),
    ("soft target, log_loss", given("log_loss", targets=T), {"targets": put(T, (1, 2), 1.5)}),
    ("target > 1", bce(logits=V, targets=S), {"targets": put(S, 1, 1.5)}),
    ("target < 0", bce(logits=V, targets=S, label_smoothing=0.25), {"targets": put(S, 1, -0.5)}),
    ("target NaN", bce(logits=V, targets=S, pos_weight=2.0), {"targets": put(S, 1, NAN)}),
    ("target int", bce(logits=V, targets=Y == 2), {"targets": put(Y, slice(None), [1, 2, 0])}),
    ("target of a probability", ble(probabilities=P[0, :3]), {"targets": put(S, 1, 1.5)}),
    ("target of a clipped probability", ble(eps=0.1), {"targets": put(S, 1, 1.5)}),
    ("probability > 1", ble(), {"probabilities": put(S, 1, 1.5)}),
    ("probability < 0, clipped", ble(eps=0.1), {"probabilities": put(S, 1, -0.5)}),
    ("probabilities of a row", given("log_loss"), {"probabilities": put(P, 1, [1.5, -0.5, 0, 0])}),
    ("row sum", given("log_loss"), {"probabilities": put(P, 1, 0.125)}),
    ("row sum, soft, eps", given("log_loss", targets=T, eps=0.2), {"probabilities": put(P, 1, 0.125)}),
    ("distance", given("contrastive_from_distance"), {"distances": put(V, 1, -0.5)}),
    ("similar, distance", given("contrastive_from_distance"), {"similar": put(S, 1, 1.5)}),
    ("similar", pair(second=T), {"similar": put(S, 1, -0.5)}),
    ("all NaN", bce(logits=V, targets=S, weights=V), {"logits": put(V, 1, NAN), "weights": put(V, 1, INF)}),
    ("row of NaN", sce(), {"logits": put(X, 1, NAN), "targets": put(Y, 1, 99)}),
    ("similar NaN", pair(second=T), {"similar": put(S, 1, NAN)}),
]


def by_formula(call: partial[Any], arrays: dict[str, Any]) -> Any:
    return polyloss.value_and_grad(call.func)(**call.keywords | arrays, reduction="none")


def by_autodiff(grad: Any, call: partial[Any], arrays: dict[str, Any]) -> Any:
    name, *_ = arrays

    def items(x: Any) -> Any:
        return call.func(**call.keywords | arrays | {name: x}, reduction="none")

    return items(arrays[name]), grad(lambda x: items(x).sum())(arrays[name])


def _eager(library: str, call: partial[Any], arrays: dict[str, Any]) -> Any:
    return by_formula(call, {name: namespace(library).asarray(x) for name, x in arrays.items()})


def _jit(formula: bool, call: partial[Any], arrays: dict[str, Any]) -> Any:
    jax = namespace("jax")
    return jax.jit(partial(by_formula, call) if formula else partial(by_autodiff, jax.grad, call))(arrays)


def _vmap(formula: bool, call: partial[Any], arrays: dict[str, Any]) -> Any:
    func = namespace("torch.func")
    one = partial(by_formula, call) if formula else partial(by_autodiff, func.grad, call)
    return func.vmap(one)({name: namespace("torch").asarray(x) for name, x in arrays.items()})


def _dask(call: partial[Any], arrays: dict[str, Any]) -> Any:
    return by_formula(call, {name: namespace("dask.array").from_array(x, chunks=2) for name, x in arrays.items()})


UNCHECKED: dict[str, Any] = {  # where looking at a value would stall a device or break a trace
    "jax.jit": partial(_jit, True),
    "jax.jit of jax.grad": partial(_jit, False),
    "dask": _dask,
    "torch.func.vmap": partial(_vmap, True),
    "torch.func.vmap of grad": partial(_vmap, False),
}
ROUTES = UNCHECKED | {library: partial(_eager, library) for library in HOST}


def items_and_gradient(route: str, call: partial[Any], **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = {name: x for name, x in (call.keywords | changes).items() if isinstance(x, np.ndarray)}
    items, gradient = ROUTES[route](call, arrays)
    return np.asarray(items), np.asarray(gradient)


@pytest.mark.parametrize("route", UNCHECKED)
@pytest.mark.parametrize(("call", "invalid"), [pytest.param(*row, id=name) for name, *row in INVALID])
def test_where_values_are_not_checked_an_invalid_item_is_nan_and_its_neighbours_keep_every_bit(call, invalid, route):
    pairs = zip(items_and_gradient(route, call), items_and_gradient(route, call, **invalid), strict=True)
    for what, (valid, spoilt) in zip(("items", "gradient"), pairs, strict=True):
        assert np.isfinite(valid).all(), what
        assert np.isnan(spoilt[1]).all(), f"{what}: {spoilt[1]}"
        assert spoilt[[0, 2]].tobytes() == valid[[0, 2]].tobytes(), f"{what}: {spoilt} for {valid}"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("call", "invalid"), [pytest.param(*row, id=name) for name, *row in INVALID])
def test_a_masked_item_is_not_looked_at(call, invalid, route):
    where = np.array([True, False, True])
    run = partial(items_and_gradient, route, call, where=where)
    for valid, spoilt in zip(run(), run(**invalid), strict=True):
        assert (spoilt[1] == 0).all()
        assert spoilt.tobytes() == valid.tobytes(), f"{spoilt} for {valid}"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("classes", "index", "dtype"),
    [(4, -100, int), (4, -1, int), (4, 4, int), (4, 255, np.uint8), (4, -128, np.int8), (128, -100, int), (4, 1, int)],
)
def test_an_ignored_label_is_not_looked_at(classes, index, dtype, route):
    # -100 is ignored also where there are so many classes that it could be an index from the end.
    logits = np.linspace(-2, 2, 3 * classes).reshape(3, classes)
    valid = sce(logits=logits, targets=Y, where=np.array([True, False, True]))
    ignored = sce(logits=put(logits, 1, NAN), targets=put(Y.astype(dtype), 1, index), ignore_index=index)
    for expected, found in zip(items_and_gradient(route, valid), items_and_gradient(route, ignored), strict=True):
        assert (found[1] == 0).all()
        assert found.tobytes() == expected.tobytes(), f"{found} for {expected}"


def test_where_jax_raises_at_every_nan_a_valid_call_meets_none() -> None:
    jax = pytest.importorskip("jax")
    x, labels = jax.numpy.asarray(np.array([[1.0, 2.0, 3.0], [0.0, 0.5, 0.0]], np.float32)), np.array([0, 2])
    weighted = {"weights": np.array([1.0, 2.0]), "where": np.array([True, False])}
    with jax.debug_nans(True):
        assert polyloss.logsumexp(x).shape == (2,)
        for options in ({}, weighted):
            slope = jax.grad(lambda x, options=options: polyloss.softmax_cross_entropy(x, labels, **options))(x)
            assert bool(jax.numpy.all(jax.numpy.isfinite(slope)))
        with pytest.raises(FloatingPointError):
            polyloss.logsumexp(x * np.nan)
