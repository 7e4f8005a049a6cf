"""A stand-in for CuPy: arrays of NumPy that pretend to be on a device.

Nobody may look at their numbers: `bool`, `float`, `item` and the like are what would stall a GPU. Their memory can be
reached by kernels alone, in the simulator, and inputs cannot be written. They are computed with in the library's scope
alone, which makes their device the current one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat.numpy
import numpy as np

from polyloss import dispatch
from polyloss.backends import Array, Library
from polyloss.backends.cuda import simulator

_STORED = {np.dtype(name): name for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()}
_STORED |= {np.dtype(name): name for name in "float16 float32 float64".split()}


class Stalled(AssertionError):
    """A number of a device was looked at."""


def _stalls(*args: Any, **kwargs: Any) -> Any:
    raise Stalled("the device would have to be waited for")


class DeviceArray(np.ndarray):
    __bool__ = __float__ = __int__ = __index__ = __complex__ = item = tolist = _stalls

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        _computes()
        return super().__array_wrap__(array, context, False)

    def __array_function__(self, function: Any, *args: Any) -> Any:
        if function not in VIEWS:
            _computes()
        return super().__array_function__(function, *args)

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        _computes()
        return super().astype(*args, **kwargs)


VIEWS = (np.broadcast_to, np.expand_dims, np.permute_dims, np.reshape, np.shape, np.transpose)
"""What computes nothing, so that any device may be the current one."""


def _computes() -> None:
    if LIBRARY.allow is not None and not LIBRARY.current:
        raise Elsewhere("another device is the current one")


class Elsewhere(AssertionError):
    """Something was computed outside the library's scope."""


class Device(Library):
    def __init__(self) -> None:
        super().__init__(array_api_compat.numpy)
        self.allow: Callable[[np.ndarray, bool], None] | None = None
        self.launched = 0
        self.current = 0  # scopes that have been entered

    @contextmanager
    def scope(self, x: Array) -> Iterator[None]:
        self.current += 1
        try:
            with np.errstate(all="ignore"):
                yield
        finally:
            self.current -= 1

    def signature(self, x: Array) -> Any:
        return (x.dtype, x.shape, "device") if type(x) is DeviceArray and _is_plain(x) else None

    def device(self, x: Array) -> Any:
        return None

    def placed(self, x: Array) -> dict[str, Any]:
        return {}

    def memory(self, x: Array) -> str | None:
        return "cuda"

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return np.array(value, dtype=dtype).view(DeviceArray)

    def result(self, x: Array) -> Array:
        return x.view(DeviceArray) if type(x) is np.ndarray else x

    def stored(self, x: Array) -> str | None:
        if not _is_plain(x):
            return None
        return _STORED.get(x.dtype) or ("bfloat16" if str(x.dtype) == "bfloat16" else None)

    def address(self, x: Array) -> int:
        if self.allow is not None:
            self.allow(x, bool(x.flags.writeable))
        return int(x.__array_interface__["data"][0])

    def strides(self, x: Array) -> tuple[int, ...]:
        return tuple(n // x.itemsize for n in x.strides)

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.flags.c_contiguous)

    def contiguous(self, x: Array) -> Array:
        return np.array(x, order="C", copy=True).view(DeviceArray)

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        out = np.empty(shape, dtype)
        out.view(np.uint8 if out.ndim else out.dtype)[...] = 0xAB if out.ndim else -77  # what nobody has written yet
        return out.view(DeviceArray)

    def queue(self, x: Array) -> tuple[int, int]:
        self.launched += 1
        return 0, 0


def _is_plain(x: Array) -> bool:
    """Whether the elements of ``x`` stand at multiples of their size."""
    size = x.itemsize
    return not (x.__array_interface__["data"][0] % size or any(n % size for n in x.strides))


LIBRARY = Device()


def to_device(x: Any) -> Any:
    """An array of NumPy as an input on the device, with its strides; anything else as it is."""
    if type(x) is not np.ndarray:
        return x
    x = x.view(DeviceArray)
    x.flags.writeable = False
    return x


def to_host(x: Any) -> np.ndarray:
    return np.asarray(x)


@contextmanager
def launching() -> Iterator[Device]:
    """In it, calls with arrays of the device launch kernels in the simulator."""
    dispatch._BY_TYPE[DeviceArray] = LIBRARY
    with simulator.allow() as allow:
        LIBRARY.allow, LIBRARY.launched = allow, 0
        try:
            yield LIBRARY
        finally:
            LIBRARY.allow = None
