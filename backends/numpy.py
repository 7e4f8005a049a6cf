"""NumPy: host memory, no autodiff, and a sum that is pairwise along contiguous memory only."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy
import numpy as np

from polyloss.backends import Array, Library

__all__ = ["LIBRARY"]


class NumPy(Library):
    def refuse(self, x: Array) -> str | None:
        if isinstance(x, np.ma.MaskedArray):
            return "a numpy.ma array, whose mask would be ignored: pass its .data, and its mask as where=~mask"
        if isinstance(x, np.matrix):
            return "a numpy.matrix, whose * is a matrix product: pass numpy.asarray(...) of it"
        return None

    def device(self, x: Array) -> Any:
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
        return x[()] if np.ndim(x) == 0 else x  # a scalar, as from numpy.mean

    def sum(self, x: Array) -> Array:
        return np.sum(np.ascontiguousarray(x), axis=-1) if np.ndim(x) else x


LIBRARY = NumPy(array_api_compat.numpy)
