"""Dask: a primitive becomes one lazy task per block of items, and each task asks for its own block's kernel.

Nothing is computed, and no value is looked at, before the user asks for it: an invalid value turns its own item into
NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat.dask.array
import dask.array as da
import numpy as np

from polyloss import dispatch
from polyloss.application import Application
from polyloss.backends import Array, Gradients, Library, Primitive, Wanted

__all__ = ["LIBRARY"]


class Dask(Library):
    lazy = True
    one_place = True

    @property
    def name(self) -> str:
        return "dask"

    def refuse(self, x: Array) -> str | None:
        return dispatch.library_of(x._meta).refuse(x._meta)

    def report(self, x: Array) -> tuple[str, str]:
        return "", "each block of items asks again, by its own library"

    def placed(self, x: Array) -> dict[str, Any]:
        return {}

    def memory(self, x: Array) -> str | None:
        return None

    def float_dtype(self, value: np.ndarray) -> Any:
        return np.float64

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return da.from_array(np.array(value, dtype=dtype), chunks=-1)

    def sum(self, x: Array) -> Array:
        return da.sum(x, axis=-1)

    def total(self, x: Array) -> Array:
        return da.sum(x)  # a reshape would rechunk

    def apply(self, primitive: Primitive, *arrays: Array | None) -> Array:
        return _lazily(primitive, _items, arrays[0].ndim - primitive.rows, arrays)  # type: ignore[union-attr]

    def value_and_vjp(
        self, primitive: Primitive, cotangent: Array, wanted: Wanted, *arrays: Array | None
    ) -> tuple[Array, Gradients]:
        def gradient(i: int) -> Array:
            return _lazily(primitive, _gradient_of(i), arrays[i].ndim, (*arrays, cotangent))  # type: ignore[union-attr]

        gradients = (gradient(i) if w and x is not None else None for i, (w, x) in enumerate(zip(wanted, arrays)))
        return self.apply(primitive, *arrays), tuple(gradients)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()


_Block = Callable[..., Array]
"""From a library, a primitive, its arrays in one block of items, and perhaps the items' cotangent, to an array."""


def _lazily(primitive: Primitive, block: _Block, ndim: int, arrays: tuple[Any, ...]) -> Array:
    """``block`` of every block of items; the result has ``ndim`` axes."""
    items = arrays[0].ndim - primitive.rows
    given = [i for i, x in enumerate(arrays) if x is not None]
    operands: list[Any] = []
    for i in given:
        x = arrays[i]
        operands += [x.rechunk({items: -1}) if x.ndim > items else x, tuple(range(x.ndim))]
    meta = np.empty((0,) * ndim, dtype=arrays[0].dtype)
    task = _task(primitive, block, given, len(arrays), dispatch.is_generic())
    return da.blockwise(task, tuple(range(ndim)), *operands, dtype=meta.dtype, meta=meta, concatenate=True)


def _task(primitive: Primitive, block: _Block, given: list[int], count: int, generic: bool) -> Callable[..., Array]:
    """What runs on the blocks. It travels to the workers, and holds no array."""

    def task(*blocks: Array) -> Array:
        library = dispatch.library_of(blocks[0])
        parts: list[Array | None] = [None] * count
        for i, part in zip(given, blocks):
            parts[i] = part
        with library.scope(parts[0]), dispatch.generic() if generic else nullcontext():
            return block(library, primitive, *parts)

    return task


def _application(library: Library, primitive: Primitive, arrays: tuple[Array | None, ...]) -> Application:
    dtype = library.xp.float64 if arrays[0].dtype == library.xp.float64 else library.xp.float32  # type: ignore[union-attr]
    axis = arrays[0].ndim - 1  # type: ignore[union-attr]
    return Application(primitive, library, dtype, arrays, axis, poison=True)


def _items(library: Library, primitive: Primitive, *arrays: Array | None) -> Array:
    return _application(library, primitive, arrays).value()


@dataclass(frozen=True)
class _Weighted:
    """The sum of the items, weighted by their cotangent."""

    cotangent: Array

    def linear(self) -> tuple[Array, float]:
        return self.cotangent, 1.0


def _gradient_of(i: int) -> _Block:
    def block(library: Library, primitive: Primitive, *parts: Array | None) -> Array:
        *arrays, cotangent = parts
        application = _application(library, primitive, tuple(arrays))
        only_this = tuple(i == j for j in range(len(arrays)))
        fused = application.fused(only_this, _Weighted(cotangent))
        found = None if fused is None else fused.fused_value_and_vjp()
        return (application.value_and_vjp(cotangent, only_this) if found is None else found)[1][i]

    return block


LIBRARY = Dask(array_api_compat.dask.array)
