"""Dask: a primitive becomes one lazy task per block of items, and each task asks for its own block's kernel.

Nothing is computed, and no value is looked at, before the user asks for it: an invalid value turns its own item into
NaN. The sizes of blocks of items need not be known; those of two arrays are then compared in the tasks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat.dask.array
import dask.array as da
import numpy as np

from polyloss import dispatch
from polyloss.application import Application
from polyloss.backends import Array, Gradients, Library, Primitive, Wanted
from polyloss.backends.numpy import sums_of_groups

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

    def broadcast(self, x: Array, like: Array, axis: int | None = None, names: tuple[str, str] = ("", "")) -> Array:
        like = like if axis is None else like[(*(slice(None),) * axis, 0)]
        x = x.rechunk(-1) if x.ndim < like.ndim else x  # what is repeated is small, and one block is repeated as a view
        if all(n == n for n in x.shape + like.shape):
            own = dict(zip(range(like.ndim - x.ndim, like.ndim), x.chunks))
            chunks = tuple(c if own.get(i, (1,)) == (1,) else own[i] for i, c in enumerate(like.chunks))
            return x if x.shape == like.shape else da.broadcast_to(x, like.shape, chunks=chunks)
        return _block_by_block(x, like, names)

    def wide_dtype(self, x: Array) -> Any:
        return np.float64

    def sum(self, x: Array) -> Array:
        return da.sum(x, axis=-1)

    def total(self, x: Array) -> Array:  # without a reshape, which would rechunk
        wide = np.float64 if x.dtype == np.float32 else x.dtype  # as kernels do
        return da.sum(x, dtype=wide).astype(x.dtype)

    def sums_of_groups(self, rows: Sequence[Array], group: Array, count: int) -> list[Array]:
        _, (group, *rows) = da.unify_chunks(*(part for x in (group, *rows) for part in (x, "i")))

        def block(group: np.ndarray, row: np.ndarray) -> np.ndarray:
            return sums_of_groups(group, row, count)[None]

        chunks = (1,) * group.numblocks[0], (count,)
        parts = [da.map_blocks(block, group, row, dtype=row.dtype, chunks=chunks, new_axis=1) for row in rows]
        return [da.sum(part, axis=0) for part in parts]

    def apply(self, primitive: Primitive, *arrays: Array | None) -> Array:
        return _lazily(primitive, _items, arrays)

    def value_and_vjp(
        self, primitive: Primitive, cotangent: Array, wanted: Wanted, *arrays: Array | None
    ) -> tuple[Array, Gradients]:
        wanted = tuple(w and x is not None for w, x in zip(wanted, arrays))
        both = _lazily(primitive, _Both(wanted), (*arrays, cotangent))
        gradients = (_part(both, i, x) for i, x in enumerate((arrays[i] for i, w in enumerate(wanted) if w), 1))
        return _part(both, 0), tuple(next(gradients) if w else None for w in wanted)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()


def _block_by_block(x: Array, like: Array, names: tuple[str, str]) -> Array:
    """``x`` with the shape of ``like``, where a size of either is unknown: there their blocks must correspond."""
    axes = tuple(range(like.ndim))
    own = axes[like.ndim - x.ndim :]
    repeated = frozenset(j for i, j in enumerate(own) if x.shape[i] == 1)
    same = {j: x.chunks[i] for i, j in enumerate(own) if j not in repeated and x.shape[i] == like.shape[j]}
    for i, j in enumerate(own):
        if j not in repeated and j not in same and x.numblocks[i] != like.numblocks[j]:
            raise ValueError(
                f"{names[0]} must have as many blocks as {names[1]}, {like.numblocks[j]} along axis {j}, while their "
                f"sizes are not known yet, got {x.numblocks[i]}; have them computed first by compute_chunk_sizes()"
            )
    # Only the sizes of ``like`` are asked for, and none where they are known to be those of ``x``.
    like = like[tuple(slice(1) if j in same else slice(None) for j in axes)]
    task = functools.partial(_block_like, names=names, repeated=repeated, same=frozenset(same))
    meta = _meta(x.dtype, axes)
    return da.blockwise(
        task, axes, like, axes, x, own, dtype=x.dtype, meta=meta, align_arrays=False, adjust_chunks=same
    )


def _block_like(
    like: Array, x: Array, *, names: tuple[str, str], repeated: frozenset[int], same: frozenset[int]
) -> Array:
    """A block of x with the shape of that of ``like``, but for the axes that are the ``same`` already."""
    first = like.ndim - x.ndim
    shape = tuple(x.shape[j - first] if j in same else n for j, n in enumerate(like.shape))
    if any(x.shape[j - first] != shape[j] for j in range(first, like.ndim) if j not in repeated):
        raise ValueError(f"{names[0]} has a block of shape {x.shape} where that of {names[1]} has {shape}")
    return dispatch.library_of(x).xp.broadcast_to(x, shape)


def _meta(dtype: Any, axes: tuple[int, ...]) -> np.ndarray:
    return np.empty((0,) * len(axes), dtype=dtype)


_Block = Callable[..., Any]
"""From a library, a primitive, its arrays in one block of items, and perhaps the items' cotangent, to the results."""


def _lazily(primitive: Primitive, block: _Block, arrays: tuple[Any, ...]) -> Array:
    """``block`` of every block of items."""
    items = arrays[0].ndim - primitive.rows
    given = tuple(i for i, x in enumerate(arrays) if x is not None)
    operands: list[Any] = []
    for i in given:
        x = arrays[i]
        operands += [x.rechunk({items: -1}) if x.ndim > items else x, tuple(range(x.ndim))]
    axes = tuple(range(items))
    task = _Task(primitive, block, given, len(arrays), dispatch.is_generic())
    meta = _meta(arrays[0].dtype, axes)
    return da.blockwise(task, axes, *operands, dtype=meta.dtype, meta=meta)


@dataclass(frozen=True)
class _Task:
    """What runs on the blocks. It travels to the workers, and holds no array."""

    primitive: Primitive
    block: _Block
    given: tuple[int, ...]  # which arrays are not missing
    count: int
    generic: bool

    def __call__(self, *blocks: Array) -> Any:
        parts: list[Array | None] = [None] * self.count
        for i, part in zip(self.given, blocks):
            parts[i] = part[0] if isinstance(part, list) else part  # an axis that the result lacks had one block
        library = dispatch.library_of(parts[0])
        with library.scope(parts[0]), dispatch.shared(), dispatch.generic() if self.generic else nullcontext():
            return self.block(library, self.primitive, *parts)


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


@dataclass(frozen=True)
class _Both:
    """The items, and the gradients that are wanted, in one tuple."""

    wanted: Wanted

    def __call__(self, library: Library, primitive: Primitive, *parts: Array | None) -> tuple[Array, ...]:
        *arrays, cotangent = parts
        application = _application(library, primitive, tuple(arrays))
        items, gradients = self._by_kernel(application, cotangent) or application.value_and_vjp(cotangent, self.wanted)
        return items, *(g for g, w in zip(gradients, self.wanted) if w)

    def _by_kernel(self, application: Application, cotangent: Array) -> tuple[Array, Gradients] | None:
        if (fused := application.fused(self.wanted, _Weighted(cotangent))) is None:
            return None
        if any(application.library.strides(cotangent)):
            found = fused.fused_value_and_vjp()
            return None if found is None else (application.value(), found[1])
        # One number for all items, as a mean has it, leaves them as they are: one pass does both.
        scale = float(cotangent[(0,) * cotangent.ndim]) if cotangent.size else 1.0
        fused = application.fused(self.wanted, None, scale)
        return None if fused is None else fused.fused_value_and_vjp()


def _part(both: Array, i: int, like: Array | None = None) -> Array:
    """The ``i``-th of the results that ``both`` has in each block: items, or in the shape of ``like``."""
    axes = tuple(range(both.ndim if like is None else like.ndim))
    new = {j: like.shape[j] for j in axes[both.ndim :]}  # type: ignore[union-attr]
    meta = _meta(both.dtype, axes)
    take = operator.itemgetter(i)
    return da.blockwise(take, axes, both, axes[: both.ndim], new_axes=new, dtype=meta.dtype, meta=meta)


class _Namespace(ModuleType):
    """The array API of Dask, without its refusals of sizes that are unknown or 0."""

    def __getattr__(self, name: str) -> Any:
        return getattr(array_api_compat.dask.array, name)

    @staticmethod
    def expand_dims(x: Array, *, axis: int) -> Array:
        return x[(*(slice(None),) * (axis % (x.ndim + 1)), None)]

    @staticmethod
    def concat(arrays: list[Array], *, axis: int) -> Array:
        return da.concatenate(arrays, axis=axis, allow_unknown_chunksizes=True)

    @staticmethod
    def max(x: Array, *, axis: int, keepdims: bool = False) -> Array:
        largest = functools.partial(np.max, initial=-np.inf)  # of an empty block, too
        return da.reduction(x, largest, largest, axis=axis, keepdims=keepdims, dtype=x.dtype)


LIBRARY = Dask(_Namespace("dask.array"))
