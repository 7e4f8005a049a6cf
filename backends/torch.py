"""torch: one autograd rule for every primitive.

No single form of ``autograd.Function`` serves all of torch: one with a ``jvp`` is refused by ``torch.compile``, one
without it fails under ``torch.func``. So a plain eager call uses a small Function, where kernels plug in and whose
backward is itself differentiable; under ``torch.compile``, ``torch.func`` and forward-mode AD, and for tensor
subclasses, the primitive is plain torch code, which all of them transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
from torch.autograd import forward_ad

from polyloss.backends import Array, Kernel, Library, Primitive, Work

__all__ = ["LIBRARY"]

BLOCK = 512
HUGE = 1 << 22
"""Bytes from which on NumPy's allocator asks for huge pages."""


class Torch(Library):
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
        return (
            x.new_ones(x.shape[-1:], dtype=torch.int64).cumsum(-1) - 1
        )  # of the subclass, which may not mix with others

    def sum(self, x: Array) -> Array:
        # torch.sum over many elements gives other bits with other numbers of threads; halving does not. A compiler
        # orders its sums itself, so it gets them in two levels instead: its own, over a long row, lose 30 ulp.
        if not torch.compiler.is_compiling():
            return super().sum(x)
        n = x.shape[-1]
        if n <= BLOCK:
            return torch.sum(x, -1)
        return torch.sum(torch.nn.functional.pad(x, (0, -n % BLOCK)).unflatten(-1, (-1, BLOCK)), -1).sum(-1)

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
            return primitive.differentiable(self, *arrays)
        if self.differentiates(*arrays):
            return _Rule.apply(self, primitive, *arrays)
        return primitive.forward(self, *arrays)[0]

    def run(self, kernel: Kernel, work: Work, formula: Callable[..., Array]) -> Array:
        if self.differentiates(work.arrays[0]):
            return _KernelRule.apply(kernel, work, formula, *work.arrays)
        return super().run(kernel, work, formula)

    def number(self, value: Any, work: Work) -> Array:
        return value if work.divisor is None else torch.tensor(value, dtype=work.dtype, device="cpu")

    def stored(self, x: Array) -> str | None:
        if _is_plain(x) and x.device.type == "cpu" and x.layout is torch.strided and not x.is_neg():
            return _STORED.get(x.dtype)
        return None

    def address(self, x: Array) -> int:
        return int(x.data_ptr())

    def strides(self, x: Array) -> tuple[int, ...]:
        return tuple(x.stride())

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        # A large array is NumPy's, which asks for huge pages: torch does not, and the page faults of a fresh gradient
        # cost twice as much as its arithmetic.
        stored = _STORED[dtype]
        if math.prod(shape) * dtype.itemsize < HUGE or stored == "bfloat16":
            return torch.empty(shape, dtype=dtype, device=like.device)
        return torch.from_numpy(np.empty(shape, stored))

    def is_contiguous(self, x: Array) -> bool:
        return bool(x.is_contiguous()) and not x.is_neg()

    def contiguous(self, x: Array) -> Array:
        return x.resolve_neg().contiguous()

    def threads(self) -> int | None:
        return int(torch.get_num_threads())


_STORED = {
    getattr(torch, name): name
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64".split()
}


def _is_plain(x: Array) -> bool:
    """Whether ``x`` holds numbers that nothing traces, batches, fakes or differentiates forwards."""
    return (
        (type(x) is torch.Tensor or type(x) is torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and torch.utils._python_dispatch._get_current_dispatch_mode() is None
    )


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
        # What the rule keeps beside the saved tensors must not hold them: they would escape from torch's hooks.
        ctx.rule = kernel, work.on(), formula
        ctx.count = len(arrays)
        ctx.save_for_backward(*arrays, *residuals)
        return LIBRARY.number(value, work)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        kernel, work, formula = ctx.rule
        (cotangent,), saved = cotangents, ctx.saved_tensors
        arrays, residuals = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():  # create_graph
            items = formula(*arrays)
            if work.weights is not None:
                items = items * work.weights
            if work.keep is not None:
                items = torch.where(work.keep, items, 0)
            total = torch.sum(cotangent * items)
            if work.divisor is not None:
                total = total / work.divisor if work.divisor else total * 0
            (gradient,) = torch.autograd.grad(total, arrays[0], create_graph=True)
        else:
            work = work.on(*arrays)
            if work.divisor is None:
                work.weights = cotangent if work.weights is None else cotangent * work.weights
                work.scale = 1.0
            else:
                work.scale = float(cotangent)
            gradient = kernel.vjp(work, residuals)[0]
        return None, None, None, gradient, *(None for _ in arrays[1:])


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
