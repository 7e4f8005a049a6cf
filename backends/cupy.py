"""CuPy: CUDA memory, no autodiff, and arrays that are computed with on their own device alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat.cupy
import cupy
import numpy as np

from polyloss.backends import Array, Library

__all__ = ["LIBRARY"]


class CuPy(Library):
    def signature(self, x: Array) -> Any:
        return (x.dtype, x.shape, x.data.device_id) if _is_plain(x) else None

    def memory(self, x: Array) -> str | None:
        return "cuda"

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return self.xp.asarray(value, dtype=dtype, **placed)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        """The device of ``x`` as the current one, where it is not."""
        here: int = cupy.cuda.runtime.getDevice()
        return nullcontext() if here == x.data.device_id else x.device

    # For the kernels.

    def stored(self, x: Array) -> str | None:
        if not _is_plain(x):
            return None
        return _STORED.get(x.dtype) or ("bfloat16" if str(x.dtype) == "bfloat16" else None)

    def address(self, x: Array) -> int:
        return int(x.data.ptr)

    def strides(self, x: Array) -> tuple[int, ...]:
        size = x.itemsize
        return tuple(n // size for n in x.strides)

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.flags.c_contiguous)

    def contiguous(self, x: Array) -> Array:
        with self.scope(x):
            return cupy.array(x, order="C", copy=True)

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        with self.scope(like):
            return cupy.empty(shape, dtype)

    def queue(self, x: Array) -> tuple[int, int]:
        device = int(x.data.device_id)
        return device, int(cupy.cuda.get_current_stream(device).ptr)


def _is_plain(x: Array) -> bool:
    """Whether the elements of ``x`` stand at multiples of their size, as far as anybody can tell."""
    if type(x) is not cupy.ndarray:
        return False
    size = x.itemsize
    return x.data.ptr % size == 0 and not any(n % size for n in x.strides)


_STORED = {
    np.dtype(name): name
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
}

LIBRARY = CuPy(array_api_compat.cupy)
