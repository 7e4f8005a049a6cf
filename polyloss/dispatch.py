"""The two questions of every call: whose array is it, and where do its numbers live?

The answers are two tables, and nothing in them is imported before it is needed. Adding an array library is one row of
`known_library`, adding fast kernels for a kind of memory one row of `kernels`; a library that has neither a row nor an
entry point is served by the array API standard.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from polyloss.backends import Array, Kernels, Library

__all__ = [
    "LIBRARIES",
    "detached",
    "generic",
    "is_generic",
    "is_number_like",
    "is_traced",
    "kernels",
    "kernels_for",
    "known",
    "known_library",
    "library_of",
    "plain_library",
    "scope",
    "shared",
    "shares",
    "transform",
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
        case "host":
            return _host_kernels()
        case "cuda":
            from polyloss.backends import cuda

            return cuda.KERNELS
        case _:
            return None


@functools.cache
def _host_kernels() -> Kernels | None:
    try:
        from polyloss.backends import cpu
    except ImportError:  # llvmlite does not exist for every platform
        return None
    return cpu.KERNELS


_generic: ContextVar[bool] = ContextVar("polyloss.generic", default=False)


@contextmanager
def generic() -> Iterator[None]:
    """Inside it, no kernel is used in this thread (or task): every loss takes the generic formula.

    For debugging, and for comparing the two.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> from polyloss.dispatch import generic
    >>> with generic():
    ...     print(polyloss.bpr(np.array([1.0]), np.array([0.0])).round(6))
    0.313262
    """
    token = _generic.set(True)
    try:
        yield
    finally:
        _generic.reset(token)


def is_generic() -> bool:
    """Whether this is inside `generic`."""
    return _generic.get()


_shared: ContextVar[bool] = ContextVar("polyloss.shared", default=False)


@contextmanager
def shared() -> Iterator[None]:
    """Inside it, a kernel computes in the calling thread alone, because others do the like beside it."""
    token = _shared.set(True)
    try:
        yield
    finally:
        _shared.reset(token)


def shares() -> bool:
    """Whether this is inside `shared`."""
    return _shared.get()


def kernels_for(library: Library, x: Array) -> Kernels | None:
    """The kernels for the memory that holds ``x``."""
    memory = library.memory(x)
    return None if memory is None or _generic.get() else kernels(memory)


def transform(name: str, library: Library, x: Array) -> Array | None:
    """A transform of x by a kernel, where there is one and no derivative of it may be asked for."""
    kernels = kernels_for(library, x)
    return None if kernels is None else kernels.transform(name, library, x)


_BY_TYPE: dict[type, Library] = {}
_PLAIN: dict[type, Library] = {}
_BY_NAMESPACE: dict[Any, Library] = {}


def is_number_like(x: Any) -> bool:
    """Whether ``x`` belongs to no array library: a Python number, a NumPy scalar, a nested sequence of them."""
    return isinstance(x, (int, float, complex, np.generic, list, tuple))


def is_traced() -> bool:
    """Whether torch.compile is tracing this call.

    What it traces is valid as long as every table that it saw is unchanged. So it must see none that grows: or each new
    type and library, in whatever call, would have all that was compiled before compiled anew.
    """
    compiler = getattr(sys.modules.get("torch"), "compiler", None)
    return compiler is not None and bool(compiler.is_compiling())


def library_of(x: Any) -> Library:
    """The library of the array ``x``; `TypeError` where it is no array."""
    if is_traced() and (library := known_library(type(x).__module__.partition(".")[0])) is not None:
        return library
    library = _BY_TYPE.get(type(x))
    if library is None:
        library = _find(x)
        if isinstance(x, np.generic):  # a number, in a call; NumPy's own arithmetic makes some of 0-d arrays
            return library
        _BY_TYPE[type(x)] = library
        if library.plain is type(x):
            _PLAIN[type(x)] = library
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


def known(x: Any) -> Library | None:
    """The library of ``x`` where an array of this type has been seen before."""
    return _library_or_none(x) if is_traced() else _BY_TYPE.get(type(x))


def plain_library(arguments: Iterable[Any]) -> tuple[Library, Any] | None:
    """The library of plain arrays (`Library.plain`) and one of them, where there is nothing else but None."""
    if is_traced():
        return None
    library = first = None
    for x in arguments:
        if x is not None:
            found = _PLAIN.get(type(x))
            if found is None or (found is not library and library is not None):
                return None
            library, first = found, x
    return None if library is None else (library, first)


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
    if not is_traced() and type(x) in _PLAIN:
        return x
    library = _library_or_none(x)
    return x if library is None else library.stop_gradient(x)
