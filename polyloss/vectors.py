"""Lengths and directions of embeddings over their last axis, with their pullbacks."""

from __future__ import annotations

import math
from collections.abc import Callable

from polyloss.backends import Array
from polyloss.inputs import Call

__all__ = ["has_features", "norm", "unit"]


def has_features(name: str, x: Array) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one feature on its last axis, got shape {tuple(x.shape)}")


def _largest(call: Call, x: Array) -> Array:
    """The largest component of each vector, a constant to autodiff."""
    reduced = call.xp.max if all(x.shape) else call.xp.sum  # no vectors, no maximum
    return call.library.stop_gradient(reduced(call.xp.abs(x), axis=-1, keepdims=True))


def _scaled(call: Call, x: Array, largest: Array) -> tuple[Array, Array, Array, Array]:
    """``(zero, scale, y, root)``: over the last axis, ``x = scale y`` and ``||x|| = scale root``, but 0 where ``zero``.

    The scale is the largest component, or nearly, so that squares neither overflow nor vanish. It is a constant to
    autodiff, which changes no derivative; at a zero vector everything is constant, so that the derivative there is 0.
    """
    xp, library = call.xp, call.library
    info = xp.finfo(x.dtype)
    # Neither the scale nor its reciprocal, by which a compiler may multiply, may be subnormal: some platforms take such
    # a number for 0. Then so are all components, and the vector is zero by its squares as well.
    smallest, limit = float(info.smallest_normal), float(info.max) ** 0.75
    scale = xp.minimum(xp.maximum(largest, xp.full_like(largest, smallest)), xp.full_like(largest, limit))
    scale = xp.where(largest == 0, xp.ones_like(largest), scale)
    y = x / scale
    squares = xp.expand_dims(library.sum(y * y), axis=-1)
    zero = squares == 0
    return zero, scale, y, xp.sqrt(xp.where(zero, xp.ones_like(squares), squares))


def norm(call: Call, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The Euclidean norm over the last axis, and its pullback, which is 0 at 0 and at infinity."""
    xp, library = call.xp, call.library
    largest = _largest(call, x)
    beyond, nothing = largest == math.inf, xp.zeros_like(largest)  # an infinite vector has a length, and no direction
    zero, scale, y, root = _scaled(call, xp.where(beyond, nothing, x), xp.where(beyond, nothing, largest))
    length = xp.where(zero, xp.where(beyond, largest, nothing), scale * root)[..., 0]
    if library.differentiates(x) or library.memory(x) is None:  # or traced, so that it may be
        # Autodiff multiplies the gradient, which may be as small as the norm, by the scale. Where that would vanish,
        # the direction is a constant; its own derivative is beyond all numbers there.
        direction = library.stop_gradient(xp.where(zero, xp.zeros_like(y), y / root))
        vanishing = scale < 16 * math.sqrt(float(xp.finfo(x.dtype).smallest_normal))
        straight = library.sum(xp.where(vanishing, direction * x, xp.zeros_like(x)))
        length = xp.where(vanishing[..., 0], straight, length)

    def pull(gradient: Array) -> Array:
        g = xp.expand_dims(gradient, axis=-1)
        return xp.where(beyond, nothing, g) * (y / root)

    return length, pull


def unit(call: Call, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """``x / ||x||`` over the last axis, and its pullback; both 0 at a zero vector."""
    xp = call.xp
    zero, scale, y, root = _scaled(call, x, _largest(call, x))
    direction = xp.where(zero, xp.zeros_like(y), y / root)

    def pull(g: Array) -> Array:
        along = xp.expand_dims(call.library.sum(g * direction), axis=-1)
        return xp.where(zero, xp.zeros_like(g), (g - along * direction) / root / scale)

    return direction, pull
