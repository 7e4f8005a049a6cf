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
from polyloss.backends import Array, Gradients, Implementation, Library, Primitive, Residuals, Wanted

__all__ = ["KERNELS", "LIBRARY"]


class Dask(Library):
    @property
    def name(self) -> str:
        return "dask"

    def refuse(self, x: Array) -> str | None:
        return dispatch.library_of(x._meta).refuse(x._meta)

    def device(self, x: Array) -> Any:
        return None

    def placed(self, x: Array) -> dict[str, Any]:
        return {}

    def memory(self, x: Array) -> str | None:
        return "dask"

    def float_dtype(self, value: np.ndarray) -> Any:
        return np.float64

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return da.from_array(np.array(value, dtype=dtype), chunks=-1)

    def sum(self, x: Array) -> Array:
        return da.sum(x, axis=-1)

    def total(self, x: Array) -> Array:
        return da.sum(x)  # a reshape would rechunk

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass(frozen=True)
class _BlockWise:
    """A primitive that is applied to every block of items when the blocks are there."""

    primitive: Primitive

    @property
    def rows(self) -> bool:
        return self.primitive.rows

    def forward(self, library: Library, *arrays: Any) -> tuple[Array, tuple[Array, ...]]:
        return self._lazily(_items, arrays[0].ndim - self.rows, arrays, len(arrays)), ()

    def vjp(self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, *arrays: Any) -> Gradients:
        count = len(arrays)

        def gradient(i: int) -> Array:
            return self._lazily(_gradient_of(i, count), arrays[i].ndim, (*arrays, cotangent), count)

        return tuple(gradient(i) if w and x is not None else None for i, (w, x) in enumerate(zip(wanted, arrays)))

    def _lazily(self, block: Callable[..., Array], ndim: int, arrays: tuple[Any, ...], own: int) -> Array:
        """``block(library, implementation, *blocks)``, block by block; the result has ``ndim`` axes.

        The first ``own`` arrays are the primitive's.
        """
        items = arrays[0].ndim - self.rows
        given = [i for i, x in enumerate(arrays) if x is not None]
        operands: list[Any] = []
        for i in given:
            x = arrays[i]
            operands += [x.rechunk({items: -1}) if x.ndim > items else x, tuple(range(x.ndim))]
        meta = np.empty((0,) * ndim, dtype=arrays[0].dtype)
        task = _task(self.primitive, block, given, len(arrays), own)
        return da.blockwise(task, tuple(range(ndim)), *operands, dtype=meta.dtype, meta=meta, concatenate=True)


def _items(library: Library, implementation: Implementation, *blocks: Array | None) -> Array:
    return implementation.forward(library, *blocks)[0]


def _gradient_of(i: int, count: int) -> Callable[..., Array]:
    only_this = tuple(i == j for j in range(count))

    def block(library: Library, implementation: Implementation, *blocks: Array | None) -> Array:
        *arrays, cotangent = blocks
        return implementation.vjp(library, cotangent, only_this, None, *arrays)[i]

    return block


def _task(
    primitive: Primitive, block: Callable[..., Array], given: list[int], count: int, own: int
) -> Callable[..., Array]:
    """What runs on the blocks. It travels to the workers, and holds no array."""

    def task(*blocks: Array) -> Array:
        library = dispatch.library_of(blocks[0])
        parts: list[Array | None] = [None] * count
        for i, part in zip(given, blocks):
            parts[i] = part
        with library.scope(parts[0]):
            return block(library, dispatch.implementation(primitive, library, *parts[:own]), *parts)

    return task


class _Kernels:
    def take(self, primitive: Primitive, library: Library, *arrays: Array | None) -> Implementation:
        return _BlockWise(primitive)


LIBRARY = Dask(array_api_compat.dask.array)
KERNELS = _Kernels()
