"""No array is taken to NumPy behind the user's back: its ways out are closed, and every loss still works."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.interchange import arguments
from polyloss.conformance.losses import LOSSES
from polyloss.conformance.routes import from_numpy

every_loss = pytest.mark.parametrize("name", LOSSES)


def closed(*_: Any, **__: Any) -> Any:
    raise AssertionError("a copy to the host")


def call(name: str, library: str) -> tuple[Any, Any, dict[str, Any]]:
    row = LOSSES[name]
    given = {key: from_numpy(library, x) for key, x in arguments(name, "float32").items()}
    return functools.partial(row.loss, **row.options), given.pop(next(iter(given))), given


@every_loss
def test_torch_tensors_are_read_where_they_lie(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take addresses: no ``numpy()``, which other memory than the host's does not have."""
    torch = pytest.importorskip("torch")
    loss, x, rest = call(name, "torch")
    for way in ("__array__", "__dlpack__", "numpy", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, way, closed)
    with pytest.raises(AssertionError, match="a copy to the host"):
        np.asarray(x)
    x.requires_grad_()
    loss(x, **rest).backward()
    loss(x, **rest, reduction="none")
    polyloss.value_and_grad(loss)(x, **rest)


@every_loss
def test_jax_arrays_stay_in_jax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: in host memory a call without jit looks for invalid values, which copies nothing."""
    jax = pytest.importorskip("jax")
    from polyloss.backends.jax import Jax

    monkeypatch.setattr(Jax, "memory", lambda self, x: "cuda")
    loss, x, rest = call(name, "jax")
    for way in ("__array__", "__dlpack__", "__float__", "__bool__", "__int__", "__index__", "tolist", "item"):
        monkeypatch.setattr(type(x), way, closed)
    with pytest.raises(AssertionError, match="a copy to the host"):
        float(x[0])
    jax.grad(loss)(x, **rest)
    jax.jit(jax.grad(loss))(x, **rest)


@every_loss
def test_an_array_of_the_standard_alone_stays_in_its_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("array_api_strict")
    loss, x, rest = call(name, "array_api_strict")
    for way in ("__array__", "__dlpack__", "__buffer__"):
        monkeypatch.setattr(type(x), way, closed, raising=False)
    with pytest.raises(AssertionError, match="a copy to the host"):
        np.asarray(x)
    value, gradient = polyloss.value_and_grad(loss)(x, **rest)
    assert type(value) is type(gradient) is type(x)
