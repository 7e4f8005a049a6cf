"""What comes in: library, device, dtype, shape and value of every argument, and every message about them."""

from __future__ import annotations

import math
import numbers
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from contextlib import AbstractContextManager
from itertools import combinations
from typing import Any

import numpy as np

from polyloss.backends import Array, Library
from polyloss.dispatch import is_number_like, is_traced, known, library_of, plain_library

__all__ = [
    "Call",
    "axis_of",
    "choice",
    "differ",
    "integer",
    "is_known",
    "known_size",
    "last_axis_to",
    "number",
    "to_last_axis",
    "without",
]

FLOATS = ("float32", "float64", "float16", "bfloat16")


class Call:
    """The arrays of one call: whose they are, the dtype of the computation, and what is said of bad ones.

    `floating` comes first: it reads the parameters that the loss is computed from, and they decide the dtype. All
    others are cast to it.
    """

    def __init__(self, **arguments: Any) -> None:
        found = plain_library(arguments.values())  # the common case, in short
        self.library, self._like = library, _ = found or _common_library(arguments)
        self.xp = library.xp
        self._placed = {} if found or library.one_place else _placed(library, arguments)
        self._kinds = {} if is_traced() else _KINDS[library]
        self.dtype: Any = None
        self._own: dict[str, Any] = {}

    # Reading arguments.

    def floating(self, **values: Any) -> list[Array]:
        """The arrays that decide the dtype, in the dtype of the computation: float32, or float64 if one of them is."""
        return [self.cast(x) for x in self.as_given(**values)]

    def as_given(self, **values: Any) -> list[Array]:
        """The arrays that decide the dtype of the computation, in their own dtypes."""
        if len(values) == 1:  # the common case, in short
            name, value = next(iter(values.items()))
            plain: Any = self.library.plain  # or mypy would take the value for an object
            if type(value) is plain and (kind := self._kind(value.dtype) or "") in FLOATS:
                self.dtype = self.xp.float64 if kind == "float64" else self.xp.float32
                self._own[name] = value.dtype
                return [value]
        arrays = {name: self._floating(name, value) for name, value in values.items() if not is_number_like(value)}
        if deciding := list(arrays):  # and numbers are read into that dtype, or they would lose digits
            self.dtype = self._widest(arrays.values())
        arrays |= {name: self._floating(name, value) for name, value in values.items() if name not in arrays}
        if not deciding:
            deciding = [name for name, value in values.items() if isinstance(value, np.floating)] or list(values)
            self.dtype = self._widest([arrays[name] for name in deciding])
        for name, x in arrays.items():
            self._own[name] = x.dtype if name in deciding else self.dtype
        return [arrays[name] for name in values]

    def _widest(self, arrays: Iterable[Array]) -> Any:
        """The dtype of the computation that these arrays decide."""
        return self.xp.float64 if any(self._kind(x.dtype) == "float64" for x in arrays) else self.xp.float32

    def cast(self, x: Array) -> Array:
        """``x`` in the dtype of the computation."""
        if x.dtype == self.dtype:
            return x
        with self.scope():  # a number too large becomes inf, without a warning
            return self.xp.astype(x, self.dtype)

    def real(self, name: str, value: Any) -> Array:
        """An argument of any real dtype, in the dtype of the computation."""
        return self.cast(self.real_as_given(name, value))

    def real_as_given(self, name: str, value: Any) -> Array:
        """An argument of any real dtype, in its own where it is an array."""
        if (
            known(value) is not self.library and (read := self._foreign(name, value)) is not None
        ):  # as numbers: the library's integers may be narrower
            if read.dtype.kind == "c" or read.dtype.itemsize > 8:
                raise TypeError(f"{name} must be boolean, integer or real floating of 16 to 64 bits, got {read.dtype}")
            if read.dtype.kind == "f":
                self._own[name] = self.dtype
            return self.library.asarray(read.astype(np.float64), self.dtype, self._placed)
        x = self._array(name, value)
        kind = self._kind(x.dtype)
        if kind is None:
            raise TypeError(f"{name} must be boolean, integer or real floating of 16 to 64 bits, got {x.dtype}")
        if kind in FLOATS:
            self._own[name] = self.dtype if is_number_like(value) else x.dtype
        return x

    def boolean(self, name: str, value: Any) -> Array:
        x = self._array(name, value)
        if self._kind(x.dtype) != "bool":
            raise TypeError(f"{name} must be boolean, got {x.dtype}; write for example {name} != 0")
        return x

    def unit_interval(self, name: str, x: Array, axis: int | None = None) -> Array:
        """``x``, whose values must lie in [0, 1]; NaN passes and makes its item NaN."""
        return self.valid(name, x, (x < 0) | (x > 1), "in [0, 1]", axis=axis)

    def is_floating(self, name: str, value: Any) -> bool:
        """Whether an argument is floating rather than integer or boolean."""
        return self.array_and_kind(name, value)[1]

    def array_and_kind(self, name: str, value: Any) -> tuple[Array, bool]:
        """Targets, and whether they hold probabilities (floating) rather than class indices (integer, boolean)."""
        x = self._array(name, value)
        kind = self._kind(x.dtype)
        if kind is None:
            raise TypeError(f"{name} must be integer, boolean or real floating of 16 to 64 bits, got {x.dtype}")
        return x, kind in FLOATS

    def same_shape(self, name: str, x: Array, of_name: str, of: Array) -> Array:
        """``x``, which must have the shape of ``of``."""
        if differ(x.shape, of.shape):
            raise ValueError(f"{name} must have the shape of {of_name}, {_shape(of.shape)}, got {_shape(x.shape)}")
        return self.library.broadcast(x, of, None, (name, of_name)) if self.library.lazy else x

    def labels(self, name: str, y: Array, shape: Sequence[int], axis: int, of: Array, of_name: str) -> Array:
        """Class indices, which must have the shape of ``of`` (``of_name``), ``shape`` without the class ``axis``."""
        if differ(y.shape, shape):
            hint = ""
            if not differ(y.shape, of.shape):
                hint = (
                    f"; for a one-hot array pass its indices, xp.argmax({name}, axis={axis}), or floating probabilities"
                )
            raise ValueError(
                f"{name} are integer class indices and must have the shape of {of_name} without the class axis, "
                f"{_shape(shape)}, got {_shape(y.shape)}{hint}"
            )
        return self.library.broadcast(y, of, axis, (name, of_name)) if self.library.lazy else y

    def signed(self, y: Array) -> Array:
        """Class indices as signed integers."""
        signed = self.xp.astype(y, self.library.index_dtype(), copy=False)
        if not self._kind(y.dtype).startswith("uint"):  # type: ignore[union-attr]
            return signed
        # What does not fit came out negative: no class index, and no ignore_index either.
        return self.xp.where(signed < 0, self.xp.full_like(signed, self.xp.iinfo(signed.dtype).min), signed)

    # Shapes.

    def leading(self, name: str, x: Array, of: Array, axis: int | None = None) -> Array:
        """``x`` broadcast to the loss's shape, that of ``of`` without ``axis``.

        Axis by axis, or with fewer axes from the left, never from the right.
        """
        given, shape = tuple(x.shape), without(of.shape, axis)
        if given and (len(given) > len(shape) or any(not _broadcasts(a, b) for a, b in zip(given, shape))):
            raise ValueError(
                f"{name} must be 0-d, or have the loss's shape {_shape(shape)} (size 1 broadcasts), "
                f"or that of its leading axes, got {_shape(given)}"
            )
        aligned = x[(..., *(None,) * (len(shape) - len(given)))] if given and len(given) < len(shape) else x
        return self.library.broadcast(aligned, of, axis, (name, "the loss"))

    def trailing(self, name: str, x: Array, of: Array, of_name: str) -> Array:
        """``x`` broadcast from the right to the shape of ``of``, which it must not enlarge."""
        given, shape = tuple(x.shape), tuple(of.shape)
        if len(given) > len(shape) or any(not _broadcasts(a, b) for a, b in zip(given[::-1], shape[::-1])):
            raise ValueError(f"{name} must broadcast to the shape of {of_name}, {_shape(shape)}, got {_shape(given)}")
        return self.library.broadcast(x, of, None, (name, of_name))

    def per_class(self, name: str, x: Array, classes: int) -> None:
        """Checks that there is one number per class."""
        if tuple(x.shape) != (classes,):
            raise ValueError(f"{name} must have shape {_shape((classes,))}, one per class, got {_shape(x.shape)}")

    # Values.

    def valid(
        self, name: str, x: Array, bad: Array, expected: str, *, axis: int | None = None, given: Any = None
    ) -> Array:
        """``x`` where no value is ``bad``.

        In host memory a bad value is an error. Where looking would stall a device or break a trace it becomes NaN, and
        so does its derivative, in a floating array; an integer array is returned as it is, and the primitive refuses
        the label. With ``axis``, rows are items: it is where the last axis of ``x`` stood in the argument, and one bad
        value is the whole row's. ``given`` is the argument itself, where ``x`` may show other numbers.
        """
        xp = self.xp
        if self.library.memory(bad) == "host":
            if bool(xp.any(bad)):
                x, bad = (x, bad) if axis is None else (last_axis_to(self, x, axis), last_axis_to(self, bad, axis))
                first = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int32)))
                at = tuple(int(i) for i in np.unravel_index(first, tuple(bad.shape)))
                shown = x if given is None else np.asarray(given) if is_number_like(given) else given
                raise ValueError(f"{name} must be {expected}, got {_item(shown[at])} at index {at}")
            return x
        self.library.noticed(bad)
        if self._kind(x.dtype) not in FLOATS:
            return x
        if axis is not None:
            bad = xp.any(bad, axis=-1, keepdims=True)
        one = xp.astype(xp.ones_like(bad), x.dtype)
        return x * xp.where(bad, self.library.undefined(one), one)

    # Making and giving back.

    def scope(self) -> AbstractContextManager[Any]:
        """What the library's arithmetic on arrays runs in."""
        return self.library.scope(self._like)

    def asarray(self, value: np.ndarray, dtype: Any) -> Array:
        """Numbers of our own, beside the arrays of the call."""
        return self.library.asarray(value, dtype, self._placed)

    def rounded(self, name: str, value: np.ndarray) -> Array:
        """Finite numbers of our own, as the dtype of that parameter holds them, to be compared with its."""
        own = self._own[name]
        most = float(self.xp.finfo(own).max)
        return self.cast(self.asarray(np.clip(value, -most, most), own))

    def full(self, shape: tuple[int, ...], value: float) -> Array:
        return self.xp.full(shape, value, dtype=self.dtype, **self._placed)

    @property
    def floating_names(self) -> Set[str]:
        """The arguments that are floating arrays."""
        return self._own.keys()

    def result(self, name: str, x: Array) -> Array:
        """A result in the dtype of that parameter."""
        own = self._own[name]
        return self.library.result(x if x.dtype == own else self.xp.astype(x, own))

    def resolution(self, name: str) -> float:
        """The distance from 1 to the next number in the dtype of that parameter."""
        return {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}.get(
            self._kind(self._own[name]) or "", 2.0**-7
        )

    def _kind(self, dtype: Any) -> str | None:
        try:
            return self._kinds[dtype]
        except KeyError:
            kind = self._kinds[dtype] = _kind(self.xp, dtype)
            return kind

    def _floating(self, name: str, value: Any) -> Array:
        _present(name, value)
        if known(value) is None and is_number_like(value):
            numbers_ = _read(name, value)
            if numbers_.dtype.kind not in "fiu" or numbers_.dtype.itemsize > 8:
                raise TypeError(f"{name} must be real numbers of at most 64 bits, got {numbers_.dtype}")
            dtype = self.dtype or self.library.float_dtype(numbers_)
            return self.library.asarray(numbers_.astype(float), dtype, self._placed)
        x = self._array(name, value)
        if self._kind(x.dtype) not in FLOATS:
            raise TypeError(
                f"{name} must be a real floating array of 16 to 64 bits, got {x.dtype}; "
                f"convert it first, for example to float32"
            )
        return x

    def _array(self, name: str, value: Any) -> Array:
        if type(value) is self.library.plain:
            return value
        if known(value) is self.library:
            return self.library.moved(value, self._placed)
        if (read := self._foreign(name, value)) is not None:
            dtype = self.dtype if is_number_like(value) and read.dtype.kind == "f" else None
            return self.library.asarray(read, dtype, self._placed)
        if isinstance(value, (bool, int, float)):  # without NumPy, which a trace may not follow
            xp, kind = self.xp, type(value)
            dtype = xp.bool if kind is bool else self.library.index_dtype() if kind is int else self.dtype
            return xp.full((), value, dtype=dtype, **self._placed)
        return self.library.moved(value, self._placed)

    def _foreign(self, name: str, value: Any) -> np.ndarray | None:
        """What NumPy reads: sequences, NumPy's scalars, large integers, and arrays that this library adopts."""
        _present(name, value)
        if (type(value) in (bool, int, float) and abs(value) < 2**31) or isinstance(value, float):
            return None
        if is_number_like(value):
            return _read(name, value)
        return None if library_of(value) is self.library else np.asarray(value)


def _common_library(arguments: dict[str, Any]) -> tuple[Library, Any]:
    """The library of the call, and one of its arrays."""
    found: dict[Library, str] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        library = known(value)
        if library is None:
            if is_number_like(value):
                continue
            try:
                library = library_of(value)
            except TypeError:
                raise TypeError(
                    f"{name} must be an array, a number or a nested sequence of numbers, got {type(value).__name__}"
                ) from None
        if reason := library.refuse(value):
            raise TypeError(f"{name} is {reason}")
        if library not in found:
            found[library] = name
    if not found:
        nothing = np.empty(0)
        return library_of(nothing), nothing
    for library, name in found.items():
        if all(other is library or library.adopts(other) for other in found):
            return library, arguments[name]
    (one, first), (two, second) = next(
        pair
        for pair in combinations(found.items(), 2)
        if not (pair[0][0].adopts(pair[1][0]) or pair[1][0].adopts(pair[0][0]))
    )
    read = second if "numpy" in (one.name, two.name) else f"numpy.asarray({second})"
    raise TypeError(
        f"{first} is an array of {one.name} and {second} one of {two.name}; convert one of them first, for example by "
        f"{one.converter}({read})"
    )


def _placed(library: Library, arguments: dict[str, Any]) -> dict[str, Any]:
    """Where new arrays go: beside those of the call, which must share a device."""
    found: tuple[str, Any] | None = None
    placed: dict[str, Any] | None = None
    for name, value in arguments.items():
        if value is None or is_number_like(value) or library_of(value) is not library:
            continue
        device = library.device(value)
        if found is not None and device is not None and device != found[1]:
            raise ValueError(f"{found[0]} is on device {found[1]} and {name} on {device}; move one of them first")
        if found is None and device is not None:
            found, placed = (name, device), library.placed(value)
        elif placed is None:
            placed = library.placed(value)
    return placed or {}


def _kind(xp: Any, dtype: Any) -> str | None:
    """ "bool", "int", "uint", or the name of one of `FLOATS`; None for all other dtypes."""
    for name in FLOATS:
        known = getattr(xp, name, None)
        if dtype == known if known is not None else str(dtype) == name:  # NumPy has bfloat16 from another package
            return name
    if dtype == xp.bool:
        return "bool"
    try:
        for kind, group in (("int", "signed integer"), ("uint", "unsigned integer")):
            if xp.isdtype(dtype, group):
                return kind
    except TypeError:  # a dtype that the library itself does not know, such as an 8-bit float beside NumPy
        pass
    return None


_KINDS: dict[Library, dict[Any, str | None]] = defaultdict(dict)


def _present(name: str, value: Any) -> None:
    if value is None:
        raise TypeError(f"{name} must be an array, a number or a nested sequence of numbers, got None")


def _read(name: str, value: Any) -> np.ndarray:
    """A number or a nested sequence of numbers, read by NumPy."""
    _only_numbers(name, value)
    try:
        read = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular nested sequence of numbers") from None
    if isinstance(value, int) and read.dtype.kind == "O":  # beyond 64 bits
        return np.asarray(float(value))
    if read.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array, a number or a nested sequence of numbers, got {read.dtype}")
    return read


def _only_numbers(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        for inner in value:
            _only_numbers(name, inner)
    elif not isinstance(value, (int, float, complex, np.generic)):
        raise TypeError(
            f"{name} must be an array, a number or a nested sequence of numbers, not a sequence of "
            f"{type(value).__name__}"
        )


def _item(x: Any) -> str:
    """A number for a message."""
    if hasattr(x, "item"):
        return str(x.item())
    try:
        return str(operator.index(x))
    except TypeError:
        return str(float(x))


def _shape(shape: Sequence[int]) -> str:
    return str(tuple(shape))


def without(shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """A shape without that axis."""
    return tuple(shape) if axis is None else (*shape[:axis], *shape[axis + 1 :])


def differ(one: Sequence[Any], two: Sequence[Any]) -> bool:
    """Whether two shapes differ, as far as their sizes are known."""
    return tuple(one) != tuple(two) and (
        len(one) != len(two) or any(a != b and is_known((a, b)) for a, b in zip(one, two))
    )


def _broadcasts(one: Any, two: Any) -> bool:
    """Whether a size broadcasts to another, as far as they are known."""
    return one in (1, two) or not is_known((one, two))


def is_known(shape: Sequence[Any]) -> bool:
    """Whether no size in the shape is still to be computed."""
    return all(n == n and n is not None for n in shape)


def known_size(name: str, x: Array, axis: int) -> Any:
    """The size of an axis that the result depends on."""
    size = x.shape[axis]
    if size is None or size != size:
        raise ValueError(
            f"{name} has a size that is not known yet, {_shape(x.shape)}, and that of axis {axis % x.ndim} is needed; "
            "have it computed first (in Dask by compute_chunk_sizes())"
        )
    return size


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """A finite Python number in [low, high], or (low, high] with ``above``."""
    if type(value) is float and low <= value <= high and value - value == 0 and not (above and value == low):
        return value  # the common case, in short
    if isinstance(value, (bool, np.bool)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        x = float(value)
    except OverflowError:
        x = math.inf
    if not (-math.inf < x < math.inf and (x > low if above else x >= low) and x <= high):
        bounds = [f"{'above' if above else 'at least'} {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (
            high < math.inf
        )
        raise ValueError(f"{name} must be finite{''.join(' and ' + b for b in bounds)}, got {value}")
    return x


def integer(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    return int(value)


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return str(value)


def axis_of(axis: Any, x: Array, name: str, fewest: int = 1) -> int:
    """The class axis as a non-negative number."""
    axis, ndim = integer("axis", axis), x.ndim
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be in [{-ndim}, {ndim}) for {name} of shape {_shape(x.shape)}, got {axis}")
    if known_size(name, x, axis) < fewest:
        raise ValueError(f"{name} must have at least one class along axis {axis}, got shape {_shape(x.shape)}")
    return int(axis % ndim)


def to_last_axis(call: Call, x: Array, axis: int) -> Array:
    if axis == x.ndim - 1:
        return x
    return call.xp.permute_dims(x, (*(i for i in range(x.ndim) if i != axis), axis))


def last_axis_to(call: Call, x: Array, axis: int) -> Array:
    if axis == x.ndim - 1:
        return x
    order = list(range(x.ndim - 1))
    order.insert(axis, x.ndim - 1)
    return call.xp.permute_dims(x, tuple(order))
