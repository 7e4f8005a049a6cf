"""The kernels in JAX's programs on the CPU: XLA calls them, and JAX transforms the calls.

JAX differentiates a program by its primitive operations, so the derivative is two of them: `_along`, the items'
tangent, which is linear in the tangent of the predictions, and `_slopes`, its transpose, which is linear in the items'
cotangent. On the CPU both are a kernel's, elsewhere the formula's. Their own derivatives in the predictions are the
formula's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive as Operation
from jax.interpreters import ad, batching, mlir

from polyloss import dispatch
from polyloss.backends import Array, Library, Primitive, Unavailable
from polyloss.backends.cpu import ffi, xla
from polyloss.backends.cpu.fields import FEW

__all__ = ["items", "items_and_slopes", "refusal", "take"]

_LABELS = ("int32", "int64")
_FLOATS = ("float32", "float64")


@functools.cache
def refusal() -> str | None:
    """Why no program is given the kernels here; None if they are."""
    if dispatch.kernels("host") is None:
        return "there are no kernels"
    if jax.default_backend() != "cpu":
        return "JAX computes on another device than the CPU"
    if jax.local_device_count() > 1:
        return "JAX has several devices on the CPU, and its compiler cannot split a kernel among them"
    return ffi.refusal()


def take(primitive: Primitive, x: Array, *others: Array | None) -> bool:
    """Whether a kernel may compute the primitive on these arrays, which may be traced."""
    given: tuple[Array | None, ...] = (*others, None)
    t, rest = given[0], given[1:]
    name = type(primitive).__name__
    if name == "LseCrossEntropy":
        fits = (
            t is not None
            and not any(a is not None for a in rest)
            and (t.dtype.name in _LABELS or (t.dtype == x.dtype and t.shape == x.shape))
        )
    else:
        fits = name == "SoftplusCrossEntropy" and (t is None or (t.dtype == x.dtype and t.shape == x.shape))
        fits = fits and all(a is None or (a.dtype == x.dtype and a.shape == x.shape) for a in rest)
    return (
        fits
        and x.dtype.name in _FLOATS
        and all(isinstance(n, int) and n > 0 for n in x.shape)
        and not dispatch.is_generic()
        and refusal() is None
        and jax.sharding.get_abstract_mesh().empty  # else inside shard_map, or of an explicit sharding
    )


@functools.cache
def _target(key: tuple[Any, ...]) -> str:
    """The name by which XLA knows that kernel."""
    name = xla.name_of(key)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.c_void_p(xla.address(key))), platform="cpu")
    return name


def _key(primitive: Any, x: Array, others: Sequence[Array], value: bool) -> tuple[Any, ...]:
    """The kernel for the value, or for the gradient."""
    kind = x.dtype.name
    if not primitive.rows:
        return "elements", kind, kind, value, not value
    targets = others[0].dtype.name
    if targets not in _LABELS or primitive.label_smoothing:
        return "soft", kind, targets, False, False, value, not value
    if x.shape[-1] <= FEW:
        return "lanes", kind, targets, value and not primitive.z_loss, value, not value
    return "rows", kind, targets, value, not value


def _runs(primitive: Any, x: Array, others: Sequence[Array], value: bool) -> bool:
    """Whether that kernel can be made here."""
    try:
        _target(_key(primitive, x, others, value))
    except Unavailable:
        return False
    return True


def _call(primitive: Any, x: Array, others: Sequence[Array], value: bool, more: dict[str, Array]) -> list[Array]:
    """The kernel's value, with the rows' statistics, or its gradient."""
    key = _key(primitive, x, others, value)
    items = jax.ShapeDtypeStruct(x.shape[:-1] if primitive.rows else x.shape, x.dtype)
    results = {"items": items} if value else {"gradient": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    if primitive.rows:
        names = ["x", "labels" if others[0].dtype.name in _LABELS else "t", *more]
        if value:
            results |= {"top": items, "others": items}
    else:
        names = ["x", "t", "p"][: 1 + len(others)] + list(more)
    codes = {name: xla.ARGUMENT + i for i, name in enumerate(names)}
    codes |= {name: xla.RESULT + i for i, name in enumerate(results)}
    if primitive.rows:
        plan = xla.rows_plan(key[0], codes, primitive.label_smoothing, primitive.z_loss)
    else:
        plan = xla.elements_plan(codes, primitive.label_smoothing)
    call = jax.ffi.ffi_call(_target(key), list(results.values()), vmap_method="broadcast_all")
    return list(call(x, *others, *more.values(), plan=np.asarray(plan, np.int64)))


def _padded(primitive: Any, others: Sequence[Array]) -> tuple[Array | None, ...]:
    """The arrays beside the predictions as the formula takes them."""
    return (*others, None, None, None)[: 3 if primitive.rows else 2]


def _formula_slopes(
    library: Library, primitive: Any, cotangent: Array, x: Array, others: Sequence[Array], at: int = 0
) -> Array:
    wanted = tuple(i == at for i in range(4))
    return primitive.vjp(library, cotangent, wanted, None, x, *_padded(primitive, others))[at]


def _contracted(slopes: Array, tangent: Array) -> Array:
    """The sum over the axis that a row has and an item has not."""
    return jnp.sum(slopes * tangent, axis=-1)


# The value, with what spares its derivative some work.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value(library: Library, primitive: Any, x: Array, *others: Array) -> tuple[Array, ...]:
    def kernel(x: Array, *others: Array) -> tuple[Array, ...]:
        return tuple(_call(primitive, x, others, True, {}))

    def formula(x: Array, *others: Array) -> tuple[Array, ...]:
        items, kept = primitive.forward(library, x, *_padded(primitive, others))
        return (items, jnp.max(x, axis=-1), kept[0][..., 0]) if primitive.rows else (items,)

    if not _runs(primitive, x, others, True):
        return formula(x, *others)
    return tuple(jax.lax.platform_dependent(x, *others, cpu=kernel, default=formula))


def _value_tangent(library: Library, primitive: Any, primals: Any, tangents: Any) -> Any:
    outputs = _value(library, primitive, *primals)
    items, *statistics = outputs
    x, *others = primals
    tangent = jnp.zeros_like(items)
    for i, t in enumerate(tangents):
        if isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0:
            continue
        if i == 0:
            operands = (x, *others, *statistics, t)
            tangent += _along.bind(*operands, library=library, of=primitive, count=len(others))
        else:
            slopes = _formula_slopes(library, primitive, jnp.ones_like(items), x, others, i)
            tangent += _contracted(slopes, t) if primitive.rows else slopes * t
    return outputs, (tangent, *map(jnp.zeros_like, statistics))


_value.defjvp(_value_tangent, symbolic_zeros=True)


def items(library: Library, primitive: Primitive, x: Array, *others: Array | None) -> Array:
    """The items by a kernel, which must take these arrays; differentiable as often as one likes."""
    return _value(library, primitive, x, *(a for a in others if a is not None))[0]


def items_and_slopes(
    library: Library, primitive: Primitive, cotangent: Array, x: Array, *others: Array | None
) -> tuple[Array, Array]:
    """The items, and the gradient of ``sum(cotangent * items)`` in the predictions, likewise."""
    given = [a for a in others if a is not None]
    items, *statistics = _value(library, primitive, x, *given)
    cotangent = jnp.broadcast_to(cotangent, items.shape).astype(x.dtype)
    operands = (cotangent, x, *given, *map(jax.lax.stop_gradient, statistics))
    return items, _slopes.bind(*operands, library=library, of=primitive, count=len(given))


# Its derivative. Operands: predictions, the other arrays (``count``), the statistics of rows, the tangent; or first
# the cotangent.


def _along_plain(x: Array, *rest: Array, library: Library, of: Any, count: int) -> Array:
    tangent = rest[-1]
    ones = jnp.ones_like(tangent[..., 0] if of.rows else tangent)
    slopes = _slopes_plain(ones, x, *rest[:-1], library=library, of=of, count=count)
    return _contracted(slopes, tangent) if of.rows else slopes * tangent


def _slopes_plain(cotangent: Array, x: Array, *rest: Array, library: Library, of: Any, count: int) -> Array:
    def kernel(cotangent: Array, x: Array, *rest: Array) -> Array:
        more = {"w": cotangent} | dict(zip(("top", "others"), rest[count:]))
        return _call(of, x, rest[:count], False, more)[0]

    def formula(cotangent: Array, x: Array, *rest: Array) -> Array:
        return _formula_slopes(library, of, cotangent, x, rest[:count])

    if not _runs(of, x, rest[:count], False):
        return formula(cotangent, x, *rest)
    return jax.lax.platform_dependent(cotangent, x, *rest, cpu=kernel, default=formula)


def _batched(operation: Operation, arrays: Sequence[Array], axes: Sequence[Any], **options: Any) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None)
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes)
    ]
    return operation.bind(*moved, **options), 0


def _differentiated(
    operation: Operation, linear: int, primals: Sequence[Any], tangents: Sequence[Any], **options: Any
) -> tuple[Array, Any]:
    """Linear in one operand; in the predictions and the floating arrays beside them the formula is differentiated."""
    count = options["count"]
    value = operation.bind(*primals, **options)
    parts = []
    if type(tangents[linear]) is not ad.Zero:
        operands = list(primals)
        operands[linear] = tangents[linear]
        parts.append(operation.bind(*operands, **options))
    first = 1 if linear == 0 else 0  # where the predictions are
    moving = [i for i in range(first, first + 1 + count) if type(tangents[i]) is not ad.Zero]
    if moving:

        def formula(*moved: Array) -> Array:
            operands = list(primals)
            for i, a in zip(moving, moved):
                operands[i] = a
            x, *others = operands[first : first + 1 + count]
            library, primitive = options["library"], options["of"]
            if linear == 0:
                return _formula_slopes(library, primitive, operands[0], x, others)
            tangent = operands[-1]
            ones = jnp.ones_like(tangent[..., 0] if primitive.rows else tangent)
            slopes = _formula_slopes(library, primitive, ones, x, others)
            return _contracted(slopes, tangent) if primitive.rows else slopes * tangent

        parts.append(jax.jvp(formula, [primals[i] for i in moving], [tangents[i] for i in moving])[1])
    return value, functools.reduce(jnp.add, parts) if parts else jnp.zeros_like(value)


def _along_transposed(cotangent: Any, x: Array, *rest: Any, **options: Any) -> list[Any]:
    slopes = None if type(cotangent) is ad.Zero else _slopes.bind(cotangent, x, *rest[:-1], **options)
    return [*[None] * len(rest), slopes]


def _slopes_transposed(cotangent: Any, tangent: Any, *rest: Any, **options: Any) -> list[Any]:
    along = None if type(cotangent) is ad.Zero else _along.bind(*rest, cotangent, **options)
    return [along, *[None] * len(rest)]


def _operation(name: str, plain: Callable[..., Array], linear: int, transposed: Callable[..., list[Any]]) -> Operation:
    operation = Operation(f"polyloss_{name}")
    operation.def_impl(jax.jit(plain, static_argnames=("library", "of", "count")))
    batching.primitive_batchers[operation] = functools.partial(_batched, operation)
    ad.primitive_jvps[operation] = functools.partial(_differentiated, operation, linear)
    ad.primitive_transposes[operation] = transposed
    mlir.register_lowering(operation, mlir.lower_fun(plain, multiple_results=False))
    return operation


_along = _operation("along", _along_plain, -1, _along_transposed)
_slopes = _operation("slopes", _slopes_plain, 0, _slopes_transposed)


@_along.def_abstract_eval  # type: ignore[untyped-decorator]
def _(x: Any, *rest: Any, of: Any, **options: Any) -> Any:
    return jax.core.ShapedArray(x.shape[:-1] if of.rows else x.shape, x.dtype)


@_slopes.def_abstract_eval  # type: ignore[untyped-decorator]
def _(cotangent: Any, x: Any, *rest: Any, **options: Any) -> Any:
    return jax.core.ShapedArray(x.shape, x.dtype)
