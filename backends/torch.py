"""torch: one autograd rule for every primitive.

No single form of ``autograd.Function`` serves all of torch: one with a ``jvp`` is refused by ``torch.compile``, one
without it fails under ``torch.func``. So a plain eager call uses a small Function, where kernels plug in and whose
backward is itself differentiable; under ``torch.compile``, ``torch.func`` and forward-mode AD, and for tensor
subclasses, the primitive is plain torch code, which all of them transform.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
from torch.autograd import forward_ad

from polyloss.backends import Array, Implementation, Library, Primitive

__all__ = ["LIBRARY"]

BLOCK = 512


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
        return torch.ones_like(x, dtype=torch.int64).cumsum(-1) - 1  # of the subclass, which would not mix with others

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

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        # Autocast would run the matrix products of float32 embeddings in 16 bits.
        kind = x.device.type
        lowering = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        scope: AbstractContextManager[Any] = torch.autocast(kind, enabled=False) if lowering else nullcontext()
        return scope

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def apply(self, primitive: Primitive, implementation: Implementation, *arrays: Array | None) -> Array:
        if not all(x is None or _is_plain(x) for x in arrays):
            return primitive.differentiable(self, *arrays)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays):
            return _Rule.apply(self, primitive, implementation, *arrays)
        return implementation.forward(self, *arrays)[0]


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
    def forward(ctx: Any, library: Library, primitive: Primitive, implementation: Implementation, *arrays: Any) -> Any:
        items, residuals = implementation.forward(library, *arrays)
        ctx.rule = library, primitive, implementation
        ctx.count = len(arrays)
        ctx.save_for_backward(*arrays, *residuals)
        return items

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        library, primitive, implementation = ctx.rule
        saved = ctx.saved_tensors  # once: checkpointing and saved-tensor hooks unpack at every access
        arrays, residuals = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():  # create_graph: the formula is differentiable, residuals and kernels are not
            implementation, residuals = primitive, None
        wanted = ctx.needs_input_grad[3:]
        gradients = implementation.vjp(library, cotangents[0], wanted, residuals, *arrays)
        return None, None, None, *(g if asked else None for g, asked in zip(gradients, wanted))


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
