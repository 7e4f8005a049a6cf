"""The two questions of every call: whose array is it, and where do its numbers live?

The answers are two tables, and nothing in them is imported before it is needed. Adding an array library is one row of
`known_library`, adding fast kernels for a kind of memory one row of `kernels`; a library that has neither a row nor an
entry point is served by the array API standard.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from polyloss.backends import Array, Implementation, Kernels, Library, Primitive

__all__ = [
    "LIBRARIES",
    "Application",
    "detached",
    "implementation",
    "is_number_like",
    "kernels",
    "known_library",
    "library_of",
    "scope",
]

LIBRARIES = ("numpy", "cupy", "torch", "jax", "dask")
"""The array libraries that have a row in `known_library`."""


def known_library(top: str) -> Library | None:
    """The library by the top-level module of its array type.

    Import statements, because torch.compile may trace the very first call, and follows nothing else.
    """
    match top:
        case "numpy":
            from polyloss.backends import numpy

            return numpy.LIBRARY
        case "cupy":
            from polyloss.backends import cupy

            return cupy.LIBRARY
        case "torch":
            from polyloss.backends import torch

            return torch.LIBRARY
        case "jax" | "jaxlib":
            from polyloss.backends import jax

            return jax.LIBRARY
        case "dask":
            from polyloss.backends import dask

            return dask.LIBRARY
        case _:
            return None


def kernels(memory: str | None) -> Kernels | None:
    """The kernels that compute in that memory."""
    match memory:
        case "dask":
            from polyloss.backends import dask

            return dask.KERNELS
        case _:
            return None


_BY_TYPE: dict[type, Library] = {}
_BY_NAMESPACE: dict[Any, Library] = {}


def is_number_like(x: Any) -> bool:
    """Whether ``x`` belongs to no array library: a Python number, a NumPy scalar, a nested sequence of them."""
    return isinstance(x, (int, float, complex, np.generic, list, tuple))


def library_of(x: Any) -> Library:
    """The library of the array ``x``; `TypeError` where it is no array."""
    library = _BY_TYPE.get(type(x))
    if library is None:
        library = _BY_TYPE[type(x)] = _find(x)
    return library


def _find(x: Any) -> Library:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        for base in type(x).__mro__:
            top = base.__module__.partition(".")[0]
            if (library := known_library(top)) is not None:
                return library
            for point in entry_points(group="polyloss.backends", name=top):
                loaded: Library = point.load()
                return loaded
        if hasattr(x, "__array_namespace__"):
            namespace = x.__array_namespace__()
            return _BY_NAMESPACE.setdefault(namespace, Library(namespace))
    raise TypeError(f"not an array: {type(x).__module__}.{type(x).__qualname__}")


def implementation(primitive: Primitive, library: Library, *arrays: Array | None) -> Implementation:
    """The kernel for the memory that holds the arrays, or the primitive itself: the generic formula."""
    fast = kernels(library.memory(arrays[0]))
    return (fast and fast.take(primitive, library, *arrays)) or primitive


def _library_or_none(x: Any) -> Library | None:
    if x is None or isinstance(x, str) or is_number_like(x):
        return None
    try:
        return library_of(x)
    except TypeError:  # the loss will name the argument
        return None


def scope(*arguments: Any) -> AbstractContextManager[Any]:
    """What a call with these arguments runs in, by the library of the first array among them."""
    for x in arguments:
        if (library := _library_or_none(x)) is not None:
            return library.scope(x)
    return np.errstate(all="ignore")


def detached(x: Any) -> Any:
    """An argument as a constant to its library's autodiff."""
    library = _library_or_none(x)
    return x if library is None else library.stop_gradient(x)


@dataclass(frozen=True)
class Application:
    """A primitive and the arrays that it waits for."""

    primitive: Primitive
    library: Library
    arrays: tuple[Array | None, ...]

    def value(self) -> Array:
        """The items, differentiable by the library's own autodiff."""
        fast = implementation(self.primitive, self.library, *self.arrays)
        return self.library.apply(self.primitive, fast, *self.arrays)

    def value_and_vjp(self, cotangent: Array, wanted: tuple[bool, ...]) -> tuple[Array, tuple[Array | None, ...]]:
        """The items, and the gradients of ``sum(cotangent * items)`` in the wanted arrays, by the formula alone."""
        fast = implementation(self.primitive, self.library, *self.arrays)
        items, residuals = fast.forward(self.library, *self.arrays)
        wanted += (False,) * (len(self.arrays) - len(wanted))
        return items, fast.vjp(self.library, cotangent, wanted, residuals, *self.arrays)
