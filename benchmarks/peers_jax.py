"""JAX: optax's losses and ours, compiled together with their gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contestants import Run
from benchmarks.workloads import TEMPERATURE, Workload

__all__ = ["jit", "polyloss_on_jax"]


def jit(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    """Optax's loss, or what its users write."""
    return _jitted(LOSSES[workload.loss], workload, x, y)


def polyloss_on_jax(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    """Ours, differentiated by JAX."""
    import polyloss

    loss: Callable[..., Any] = getattr(polyloss, workload.loss)
    if workload.loss == "info_nce":
        loss = functools.partial(loss, temperature=TEMPERATURE)
    return _jitted(loss, workload, x, y)


def _jitted(loss: Callable[..., Any], workload: Workload, x: np.ndarray, y: np.ndarray) -> Run:
    """Inputs are placed beforehand. Labels are int32, as JAX makes them unless its 64-bit types are switched on."""
    if workload.gradient:
        loss = jax.value_and_grad(loss, (0, 1) if workload.outputs == 2 else 0)
    call = jax.jit(loss)
    if workload.dtype == "float32":
        first, second = _placed(x), _placed(y)
        return lambda: jax.block_until_ready(call(first, second))
    with _wide():
        first, second = _placed(x), _placed(y)

    def run() -> Any:
        with _wide():
            return jax.block_until_ready(call(first, second))

    return run


def _placed(array: np.ndarray) -> jax.Array:
    placed: jax.Array = jax.block_until_ready(jnp.array(array, copy=True))
    return placed


def _wide() -> AbstractContextManager[None]:
    """Switches JAX's 64-bit types on, in this block only."""
    home = jax if hasattr(jax, "enable_x64") else jax.experimental  # where JAX before 0.8 had it
    enable: Callable[[bool], AbstractContextManager[None]] = home.enable_x64
    return enable(True)


def _softmax(x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def _sigmoid(x: jax.Array, t: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(x, t).mean()


def _info_nce(q: jax.Array, p: jax.Array) -> jax.Array:
    q, p = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (q, p))
    return _softmax(q @ p.T / TEMPERATURE, jnp.arange(len(q)))


LOSSES: dict[str, Callable[..., Any]] = {
    "softmax_cross_entropy": _softmax,
    "sigmoid_cross_entropy": _sigmoid,
    "info_nce": _info_nce,
}
