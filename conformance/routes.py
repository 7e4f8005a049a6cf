"""The ways to a value and its gradient: every array library, by the formula and by the library's own autodiff.

A route takes a loss, its arguments as NumPy arrays, its options, and the position of the argument to differentiate in.
It returns NumPy arrays: the items (``reduction="none"``) and the gradient of their sum.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

import polyloss
from polyloss.dispatch import generic

__all__ = ["ROUTES", "from_numpy", "installed", "to_numpy", "wide"]

Route = Callable[..., tuple[np.ndarray, np.ndarray]]

NAMESPACES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "array_api_strict": "array_api_strict",
}


def installed() -> list[str]:
    """The array libraries that can be checked here."""
    return [name for name in NAMESPACES if find_spec(name) is not None]


def from_numpy(library: str, x: Any) -> Any:
    """``x`` in that library, in host memory; what is no array stays as it is."""
    if library == "numpy" or not isinstance(x, np.ndarray):
        return x
    xp = importlib.import_module(NAMESPACES[library])
    if library == "dask":
        return xp.from_array(x, chunks=tuple(max(1, (n + 1) // 2) for n in x.shape))
    return xp.asarray(np.array(x)) if library != "torch" else xp.from_numpy(np.array(x))


def to_numpy(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = x.detach()
    return np.asarray(x._array if hasattr(x, "_array") else x)


@contextlib.contextmanager
def wide(library: str, dtype: str) -> Iterator[None]:
    """Where float64 exists: for JAX in this context alone."""
    if library == "jax" and dtype == "float64":
        import jax

        enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before 0.8
        with enable(True):
            yield
    else:
        yield


def _formula(library: str) -> Route:
    def route(
        loss: Any, arrays: tuple[Any, ...], options: dict[str, Any], wrt: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        given = [from_numpy(library, x) for x in arrays]
        options = {name: from_numpy(library, x) for name, x in options.items()}
        name = list(inspect.signature(loss).parameters)[wrt]
        items, gradient = polyloss.value_and_grad(loss, name)(*given, reduction="none", **options)
        return to_numpy(items), to_numpy(gradient)

    return route


def _torch(transform: str) -> Route:
    def route(
        loss: Any, arrays: tuple[Any, ...], options: dict[str, Any], wrt: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        import torch

        given = [from_numpy("torch", x) for x in arrays]
        options = {name: from_numpy("torch", x) for name, x in options.items()}
        first = given[wrt]

        def items(x: Any) -> Any:
            return loss(*given[:wrt], x, *given[wrt + 1 :], reduction="none", **options)

        if transform == "func":
            return to_numpy(items(first)), to_numpy(torch.func.grad(lambda x: items(x).sum())(first))
        if transform == "compile":
            torch._dynamo.reset()
            items = torch.compile(items, fullgraph=True, dynamic=False)
        first.requires_grad_()
        value = items(first)
        value.sum().backward()
        return to_numpy(value), to_numpy(first.grad)

    return route


def _jax(transform: str) -> Route:
    def route(
        loss: Any, arrays: tuple[Any, ...], options: dict[str, Any], wrt: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        import jax

        with wide("jax", str(arrays[0].dtype)):
            given = [from_numpy("jax", x) for x in arrays]
            options = {name: from_numpy("jax", x) for name, x in options.items()}

            def items(x: Any) -> Any:
                return loss(*given[:wrt], x, *given[wrt + 1 :], reduction="none", **options)

            def items_and_grad(x: Any) -> Any:
                value, pull = jax.vjp(items, x)
                return value, pull(jax.numpy.ones_like(value))[0]

            run = jax.jit(items_and_grad) if transform == "jit" else items_and_grad
            value, gradient = run(given[wrt])
            return to_numpy(value), to_numpy(gradient)

    return route


def _generic(route: Route) -> Route:
    def without_kernels(*args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        with generic():
            return route(*args, **kwargs)

    return without_kernels


ROUTES: dict[str, tuple[str, Route]] = {
    "numpy formula": ("numpy", _formula("numpy")),
    "numpy generic": ("numpy", _generic(_formula("numpy"))),
    "torch formula": ("torch", _formula("torch")),
    "torch backward": ("torch", _torch("backward")),
    "torch generic": ("torch", _generic(_torch("backward"))),
    "torch func": ("torch", _torch("func")),
    "torch compile": ("torch", _torch("compile")),
    "jax vjp": ("jax", _jax("vjp")),
    "jax jit": ("jax", _jax("jit")),
    "jax generic": ("jax", _generic(_jax("jit"))),
    "strict formula": ("array_api_strict", _formula("array_api_strict")),
    "dask formula": ("dask", _formula("dask")),
}
"""The library and the route, by name.

A formula is `polyloss.value_and_grad`; the others are the library's autodiff. "Generic" uses no kernel.
"""
