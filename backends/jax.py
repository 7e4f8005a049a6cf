"""JAX: one ``custom_jvp`` for every primitive.

Its tangent is the primitive's vjp of ones, contracted with the tangents of the arrays, which is right because items are
independent. That one rule gives forward mode, reverse mode, their nestings, vmap, jit and sharding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from polyloss import dispatch
from polyloss.backends import Array, Gradients, Library, Primitive, Wanted, jax_labels

__all__ = ["LIBRARY"]


_invalid: ContextVar[list[Array] | None] = ContextVar("polyloss.jax.invalid", default=None)
"""Whether there are invalid values, in the call that is being compiled as a whole."""


class Jax(Library):
    def signature(self, x: Array) -> Any:
        return None if isinstance(x, jax.core.Tracer) else "jax"

    def report(self, x: Array) -> tuple[str, str]:
        if self.memory(x) != "host":
            return "", ""
        try:
            from polyloss.backends import jax_kernels
        except ImportError as error:
            return "", str(error)
        reason = jax_kernels.refusal()
        return ("", reason) if reason else (jax_kernels.__name__, "")

    def noticed(self, bad: Array) -> None:
        if (found := _invalid.get()) is not None:
            found.append(jnp.any(bad))

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit  # type: ignore[untyped-decorator]
        def whole(args: tuple[Array, ...], arrays: dict[str, Array]) -> tuple[Any, Array | None]:
            found: list[Array] = []
            token = _invalid.set(found)
            try:
                result = function(args, arrays)
            finally:
                _invalid.reset(token)
            return result, functools.reduce(jnp.logical_or, found) if found else None

        def call(args: tuple[Array, ...], arrays: dict[str, Array]) -> Any:
            result, invalid = whole(args, arrays)
            # On a device nobody waits for it, and under a trace nobody can look.
            if invalid is not None and self.memory(invalid) == "host" and bool(invalid):
                return None
            return result

        return call

    @property
    def name(self) -> str:
        return "jax"

    def adopts(self, other: Library) -> bool:
        return other.name == "numpy"

    def device(self, x: Array) -> Any:
        # An uncommitted array goes wherever it is needed; a sharded one has several devices.
        if isinstance(x, jax.core.Tracer) or not getattr(x, "committed", True):
            return None
        return frozenset(x.devices())

    def placed(self, x: Array) -> dict[str, Any]:
        return {}

    def memory(self, x: Array) -> str | None:
        if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
            return None
        return {"cpu": "host", "gpu": "cuda"}.get(next(iter(x.devices())).platform)

    def index_dtype(self) -> Any:
        return jnp.int64 if jax.config.jax_enable_x64 else jnp.int32

    def float_dtype(self, value: np.ndarray) -> Any:
        return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32

    def asarray(self, value: np.ndarray, dtype: Any, placed: dict[str, Any]) -> Array:
        kept = jax.dtypes.canonicalize_dtype(value.dtype)
        if kept != value.dtype and value.dtype.kind in "iu":  # out of range stays out of range instead of wrapping
            value = np.clip(value, np.iinfo(kept).min, np.iinfo(kept).max).astype(kept)
        return jnp.array(value, dtype=kept if dtype is None else dtype)

    def sum(self, x: Array) -> Array:
        return jnp.sum(x, axis=-1)

    def wide_dtype(self, x: Array) -> Any:
        return self.float_dtype(np.empty(0))

    def cumulative_max(self, x: Array) -> Array:
        return jax.lax.cummax(x, axis=x.ndim - 1)

    def log1p(self, x: Array) -> Array:
        # XLA's float64 loses 7 bits around x = -0.41; from -1/4 down, log(1 + x) is as good as its argument.
        return jnp.where(x < -0.25, jnp.log(1 + x), jnp.log1p(x))

    def matmul(self, a: Array, b: Array) -> Array:
        # Some devices take fewer bits by default; a precision that the user chose is kept.
        precision = None if jax.config.jax_default_matmul_precision else jax.lax.Precision.HIGHEST
        return jnp.matmul(a, b, precision=precision)

    def scope(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x

    def undefined(self, like: Array) -> Array:
        with jax.debug_nans(False):  # whose user looks for those in his results
            return jnp.full_like(like, jnp.nan)

    def apply(self, primitive: Primitive, *arrays: Array | None) -> Array:
        return _compiled(primitive, dispatch.is_generic(), *arrays)

    def value_and_vjp(
        self, primitive: Primitive, cotangent: Array, wanted: Wanted, *arrays: Array | None
    ) -> tuple[Array, Gradients]:
        found: tuple[Array, Gradients] = _compiled_vjp(primitive, wanted, dispatch.is_generic(), cotangent, *arrays)
        return found


def _faster(primitive: Primitive, *arrays: Array | None) -> Any:
    """The module that computes this faster than the formula: the kernels, or what XLA compiles well."""
    try:
        from polyloss.backends import jax_kernels
    except ImportError:  # llvmlite does not exist for every platform
        pass
    else:
        if jax_kernels.take(primitive, *arrays):
            return jax_kernels
    return jax_labels if jax_labels.take(primitive, *arrays) else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _items(primitive: Primitive, *arrays: Array | None) -> Array:
    return primitive.forward(LIBRARY, *arrays)[0]


def _tangent(primitive: Primitive, arrays: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    items = _items(primitive, *arrays)
    wanted = tuple(t is not None and not isinstance(t, SymbolicZero) for t in tangents)
    gradients = primitive.vjp(LIBRARY, jnp.ones_like(items), wanted, None, *arrays)
    tangent = jnp.zeros_like(items)
    for gradient, t, asked in zip(gradients, tangents, wanted):
        if asked:
            part = gradient * t
            tangent = tangent + (part if part.ndim == items.ndim else jnp.sum(part, axis=-1))
    return items, tangent


_items.defjvp(_tangent, symbolic_zeros=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(primitive: Primitive, generic: bool, *arrays: Array | None) -> Array:
    if (module := _faster(primitive, *arrays)) is not None:
        return module.items(LIBRARY, primitive, *arrays)
    return _items(primitive, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled_vjp(
    primitive: Primitive, wanted: Wanted, generic: bool, cotangent: Array, *arrays: Array | None
) -> tuple[Array, Gradients]:
    if wanted[0] and not any(wanted[1:]) and (module := _faster(primitive, *arrays)) is not None:
        items, gradient = module.items_and_slopes(LIBRARY, primitive, cotangent, *arrays)
        return items, (gradient, *[None] * (len(arrays) - 1))
    return Library.value_and_vjp(LIBRARY, primitive, cotangent, wanted, *arrays)


LIBRARY = Jax(jnp)
