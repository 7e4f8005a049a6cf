"""Cross-entropy with labels in the form that XLA makes fast loops of, for where it may not call the kernels.

On the CPU XLA hands a sum to a library of fast loops, unless its terms come from a comparison or a selection. So
what the sum of the others leaves out is multiplied by 0 here. The numbers are those of `LseCrossEntropy`; derivatives
of the gradient are its formula's.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from polyloss import dispatch
from polyloss.backends import Array, Library, Primitive

__all__ = ["items", "items_and_slopes", "take"]

_barrier = jax.lax.optimization_barrier


def take(primitive: Primitive, x: Array, *others: Array | None) -> bool:
    """Whether these arrays, which may be traced, are a case of this form: labels, and nothing beside them."""
    return (
        not dispatch.is_generic()
        and jax.default_backend() == "cpu"
        and type(primitive).__name__ == "LseCrossEntropy"
        and not (primitive.label_smoothing or primitive.z_loss)  # type: ignore[attr-defined]
        and others[0] is not None
        and others[0].ndim == x.ndim - 1
        and not any(a is not None for a in others[1:])
        and x.dtype.name in ("float32", "float64")
        and isinstance(x.shape[-1], int)
        and 0 < x.shape[-1] < 2**24  # a sum of ones is exact
    )


def _others(x: Array, top: Array) -> Array:
    """The sum of the exponentials without the top; see `polyloss.primitives.Row`."""
    kind = x.dtype.type
    limits = jnp.finfo(x.dtype)
    count = x.shape[-1]
    infinite = top == math.inf
    # Without the barriers, XLA writes a constant that two loops share to memory, once for each logit.
    first, one, large = _barrier((top, kind(1), kind(1 / limits.tiny)))
    gaps = first[..., None] - x
    below = jnp.sum(jnp.exp(-gaps) * jnp.minimum(gaps * large, one), axis=-1)
    # One loop for both sums would be slow again, so the second one waits for the first. A gap that is not 0 counts as
    # 1, below the smallest normal number as less. Of an infinite top it counts the infinite logits, as -1/tiny each.
    second = jnp.where(infinite, limits.max, jnp.where(below != below, below, top))
    below, second, one, large = _barrier((below, second, kind(1), kind(1 / limits.tiny)))
    apart = jnp.sum(jnp.minimum(jnp.maximum(second[..., None] - x, kind(-1)) * large, one), axis=-1)
    below, apart = _barrier((below, apart))
    several = jnp.where(apart < -1.5 / limits.tiny, math.nan, kind(0))
    return jnp.where(infinite, several, below + (count - 1 - apart))


def _compute(x: Array, labels: Array) -> tuple[Array, Array]:
    """The items and their slopes."""
    top = jnp.max(x, axis=-1)
    others = jnp.where((labels < 0) | (labels >= x.shape[-1]), math.nan, _others(x, top))
    label = labels.astype(jnp.int32)[..., None]
    chosen = jnp.take_along_axis(x, label, axis=-1, mode="clip")[..., 0]
    gap = jnp.where(chosen == top, 0, top - chosen)
    share = 1 / (1 + others)
    at_label = jnp.where(gap == 0, -others * share, jnp.exp(-gap) * share - 1)
    top, share, at_label = (a[..., None] for a in _barrier((top, share, at_label)))
    slopes = jnp.where(x == top, share, jnp.exp(x - top) * share)
    slopes = jnp.where(jnp.arange(x.shape[-1], dtype=jnp.int32) == label, at_label, slopes)
    return gap + jnp.log1p(others), slopes


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _both(library: Library, primitive: Any, x: Array, labels: Array) -> tuple[Array, Array]:
    return _compute(x, labels)


@_both.defjvp  # type: ignore[untyped-decorator]
def _(library: Library, primitive: Any, primals: Any, tangents: Any) -> Any:
    x, labels = primals
    both = _both(library, primitive, x, labels)

    def formula(x: Array) -> Array:
        slopes: Array = primitive.vjp(library, jnp.ones_like(both[0]), (True, False), None, x, labels)[0]
        return slopes

    return both, (jnp.sum(both[1] * tangents[0], axis=-1), jax.jvp(formula, (x,), tangents[:1])[1])


def items(library: Library, primitive: Primitive, x: Array, labels: Array, *none: None) -> Array:
    """The items; differentiable as often as one likes."""
    return _both(library, primitive, x, labels)[0]


def items_and_slopes(
    library: Library, primitive: Primitive, cotangent: Array, x: Array, labels: Array, *none: None
) -> tuple[Array, Array]:
    """The items, and the gradient of ``sum(cotangent * items)`` in the logits, likewise."""
    value, slopes = _both(library, primitive, x, labels)
    return value, cotangent[..., None] * slopes
