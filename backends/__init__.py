"""How a loss is computed fast, and who differentiates it.

This package is installed as ``polyloss.backends``. Its modules answer two independent questions:

*Who owns the array?* ``numpy``, ``cupy``, ``torch``, ``jax`` and ``dask`` each hold one `Library`: what polyloss must
know of that array library beyond the array API standard, above all who differentiates. A library that polyloss has
never heard of is served by `Library` itself, whose every method follows the standard.

*Where do the numbers live?* `Kernels` compute a primitive in host memory (``cpu``) or in CUDA memory (``cuda``). They
are asked before the generic formula and may decline.

This module is the contract. A third party that writes a `Library` for the arrays of its module ``spam`` publishes the
instance as an entry point, and polyloss finds it without importing anything until the first such array arrives::

    [project.entry-points."polyloss.backends"]
    spam = "polyloss_spam:LIBRARY"

``tests/third_party`` in the repository is such a package, and `polyloss.conformance` checks what it claims.

Nothing here knows a loss, a weight, a mask or a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import array_api_compat
import numpy as np

__all__ = [
    "Array",
    "Gradients",
    "InvalidTarget",
    "Kernel",
    "Kernels",
    "Library",
    "Primitive",
    "Residuals",
    "Unavailable",
    "Wanted",
    "Work",
]

Array: TypeAlias = Any
"""An array of any library that follows the array API standard."""

Wanted: TypeAlias = tuple[bool, ...]
"""For each array of a primitive, whether its gradient is asked for."""

Residuals: TypeAlias = tuple[Array, ...] | None
"""What the forward pass left for the backward pass; None: nothing, compute it again."""

Gradients: TypeAlias = tuple[Array | None, ...]
"""For each array of a primitive its gradient, or None where none is asked for."""

HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost
CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged


class Primitive(Protocol):
    """A per-item function of arrays: its value, and its vector-Jacobian product (vjp), written against the array API.

    The first array holds the predictions, the second the targets; a missing array is None. An array has the shape of
    the items, or one more trailing axis that belongs to the item (the classes of a row). Items are independent of each
    other. It is immutable and hashable; its options are plain Python numbers.
    """

    @property
    def rows(self) -> bool:
        """Whether the predictions have one more axis than the items."""

    def forward(self, library: Library, *arrays: Array | None) -> tuple[Array, tuple[Array, ...]]:
        """The items, and the residuals that spare the backward pass some work."""

    def vjp(
        self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, *arrays: Array | None
    ) -> Gradients:
        """The gradient in each wanted array of sum(cotangent * items)."""

    def differentiable(self, library: Library, *arrays: Array | None) -> Array:
        """The items as plain array code, whose derivative by the library's own autodiff is accurate too."""


@dataclass(slots=True)
class Work:
    """What a kernel is asked for: a primitive on the arrays of one call as the user gave them, weighted and reduced.

    An array is in the dtype and the layout of the user's: a kernel casts, masks and looks for invalid targets on the
    way, instead of one pass over memory for each. Class weights are [K]; other arrays broadcast to what they belong to.
    """

    primitive: Any  # a `Primitive`
    library: Library
    dtype: Any  # of the computation and of the items
    arrays: tuple[Any, ...]  # None where one is missing
    axis: int  # of the classes, in the predictions of a primitive of rows
    keep: Array | None = None  # False: the item adds nothing, whatever it holds; broadcast to the items
    wanted: Wanted = ()  # the arrays whose gradient may be asked for
    weights: Array | None = None  # one factor for each item, broadcast to the items
    # None: the items are wanted. A number, or on a device a 0-d array: the sum of the weighted items over it.
    divisor: Any = None
    scale: Any = 1.0  # of the gradient alone, beside weights and divisor; likewise
    disposable: bool = False  # in `Kernel.value_and_vjp` the gradient may take the place of the predictions
    poison: bool = False  # an invalid label makes its item NaN, instead of raising `InvalidTarget`
    stored: tuple[str, ...] = ()  # what `Library.stored` says of predictions and targets, once a kernel has asked

    def on(self, *arrays: Array | None) -> Work:
        """The same work on these arrays."""
        return Work(
            self.primitive,
            self.library,
            self.dtype,
            arrays,
            self.axis,
            self.keep,
            self.wanted,
            self.weights,
            self.divisor,
            self.scale,
            self.disposable,
            self.poison,
            self.stored,
        )

    @property
    def factor(self) -> float:
        """What turns the gradient of the sum of the weighted items into the one that is asked for, of numbers."""
        scale, divisor = float(self.scale), self.divisor
        if divisor is None:
            return scale
        return scale / float(divisor) if divisor else 0.0


Bound: TypeAlias = Callable[[Array, Array], tuple[float, Array | None]]
"""Of predictions and targets the value of a kernel, and if asked for, the gradient in the predictions."""


class InvalidTarget(Exception):
    """A kernel met a target out of range. Who asked for the kernel finds it, and words the message."""


class Unavailable(Exception):
    """A kernel cannot run here after all, for the reason that is given; the formula takes its place."""


class Kernel(Protocol):
    """A primitive in one pass over memory.

    A value is the weighted items in an array, or where `Work.divisor` is given, their sum over it: a Python float, or
    on a device, which nobody waits for, a 0-d array. Gradients are those of the sum of the weighted items over the
    divisor (1 for items), in the dtype and shape of the arrays. Where the divisor is 0, the value is NaN and the
    gradient 0. Raises `Unavailable`, and in host memory `InvalidTarget`.
    """

    def value(self, work: Work, *, residuals: bool = False) -> tuple[Any, tuple[Array, ...]]:
        """The value, and if asked for, what spares `vjp` some work."""

    def vjp(self, work: Work, residuals: tuple[Array, ...]) -> Gradients:
        """The gradients."""

    def value_and_vjp(self, work: Work) -> tuple[Any, Gradients]:
        """Both."""

    def bound(self, work: Work, *, gradient: bool) -> Bound | None:
        """The same for small arrays that are like those of this work, layout included, in less time; None: not here."""


class Kernels(Protocol):
    """The kernels of one kind of memory."""

    def take(self, work: Work) -> Kernel | None:
        """The kernel for this work, or None where there is none: then the formula is used."""

    def transform(self, name: str, library: Library, x: Array) -> Array | None:
        """`polyloss.transforms` of that name, of floating x along its last axis and in its dtype, or None."""

    def report(self) -> str:
        """What a user should know of how they run here, or why they do not."""


class Library:
    """An array library. The methods as they stand hold for every library that follows the standard."""

    lazy = False
    """Whether a size in a shape may be unknown (NaN, or None as in the standard) until the array is computed."""

    one_place = False
    """Whether all its arrays share one place, so that `device` and `placed` need not be asked."""

    plain: type | None = None
    """The type of arrays of which nothing needs to be asked: never refused, lazy or differentiated, in one place."""

    def signature(self, x: Array) -> Any:
        """What must be equal for an array to be like another, as far as kernels can tell; None: it is like no other."""
        return None

    def guard(self, x: Array, y: Array) -> Callable[[Array, Array], bool] | None:
        """What says at a glance that arrays are like these two, layout included; None: there is no such thing.

        It may say no of arrays that are; then they are asked for their signatures.
        """
        return None

    def __init__(self, namespace: ModuleType) -> None:
        self.xp: Any = namespace

    @property
    def name(self) -> str:
        """What the library is called in messages."""
        return str(self.xp.__name__).removeprefix("array_api_compat.").partition(".")[0]

    @property
    def converter(self) -> str:
        """What makes an array of this library of one in host memory, by its public name."""
        return f"{str(self.xp.__name__).removeprefix('array_api_compat.')}.asarray"

    def refuse(self, x: Array) -> str | None:
        """Why this kind of array cannot be taken, or None."""
        return None

    def adopts(self, other: Library) -> bool:
        """Whether arrays of the other library are taken beside arrays of this one, as its own functions take them."""
        return False

    # Where the numbers live.

    def device(self, x: Array) -> Any:
        """What must be equal for two arrays to meet in one operation; None where it fits everywhere."""
        return array_api_compat.device(x)

    def placed(self, x: Array) -> dict[str, Any]:
        """The keyword arguments that make a creation function place its result beside ``x``."""
        return {"device": array_api_compat.device(x)}

    def moved(self, x: Array, placed: dict[str, Any]) -> Array:
        """``x`` beside the others, where `device` lets it come from elsewhere."""
        return x

    def memory(self, x: Array) -> str | None:
        """``"host"`` or ``"cuda"`` where the numbers can be reached now, or another key of the table of kernels.

        Values are checked in ``"host"`` memory alone. None is for traced arrays and for all that is not known.
        """
        device = getattr(x, "__dlpack_device__", None)
        if device is None:
            return None
        kind = int(device()[0])
        return "host" if kind in HOST_DEVICES else "cuda" if kind in CUDA_DEVICES else None

    # Making arrays.

    def index_dtype(self) -> Any:
        """The integer dtype of labels and positions."""
        return self.xp.int64

    def float_dtype(self, value: np.ndarray) -> Any:
        """The floating dtype that these numbers, read by NumPy, get where no array decides."""
        return self.xp.asarray(0.0).dtype

    def wide_dtype(self, x: Array) -> Any:
        """The widest floating dtype where ``x`` is, in which long sums and products of counts are kept."""
        known = self.xp.__array_namespace_info__().dtypes(device=array_api_compat.device(x), kind="real floating")
        return known.get("float64", self.xp.float32)

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        """Numbers in host memory as an array of this library; ``dtype`` None keeps their kind."""
        return self.xp.asarray(value.tolist(), dtype=dtype, **placed)

    def positions(self, x: Array) -> Array:
        """0, 1, ..., K - 1 for the last axis of ``x``."""
        return self.xp.arange(x.shape[-1], dtype=self.index_dtype(), **self.placed(x))

    def undefined(self, like: Array) -> Array:
        """NaN in the shape of ``like``, of which something else is chosen where the result is defined."""
        return self.xp.full_like(like, math.nan)

    def result(self, x: Array) -> Array:
        """``x`` as this library's own functions return it."""
        return x

    def report(self, x: Array) -> tuple[str, str]:
        """The module by which this library itself brings kernels to arrays like ``x``, or "", and why it does not."""
        return "", ""

    def noticed(self, bad: Array) -> None:
        """Called with a mask of invalid values that nobody may look at yet."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any] | None:
        """``function(args, arrays)``, compiled as a whole: it gives None where a value was invalid. None: not here."""
        return None

    def broadcast(self, x: Array, like: Array, axis: int | None = None, names: tuple[str, str] = ("", "")) -> Array:
        """``x`` with the shape of ``like`` without ``axis``, to which it broadcasts as far as sizes are known.

        Where one is not known yet (see `lazy`), it is compared when it is; the error names both by ``names``.
        """
        shape = tuple(like.shape) if axis is None else (*like.shape[:axis], *like.shape[axis + 1 :])
        return x if tuple(x.shape) == shape else self.xp.broadcast_to(x, shape)

    # Arithmetic where the standard leaves accuracy or reproducibility open.

    def sum(self, x: Array) -> Array:
        """The sum over the last axis: pairwise, in an order that the shape alone decides.

        The standard promises neither. Halving the axis uses nothing but elementwise additions, so the rounding error
        grows with the logarithm of the length and no number of threads changes a bit.
        """
        n = x.shape[-1]
        if n == 0:
            return self.xp.sum(x, axis=-1)
        power = 1 << (n.bit_length() - 1)
        if n > power:
            x = self.xp.concat([x[..., : n - power] + x[..., power:], x[..., n - power : power]], axis=-1)
        while power > 1:
            power //= 2
            x = x[..., :power] + x[..., power:]
        return x[..., 0]

    def gather(self, c: Array, labels: Array) -> Array:
        """``c[labels]`` for c [K]; 0 for an index out of range."""
        xp = self.xp
        hot = xp.expand_dims(labels, axis=-1) == self.positions(c)
        return xp.sum(xp.where(hot, c, xp.zeros_like(c)), axis=-1)

    def total(self, x: Array) -> Array:
        """The sum of all elements, likewise."""
        return self.sum(x if x.ndim == 1 else self.xp.reshape(x, (-1,)))

    def cumulative_max(self, x: Array) -> Array:
        """The largest number up to each position of the last axis, of numbers that are not negative.

        The standard has none; doubling the distance takes log2 n passes.
        """
        step, n = 1, x.shape[-1]
        while step < n:
            behind = self.xp.concat([self.xp.zeros_like(x[..., :step]), x[..., :-step]], axis=-1)
            x, step = self.xp.maximum(x, behind), 2 * step
        return x

    def sums_of_groups(self, rows: Sequence[Array], group: Array, count: int) -> list[Array]:
        """The sums of each row [N] over the items of each group; ``group`` [N] holds numbers below ``count``.

        Once the items are sorted, a group is a stretch of them, and its sum that of at most two nodes on each level of
        a tree of pairwise sums.
        """
        xp, order = self.xp, self.xp.argsort(group, stable=False)
        numbers = xp.arange(count, dtype=group.dtype, **self.placed(group))
        ends = xp.searchsorted(xp.take(group, order, axis=0), numbers, side="right")
        low, high = xp.concat([xp.zeros_like(ends[:1]), ends[:-1]]), ends
        x = xp.stack([xp.take(row, order, axis=0) for row in rows])
        total = xp.zeros((len(rows), count), dtype=x.dtype, **self.placed(x))
        while n := x.shape[-1]:
            for node, odd in ((low, low % 2 == 1), (high - 1, high % 2 == 1)):
                found = xp.take(x, xp.clip(node, 0, n - 1), axis=-1)
                total = total + xp.where(odd & (low < high), found, xp.zeros_like(found))
            low, high = (low + 1) // 2, high // 2
            x = x[:, : n // 2 * 2 : 2] + x[:, 1::2]
        return [total[i, :] for i in range(len(rows))]

    def spread(self, x: Array, like: Array) -> Array:
        """``x``, of size 1 on its last axis, to meet ``like``. Its derivative is a sum over that axis, as `sum`."""
        return x

    def log1p(self, x: Array) -> Array:
        """log(1 + x), to a few ulp from -1 upwards. Asked for negative x; elsewhere the namespace's own is trusted."""
        return self.xp.log1p(x)

    def matmul(self, a: Array, b: Array) -> Array:
        """The matrix product, in the full precision of its factors."""
        return self.xp.matmul(a, b)

    def divided(self, x: Array, y: Any) -> Array:
        """``x / y`` for a large array of our own, whose place it may take."""
        return x / y

    # Numbers in and out: what conformance checks a library with. No loss calls these.

    def from_numpy(self, x: np.ndarray, device: Any = None) -> Array:
        """``x`` in this library and in its own dtype, which the namespace must have by NumPy's name for it."""
        placed = {} if device is None else {"device": device}
        found = self.asarray(x, getattr(self.xp, x.dtype.name), placed)
        return found if tuple(found.shape) == x.shape else self.xp.reshape(found, x.shape)  # (0, 3), as a list, is []

    def to_numpy(self, x: Array) -> np.ndarray:
        """The numbers of ``x`` in host memory, which it may share."""
        try:
            return np.from_dlpack(x)
        except (AttributeError, BufferError, RuntimeError, TypeError):  # not there, not readable, or no such dtype
            found = np.asarray(x)
        if found.dtype == object:
            raise TypeError(f"NumPy cannot read an array of {self.name}, unless its Library has a method to_numpy")
        return found

    # Who differentiates.

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        """What a call runs in. Limits such as inf - inf are meant: NumPy need not warn of them."""
        return np.errstate(all="ignore")

    def stop_gradient(self, x: Array) -> Array:
        """``x`` as a constant to the library's autodiff."""
        return x

    def differentiates(self, *arrays: Array | None) -> bool:
        """Whether the library's own autodiff may ask for a derivative in one of these arrays."""
        return False

    def apply(self, primitive: Primitive, *arrays: Array | None) -> Array:
        """The items, differentiable by the library's own autodiff where it has one."""
        return primitive.forward(self, *arrays)[0]

    def value_and_vjp(
        self, primitive: Primitive, cotangent: Array, wanted: Wanted, *arrays: Array | None
    ) -> tuple[Array, Gradients]:
        """The items, and the gradients of sum(cotangent * items) in the wanted arrays, by the formula."""
        items, residuals = primitive.forward(self, *arrays)
        return items, primitive.vjp(self, cotangent, wanted, residuals, *arrays)

    def run(self, kernel: Kernel, work: Work, formula: Callable[..., Array]) -> Array:
        """The kernel's value, differentiable likewise.

        ``formula(*arrays)`` makes the items in plain array code, for derivatives of the derivative.
        """
        return self.number(kernel.value(work)[0], work)

    def bound(
        self, kernel: Kernel, work: Work, formula: Callable[..., Array]
    ) -> Callable[[Array, Array], Array] | None:
        """The `result` of `run` on predictions and targets that are like those of the work; see `Kernel.bound`."""
        compute = kernel.bound(work, gradient=False)
        if compute is None:
            return None
        like = work.on()
        return lambda x, t: self.result(self.number(compute(x, t)[0], like))

    def number(self, value: Any, work: Work) -> Array:
        """A kernel's value in this library: a Python float as a 0-d array in the dtype of the work."""
        return value

    # Memory, for the kernels there. Nothing more is asked where `stored` is None.

    def stored(self, x: Array) -> str | None:
        """The name of its dtype ("float16" and "bfloat16" beside the standard's) if its memory can be reached now.

        A GPU reads a number at multiples of its size alone: of arrays that have others, this is None.
        """
        return None

    def address(self, x: Array) -> int:
        """Where the first element lies."""
        raise NotImplementedError

    def strides(self, x: Array) -> tuple[int, ...]:
        """In elements."""
        raise NotImplementedError

    def is_contiguous(self, x: Array) -> bool:
        """Whether the elements stand side by side, the last axis first."""
        raise NotImplementedError

    def contiguous(self, x: Array) -> Array:
        """``x``, or a copy in which they do."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """An array beside ``like``, contiguous."""
        return self.xp.empty(shape, dtype=dtype, **self.placed(like))

    def threads(self) -> int | None:
        """How many threads the user gives this library, or None."""
        return None

    def queue(self, x: Array) -> tuple[int, int]:
        """The number of the CUDA device that holds ``x``, and the stream (its handle) that the user works on there."""
        raise NotImplementedError
