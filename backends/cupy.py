"""CuPy: CUDA memory, no autodiff, and reductions that are trees already."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat.cupy
import numpy as np

from polyloss.backends import Array, Library

__all__ = ["LIBRARY"]


class CuPy(Library):
    def memory(self, x: Array) -> str | None:
        return "cuda"

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return self.xp.asarray(value, dtype=dtype, **placed)

    def sum(self, x: Array) -> Array:
        return self.xp.sum(x, axis=-1)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()


LIBRARY = CuPy(array_api_compat.cupy)
