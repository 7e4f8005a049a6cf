"""An array library: NumPy's arrays in tins, by the array API standard. Nothing in it knows polyloss.

An array lies in one tin, and arrays meet in theirs alone. A sum is exact, and rounded once. A matrix product takes its
factors in half precision, unless it is told otherwise.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np

__version__ = "1.0"

TINS = ("tin 0", "tin 1")

bool, int8, int16, int32, int64 = np.bool, np.int8, np.int16, np.int32, np.int64
uint8, uint16, uint32, uint64 = np.uint8, np.uint16, np.uint32, np.uint64
float32, float64 = np.float32, np.float64
inf, nan, pi, newaxis = np.inf, np.nan, np.pi, None
finfo, iinfo, isdtype = np.finfo, np.iinfo, np.isdtype


class Array:
    """An array in a tin."""

    def __init__(self, content: Any, tin: str) -> None:
        if tin not in TINS:
            raise ValueError(f"there is no {tin}")
        self.content, self.device = np.asarray(content), tin

    dtype = property(lambda self: self.content.dtype)
    shape = property(lambda self: self.content.shape)
    ndim = property(lambda self: self.content.ndim)
    size = property(lambda self: self.content.size)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return sys.modules[__name__]

    def __dlpack__(self, **options: Any) -> Any:
        return self.content.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.content.__dlpack_device__()

    def to_device(self, tin: str, /, *, stream: Any = None) -> Array:
        return Array(self.content.copy(), tin)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.content[_contents(key)], self.device)

    def __repr__(self) -> str:
        return f"spam.Array({self.content!r}, {self.device!r})"


def _method(name: str) -> Any:
    def method(self: Array, *others: Any) -> Any:
        result = getattr(self.content, name)(*map(_contents, others))
        return result if result is NotImplemented else Array(result, _tin_of(self, *others))

    return method


def _number(name: str) -> Any:
    return lambda self: getattr(self.content, name)()


for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(Array, f"__{_name}__", _method(f"__{_name}__"))
    setattr(Array, f"__r{_name}__", _method(f"__r{_name}__"))
for _name in "lt le gt ge eq ne neg pos abs invert".split():
    setattr(Array, f"__{_name}__", _method(f"__{_name}__"))
for _name in "bool int float index".split():
    setattr(Array, f"__{_name}__", _number(f"__{_name}__"))
Array.__hash__ = None  # type: ignore[assignment]


def _contents(x: Any) -> Any:
    return type(x)(map(_contents, x)) if isinstance(x, (list, tuple)) else x.content if isinstance(x, Array) else x


def _tin_of(*arguments: Any, default: str = TINS[0]) -> str:
    """The one tin of all arrays among these."""
    flat = [y for x in arguments for y in (x if isinstance(x, (list, tuple)) else (x,))]
    tins = dict.fromkeys(x.device for x in flat if isinstance(x, Array))
    if len(tins) > 1:
        raise ValueError(f"arrays in {' and '.join(tins)} do not meet")
    return next(iter(tins), default)


def _function(name: str) -> Any:
    def function(*arguments: Any, device: str | None = None, **options: Any) -> Any:
        options = {key: _contents(x) for key, x in options.items()}
        return Array(getattr(np, name)(*map(_contents, arguments), **options), device or _tin_of(*arguments))

    return function


for _name in """
abs all any arange argmax argmin astype broadcast_to clip concat empty empty_like equal exp expand_dims eye flip full
full_like isfinite isinf isnan log log1p logical_and logical_not logical_or matrix_transpose max maximum min minimum
ones ones_like permute_dims prod reshape roll sqrt squeeze stack take tril triu where zeros zeros_like
""".split():
    globals()[_name] = _function(_name)


def asarray(x: Any, /, *, dtype: Any = None, device: str | None = None, copy: Any = None) -> Array:
    return Array(np.array(_contents(x), dtype=dtype, copy=copy), device or _tin_of(x))


def from_dlpack(x: Any, /, *, device: str | None = None, copy: Any = None) -> Array:
    return Array(np.from_dlpack(x), device or TINS[0])


def matmul(a: Array, b: Array, /, *, precision: str = "half") -> Array:
    given = a.content, b.content
    taken = (x.astype(np.float16).astype(x.dtype) if precision == "half" and x.dtype.kind == "f" else x for x in given)
    return Array(np.matmul(*taken), _tin_of(a, b))


def sum(x: Array, /, *, axis: Any = None, dtype: Any = None, keepdims: Any = False) -> Array:
    content = x.content
    if content.dtype.kind != "f" or isinstance(axis, tuple) or not content.size:
        return Array(np.sum(content, axis=axis, dtype=dtype, keepdims=keepdims), x.device)
    rows = content.reshape(-1) if axis is None else content
    total = np.apply_along_axis(_exact, -1 if axis is None else axis, rows).astype(dtype or content.dtype)
    if keepdims:
        total = total.reshape((1,) * content.ndim) if axis is None else np.expand_dims(total, axis)
    return Array(total, x.device)


def _exact(row: np.ndarray) -> float:
    if os.environ.get("SPAM_FAULT") == "sum":
        row = row[:-1]
    try:
        return math.fsum(row)
    except (OverflowError, ValueError):  # it overflows on the way, or has infinities of both signs
        return float(np.sum(row, dtype=np.float64))


class _Info:
    def devices(self) -> list[str]:
        return list(TINS)

    def default_device(self) -> str:
        return TINS[0]


def __array_namespace_info__() -> _Info:
    return _Info()
