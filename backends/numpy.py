"""NumPy: host memory, no autodiff, and a sum that is pairwise along contiguous memory only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.numpy
import numpy as np

from polyloss.backends import Array, Library, Work

__all__ = ["LIBRARY", "address_of", "sums_of_groups"]


class NumPy(Library):
    one_place = True
    plain = np.ndarray

    def signature(self, x: Array) -> Any:
        return (x.dtype, x.shape) if type(x) is np.ndarray and x.flags.aligned else None

    def guard(self, x: Array, y: Array) -> Callable[[Array, Array], bool] | None:
        if not (self.is_contiguous(x) and self.is_contiguous(y)):
            return None
        like_x, like_y = (x.dtype, x.shape), (y.dtype, y.shape)

        def fits(x: Array, y: Array) -> bool:
            return (
                type(x) is type(y) is np.ndarray
                and (x.dtype, x.shape) == like_x
                and (y.dtype, y.shape) == like_y
                and (flags := x.flags).c_contiguous
                and flags.aligned
                and (flags := y.flags).c_contiguous
                and flags.aligned
            )

        return fits

    def refuse(self, x: Array) -> str | None:
        if type(x) is np.ndarray:
            return None
        if isinstance(x, np.ma.MaskedArray):
            return "a numpy.ma array, whose mask would be ignored: pass its .data, and its mask as where=~mask"
        if isinstance(x, np.matrix):
            return "a numpy.matrix, whose * is a matrix product: pass numpy.asarray(...) of it"
        return None

    def placed(self, x: Array) -> dict[str, Any]:
        return {}

    def memory(self, x: Array) -> str | None:
        return "host"

    def float_dtype(self, value: np.ndarray) -> Any:
        return value.dtype if value.dtype.kind == "f" else np.float64

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return np.array(value, dtype=dtype)

    def result(self, x: Array) -> Array:
        return x[()] if type(x) is np.ndarray and x.ndim == 0 else x  # a scalar, as from numpy.mean

    def moved(self, x: Array, placed: dict[str, Any]) -> Array:
        return x.view(np.ndarray) if type(x) is np.memmap else x

    def sum(self, x: Array) -> Array:
        return np.sum(np.ascontiguousarray(x), axis=-1) if np.ndim(x) else x

    def wide_dtype(self, x: Array) -> Any:
        return np.float64

    def cumulative_max(self, x: Array) -> Array:
        return np.maximum.accumulate(x, axis=-1)

    def sums_of_groups(self, rows: Sequence[Array], group: Array, count: int) -> list[Array]:
        return [sums_of_groups(group, row, count) for row in rows]

    def divided(self, x: Array, y: Any) -> Array:
        return np.divide(x, y, out=x)

    def gather(self, c: Array, labels: Array) -> Array:
        return np.where((labels >= 0) & (labels < c.size), np.take(c, labels, mode="clip"), 0)

    def number(self, value: Any, work: Work) -> Array:
        if work.divisor is None:
            return value
        if -1e38 < value < 1e38:
            return work.dtype(value)
        with np.errstate(over="ignore"):  # a number too large becomes inf, without a warning
            return work.dtype(value)

    def stored(self, x: Array) -> str | None:
        if type(x) is not np.ndarray or not x.flags.aligned:
            return None
        return _STORED.get(x.dtype) or ("bfloat16" if str(x.dtype) == "bfloat16" else None)

    def strides(self, x: Array) -> tuple[int, ...]:
        size = x.itemsize
        return tuple(n // size for n in x.strides)

    def is_contiguous(self, x: Array) -> bool:
        if type(x) is not np.ndarray:
            return False
        flags = x.flags
        return bool(flags.c_contiguous and flags.aligned)

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        return np.empty(shape, dtype)

    def contiguous(self, x: Array) -> Array:
        return np.array(x, order="C", copy=True, subok=False)


def sums_of_groups(group: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    """The sum of ``x`` over the items of each group, of blocks and then pairwise: `numpy.bincount` adds one by one."""
    block = max(128, 8 * count)
    blocks = -(-x.size // block)
    parts = np.bincount(group + np.arange(x.size) // block * count, x, blocks * count)
    total: np.ndarray = np.sum(np.ascontiguousarray(parts.reshape(blocks, count).T), axis=-1)
    return total.astype(x.dtype, copy=False)


_STORED = {
    np.dtype(name): name
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
}


def address_of(x: np.ndarray) -> int:
    """Where the first element lies.

    It is the second word of an array object, which NumPy's ABI has fixed; ``x.ctypes.data`` takes 1 us.
    """
    assert type(x) is np.ndarray
    return _word(id(x) + object.__basicsize__).value or 0


_word = ctypes.c_void_p.from_address
_sample = np.empty(1)
if address_of(_sample) != _sample.ctypes.data:  # another Python, or another NumPy

    def address_of(x: np.ndarray) -> int:
        """Where the first element lies."""
        return int(x.ctypes.data)


NumPy.address = staticmethod(address_of)  # type: ignore[assignment, method-assign]
LIBRARY = NumPy(array_api_compat.numpy)
