"""torch: one autograd rule for every primitive.

No single form of ``autograd.Function`` serves all of torch: one with a ``jvp`` is refused by ``torch.compile``, one
without it fails under ``torch.func``. So a plain eager call uses a small Function, where kernels plug in and whose
backward is itself differentiable. ``torch.compile`` gets the kernels as custom operations, which its code calls. Under
``torch.func`` and forward-mode AD, in an exported program, for tensor subclasses, and for small tensors under
``torch.compile``, the primitive is plain torch code, which all of them transform.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import array_api_compat.torch
import numpy as np
import torch
from torch.autograd import forward_ad

from polyloss import dispatch
from polyloss.backends import Array, Kernel, Library, Primitive, Unavailable, Work
from polyloss.version import __version__

__all__ = ["LIBRARY"]

BLOCK = 512
LARGE = 1 << 12
"""Predictions from which on compiled code calls the kernels."""
SMALL = 1 << 14
"""Predictions up to which the forward pass computes the gradient as well."""
HUGE = 1 << 22
"""Bytes from which on NumPy's allocator asks for huge pages."""


class Torch(Library):
    def signature(self, x: Array) -> Any:
        if _is_stored(x):
            return x.dtype, x.shape, x.requires_grad and torch.is_grad_enabled(), x.get_device()
        return None

    def guard(self, x: Array, y: Array) -> Callable[[Array, Array], bool] | None:
        if not (x.is_contiguous() and y.is_contiguous() and _guards()):
            return None
        is_like, differentiating = _guard(x, y), torch.is_grad_enabled()

        def fits(x: Array, y: Array) -> bool:
            # Modes of torch's own infrastructure, as of tracing to a graph, it does not tell apart.
            usual = is_grad_enabled() is differentiating and forward_ad._current_level < 0 and not _modes()
            return usual and is_like(x, y)

        return fits if fits(x, y) else None

    def device(self, x: Array) -> Any:
        return None if x.ndim == 0 and x.device.type == "cpu" else x.device

    def placed(self, x: Array) -> dict[str, Any]:
        return {"device": x.device}

    def moved(self, x: Array, placed: dict[str, Any]) -> Array:
        return x.to(placed["device"]) if x.ndim == 0 else x

    def memory(self, x: Array) -> str | None:
        if not _is_plain(x):
            return None
        return {"cpu": "host", "cuda": "cuda"}.get(x.device.type)

    def float_dtype(self, value: np.ndarray) -> Any:
        return torch.get_default_dtype()

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        return torch.tensor(value.tolist(), dtype=dtype, **placed)

    def positions(self, x: Array) -> Array:
        if type(x) is torch.Tensor or type(x) is torch.nn.Parameter:
            return super().positions(x)
        return x.new_ones(x.shape[-1:], dtype=torch.int64).cumsum(-1) - 1  # of the subclass, which may not mix

    def sum(self, x: Array) -> Array:
        # torch.sum over many elements gives other bits with other numbers of threads; halving does not. A compiler
        # orders its sums itself, so it gets them in two levels instead: its own, over a long row, lose 30 ulp.
        if not torch.compiler.is_compiling():
            return super().sum(x) if _tracing() is None else torch.sum(x, -1)  # torch.jit's sizes are no numbers
        n = x.shape[-1]
        if n <= BLOCK:
            return torch.sum(x, -1)
        return torch.sum(torch.nn.functional.pad(x, (0, -n % BLOCK)).unflatten(-1, (-1, BLOCK)), -1).sum(-1)

    def wide_dtype(self, x: Array) -> Any:
        return torch.float32 if x.device.type == "mps" else torch.float64

    def cumulative_max(self, x: Array) -> Array:
        return torch.cummax(x, -1).values

    def spread(self, x: Array, like: Array) -> Array:
        n = like.shape[-1]
        if n <= BLOCK or not torch.compiler.is_compiling():
            return x
        blocks = x.expand(*x.shape[:-1], -(-n // BLOCK)).unsqueeze(-1)
        return blocks.expand(*blocks.shape[:-1], BLOCK).flatten(-2)[..., :n]

    def matmul(self, a: Array, b: Array) -> Array:
        with self.scope(a):
            if _is_plain(a) and _is_plain(b) and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
                return _MatMul.apply(a, b)
            return torch.matmul(a, b)

    def divided(self, x: Array, y: Any) -> Array:
        return x / y if self.differentiates(x, y) or not _is_plain(x) else x.div_(y)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        # Autocast would run the matrix products of float32 embeddings in 16 bits.
        kind = x.device.type
        lowering = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        scope: AbstractContextManager[Any] = torch.autocast(kind, enabled=False) if lowering else nullcontext()
        return scope

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def differentiates(self, *arrays: Array | None) -> bool:
        return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in arrays)

    def apply(self, primitive: Primitive, *arrays: Array | None) -> Array:
        if not all(x is None or _is_plain(x) for x in arrays):
            if _compiles_to_kernels(primitive, *arrays):
                return _items_op(primitive, *arrays)
            return primitive.differentiable(self, *arrays)
        if self.differentiates(*arrays):
            return _Rule.apply(self, primitive, *arrays)
        return primitive.forward(self, *arrays)[0]

    def run(self, kernel: Kernel, work: Work, formula: Callable[..., Array]) -> Array:
        if not self.differentiates(work.arrays[0]):
            return super().run(kernel, work, formula)
        if not _is_small(work):
            return _KernelRule.apply(kernel, work, formula, *work.arrays)

        like = work.on()
        like.disposable, like.scale = False, 1.0  # the predictions are saved; autograd has its own scale

        def compute(*arrays: Any) -> tuple[Any, Any]:
            value, gradients = kernel.value_and_vjp(like.on(*arrays))
            return value, gradients[0]

        return _SmallRule.apply(_Small(compute, like, formula), *work.arrays)

    def bound(
        self, kernel: Kernel, work: Work, formula: Callable[..., Array]
    ) -> Callable[[Array, Array], Array] | None:
        if not self.differentiates(work.arrays[0]):
            return super().bound(kernel, work, formula)
        compute = kernel.bound(work, gradient=True) if _is_small(work) else None
        return None if compute is None else functools.partial(_SmallRule.apply, _Small(compute, work.on(), formula))

    def number(self, value: Any, work: Work) -> Array:
        if not isinstance(value, float):
            return value
        try:
            return torch.scalar_tensor(value, dtype=work.dtype, device="cpu")
        except RuntimeError:  # too large for the dtype
            return torch.scalar_tensor(value, dtype=torch.float64, device="cpu").to(work.dtype)

    def stored(self, x: Array) -> str | None:
        return _STORED.get(x.dtype) if _is_stored(x) else None

    def address(self, x: Array) -> int:
        return int(x.data_ptr())

    def strides(self, x: Array) -> tuple[int, ...]:
        return tuple(x.stride())

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        # A large array is NumPy's, which asks for huge pages: torch does not, and the page faults of a fresh gradient
        # cost twice as much as its arithmetic.
        stored = _STORED[dtype]
        if math.prod(shape) * dtype.itemsize < HUGE or stored == "bfloat16" or not like.is_cpu:
            return torch.empty(shape, dtype=dtype, device=like.device)
        return torch.from_numpy(np.empty(shape, stored))

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.is_contiguous()) and not x.is_neg()

    def contiguous(self, x: Array) -> Array:
        return x.resolve_neg().contiguous()

    def threads(self) -> int | None:
        return int(torch.get_num_threads())

    def queue(self, x: Array) -> tuple[int, int]:
        device = x.get_device()
        return device, int(torch._C._cuda_getCurrentRawStream(device))


_STORED = {
    getattr(torch, name): name
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64".split()
}


_WIDE = (torch.float32, torch.float64)


def _is_plain(x: Array) -> bool:
    """Whether ``x`` holds numbers that nothing traces, batches, fakes or differentiates forwards."""
    return (
        (type(x) is torch.Tensor or type(x) is torch.nn.Parameter)
        and not is_compiling()
        and _level() is None
        and forward_ad._current_level < 0
        and not _modes()
        and _tracing() is None
    )


is_compiling = torch.compiler.is_compiling
is_grad_enabled = torch.is_grad_enabled
_level = torch._C._functorch.maybe_current_level
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_is_batch = torch._C._functorch.is_legacy_batchedtensor  # of is_grads_batched, which is no level of torch.func


def _is_stored(x: Array) -> bool:
    """Whether the elements of ``x`` lie in memory, as they are, at multiples of their size."""
    here = _is_plain(x) and (x.is_cpu or x.is_cuda) and x.layout is torch.strided and not x.is_neg()
    return here and x.data_ptr() % x.itemsize == 0


def _guard(*arrays: Array) -> Callable[..., bool]:
    """What torch.compile asks of arrays before it runs compiled code on them.

    It compares types, dtypes, devices, shapes, strides and whether a gradient is asked for, and all that torch keeps as
    dispatch keys: subclasses, modes, levels of `torch.func`, inference mode, autocast.
    """
    guard: Callable[..., bool] = torch._C._dynamo.guards.TensorGuards(
        *arrays,
        dynamic_dims_sizes=[list(x.shape) for x in arrays],
        dynamic_dims_strides=[list(x.stride()) for x in arrays],
    ).check
    return guard


@functools.cache
def _guards() -> bool:
    """Whether `_guard` is what it is here. It is torch's own affair. Asked outside of all transformations alone."""
    try:
        x, y = torch.zeros(2, 3, device="cpu"), torch.zeros(2, dtype=torch.int64, device="cpu")
        others = x.double(), x[:, :2], x.t(), x.new_zeros(3, 2).t(), torch._neg_view(x), x.clone().requires_grad_()
        fits = _guard(x, y)
        return fits(x.clone(), y) and not any(fits(other, y) for other in (*others, torch.nn.Parameter(x), None))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False


class _Rule(torch.autograd.Function):  # type: ignore[misc]
    """The items of any primitive, and their gradient by its vjp."""

    @staticmethod
    def forward(ctx: Any, library: Library, primitive: Primitive, *arrays: Any) -> Any:
        items, residuals = primitive.forward(library, *arrays)
        ctx.rule = library, primitive
        ctx.count = len(arrays)
        ctx.save_for_backward(*arrays, *residuals)
        return items

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        library, primitive = ctx.rule
        saved = ctx.saved_tensors  # once: checkpointing and saved-tensor hooks unpack at every access
        arrays, residuals = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():  # create_graph: the formula is differentiable, residuals are not
            residuals = None
        wanted = ctx.needs_input_grad[2:]
        gradients = primitive.vjp(library, cotangents[0], wanted, residuals, *arrays)
        return None, None, *(g if asked else None for g, asked in zip(gradients, wanted))


class _KernelRule(torch.autograd.Function):  # type: ignore[misc]
    """The value of a kernel, and its gradient in the predictions by the kernel again.

    The forward pass keeps the row statistics, not a second copy of the predictions. Where the gradient itself is to be
    differentiated, it is taken of the formula.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, work: Work, formula: Any, *arrays: Any) -> Any:
        value, residuals = kernel.value(work, residuals=True)
        ctx.save_for_backward(*arrays, *residuals)
        # What the rule keeps beside the saved tensors must not hold them: they would escape from torch's hooks.
        ctx.rule = kernel, work.on(), formula, len(arrays)
        return LIBRARY.number(value, work)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        kernel, work, formula, count = ctx.rule
        (cotangent,), saved = cotangents, ctx.saved_tensors
        arrays, residuals = saved[:count], saved[count:]
        if torch.is_grad_enabled():  # create_graph
            gradient = _differentiable(work, formula, cotangent, arrays)
        elif not _is_plain(cotangent) or _is_batch(cotangent):
            gradient = _of_formula(work, formula, cotangent, arrays)
        else:
            try:
                gradient = kernel.vjp(_scaled(work.on(*arrays), cotangent), residuals)[0]
            except Unavailable:  # here, while the kernel of the value was not
                gradient = _of_formula(work, formula, cotangent, arrays)
        return None, None, None, gradient, *[None] * (count - 1)


class _Small(NamedTuple):
    """A loss of few predictions."""

    compute: Callable[
        ..., tuple[Any, Array]
    ]  # of the arrays, the value of a kernel and the gradient in the predictions
    work: Work  # without the arrays
    formula: Callable[..., Array]


class _SmallRule(torch.autograd.Function):  # type: ignore[misc]
    """The same of a small loss: its gradient is computed along with the value, and then costs one product."""

    @staticmethod
    def forward(ctx: Any, small: _Small, *arrays: Any) -> Any:
        value, gradient = small.compute(*arrays)
        ctx.save_for_backward(gradient, *arrays)
        ctx.small = small
        return LIBRARY.number(value, small.work)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        gradient, *arrays = ctx.saved_tensors
        if is_grad_enabled():  # create_graph
            gradient = _differentiable(ctx.small.work, ctx.small.formula, cotangent, arrays)
        else:
            gradient = gradient * cotangent
        return None, gradient, *[None] * (len(arrays) - 1)


def _is_small(work: Work) -> bool:
    x = work.arrays[0]
    # A 16-bit gradient may need its cotangent, the scale of the loss, not to vanish.
    return work.divisor is not None and x.numel() <= SMALL and x.dtype in _WIDE


def _scaled(work: Work, cotangent: Array) -> Work:
    """The work with the cotangent of its value among the factors of its gradient."""
    if work.divisor is None:
        work.weights = cotangent if work.weights is None else cotangent * work.weights
        work.scale = 1.0
    else:
        work.scale = float(cotangent) if LIBRARY.memory(cotangent) == "host" else cotangent
    return work


def _of_formula(work: Work, formula: Callable[..., Array], cotangent: Array, arrays: tuple[Any, ...]) -> Array:
    """The gradient in the predictions, where no kernel can compute it."""
    x = arrays[0].detach().requires_grad_()
    with torch.enable_grad():
        return _differentiable(work, formula, cotangent, (x, *arrays[1:]), create_graph=False)


def _differentiable(
    work: Work, formula: Callable[..., Array], cotangent: Array, arrays: tuple[Any, ...], *, create_graph: bool = True
) -> Array:
    """The gradient in the predictions, to be differentiated again.

    The cotangent may depend on the predictions, as that of the square of a loss does: it is a factor of the gradient,
    and the gradient is not one of it.
    """
    items = formula(*arrays)
    if work.weights is not None:
        items = items * work.weights
    if work.keep is not None:
        items = torch.where(work.keep, items, 0)
    result = items if work.divisor is None else torch.sum(items)
    if isinstance(work.divisor, torch.Tensor):
        some = work.divisor != 0
        result = torch.where(some, result / torch.where(some, work.divisor, 1), result * 0)
    elif work.divisor is not None:
        result = result / work.divisor if work.divisor else result * 0
    (gradient,) = torch.autograd.grad(result, arrays[0], cotangent, create_graph=create_graph)
    return gradient


# Under torch.compile.


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _is_outermost() -> bool:
    """Whether the compiler is tracing neither torch.func nor `generic`; for it this is a constant."""
    return _level() is None and not dispatch.is_generic()


def _compiles_to_kernels(primitive: Primitive, x: Array, *others: Array | None) -> bool:
    """Whether compiled code is to call the kernels."""
    return (
        is_compiling()
        and type(primitive).__name__ in ("SoftplusCrossEntropy", "LseCrossEntropy")
        and not torch.compiler.is_exporting()
        and _is_outermost()
        and forward_ad._current_level < 0
        and all(a is None or type(a) is torch.Tensor or type(a) is torch.nn.Parameter for a in (x, *others))
        and all(a is None or not a.requires_grad for a in others)
        and x.is_cpu
        and x.dtype in _WIDE
        and x.numel() >= LARGE
    )


def _items_op(primitive: Primitive, x: Array, *others: Array | None) -> Array:
    kind = type(primitive)
    options = [float(getattr(primitive, name)) for name in kind.__dataclass_fields__]  # type: ignore[attr-defined]
    t, a, b = (*others, None, None, None)[:3]
    return _items(f"{kind.__module__}:{kind.__qualname__}", options, x, t, a, b)[0]


def _primitive(name: str, options: Sequence[float]) -> Primitive:
    module, _, kind = name.partition(":")
    found: Primitive = getattr(importlib.import_module(module), kind)(*options)
    return found


def _kernel_work(name: str, options: Sequence[float], *arrays: Any) -> tuple[Kernel | None, Work]:
    primitive = _primitive(name, options)
    x, t, a, b = arrays
    work = Work(primitive, LIBRARY, x.dtype, (x.contiguous(), t, a), x.ndim - 1, poison=True)
    if primitive.rows:
        if a is not None and not any(a.stride()[:-1]) and a.numel():
            a = a[(0,) * (a.ndim - 1)]  # class weights, which the formula wants in the shape of the rows
        work.arrays = x.contiguous(), t, a, b
    kernels = dispatch.kernels("host")
    return None if kernels is None or not x.numel() else kernels.take(work), work


def _version() -> bytes:
    """What differs where this file does."""
    try:
        return Path(__file__).read_bytes()
    except OSError:  # in a zip archive or a frozen program
        return __version__.encode()


_NAMES = [f"{name}_{hashlib.sha256(_version()).hexdigest()[:8]}" for name in ("items", "slopes")]
"""Of the operations. torch keeps compiled code on disk, with their derivatives in it, and knows it by their names."""


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    f"polyloss::{_NAMES[0]}",
    mutates_args=(),
    schema="(str primitive, float[] options, Tensor x, Tensor? t, Tensor? a, Tensor? b) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(name: str, options: Sequence[float], x: Any, t: Any, a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The items, and of rows the statistics that spare `_backward_op` some work."""
    kernel, work = _kernel_work(name, options, x, t, a, b)
    if kernel is not None:
        try:
            items, residuals = kernel.value(work, residuals=True)
            return items, *(residuals or (x.new_empty(0), x.new_empty(0)))
        except Unavailable:
            pass
    items = work.primitive.forward(LIBRARY, *(x, t, a, b)[: len(work.arrays)])[0]
    rows = items.numel() if work.primitive.rows else 0
    return items, x.new_zeros(rows), x.new_zeros(rows)


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    f"polyloss::{_NAMES[1]}",
    mutates_args=(),
    schema="(str primitive, float[] options, Tensor cotangent, Tensor x, Tensor? t, Tensor? a, Tensor? b, Tensor top,"
    " Tensor others) -> Tensor",
)
def _backward_op(
    name: str, options: Sequence[float], cotangent: Any, x: Any, t: Any, a: Any, b: Any, top: Any, others: Any
) -> Any:
    """The gradient in ``x``."""
    kernel, work = _kernel_work(name, options, x, t, a, b)
    if kernel is not None:
        work.weights = cotangent
        try:
            return kernel.vjp(work, (top, others))[0]
        except Unavailable:
            pass
    wanted = True, False, False, False
    return work.primitive.vjp(LIBRARY, cotangent, wanted, None, *(x, t, a, b)[: len(work.arrays)])[0].contiguous()


@_forward_op.register_fake  # type: ignore[untyped-decorator]
def _(name: str, options: Sequence[float], x: Any, t: Any, a: Any, b: Any) -> tuple[Any, Any, Any]:
    rows = _primitive(name, options).rows
    items = x.new_empty(x.shape[:-1] if rows else x.shape)
    count = items.numel() if rows else 0
    return items, x.new_empty(count), x.new_empty(count)


@_backward_op.register_fake  # type: ignore[untyped-decorator]
def _(name: str, options: Sequence[float], cotangent: Any, x: Any, *rest: Any) -> Any:
    return x.new_empty(x.shape)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.primitive = inputs[:2]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[2:], *output[1:])


def _pull_back(ctx: Any, cotangent: Any, *rest: Any) -> Any:
    gradient = _slopes(*ctx.primitive, cotangent, *ctx.saved_tensors)
    return None, None, gradient, None, None, None


_forward_op.register_autograd(_pull_back, setup_context=_set_up)
_items, _slopes = (getattr(torch.ops.polyloss, name).default for name in _NAMES)


class _MatMul(torch.autograd.Function):  # type: ignore[misc]
    """A matrix product whose gradient autocast does not lower either, where it surrounds the backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        ctx.save_for_backward(a, b)
        return torch.matmul(a, b)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (g,), (a, b), wanted = cotangents, ctx.saved_tensors, ctx.needs_input_grad
        return LIBRARY.matmul(g, b.mT) if wanted[0] else None, LIBRARY.matmul(a.mT, g) if wanted[1] else None


LIBRARY = Torch(array_api_compat.torch)
