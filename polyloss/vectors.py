"""Lengths and directions of embeddings over their last axis, with their pullbacks."""

from __future__ import annotations

from collections.abc import Callable

from polyloss.backends import Array
from polyloss.inputs import Call

__all__ = ["has_features", "norm", "unit"]


def has_features(name: str, x: Array) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one feature on its last axis, got shape {tuple(x.shape)}")


def _scaled(call: Call, x: Array) -> tuple[Array, Array, Array, Array]:
    """``(zero, scale, y, root)``: over the last axis, ``x = scale y`` and ``||x|| = scale root``, but 0 where ``zero``.

    The scale is the largest component, or nearly, so that squares neither overflow nor vanish. It is a constant to
    autodiff, which changes no derivative; at a zero vector everything is constant, so that the derivative there is 0.
    """
    xp, library = call.xp, call.library
    reduced = xp.max if all(x.shape) else xp.sum  # no vectors, no maximum
    largest = library.stop_gradient(reduced(xp.abs(x), axis=-1, keepdims=True))
    one = xp.ones_like(largest)
    zero = largest == 0
    # Its reciprocal, by which a compiler may multiply, must not be a subnormal number.
    limit = float(xp.finfo(x.dtype).max) ** 0.75
    scale = xp.where(zero, one, xp.minimum(largest, xp.full_like(largest, limit)))
    y = x / scale
    root = xp.sqrt(xp.where(zero, one, xp.expand_dims(library.sum(y * y), axis=-1)))
    return zero, scale, y, root


def norm(call: Call, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The Euclidean norm over the last axis, and its pullback, which is 0 at 0."""
    zero, scale, y, root = _scaled(call, x)
    length = call.xp.where(zero, call.xp.zeros_like(root), scale * root)
    return length[..., 0], lambda gradient: call.xp.expand_dims(gradient, axis=-1) * (y / root)


def unit(call: Call, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """``x / ||x||`` over the last axis, and its pullback; both 0 at a zero vector."""
    xp = call.xp
    zero, scale, y, root = _scaled(call, x)
    direction = xp.where(zero, xp.zeros_like(y), y / root)

    def pull(g: Array) -> Array:
        along = xp.expand_dims(call.library.sum(g * direction), axis=-1)
        return xp.where(zero, xp.zeros_like(g), (g - along * direction) / root / scale)

    return direction, pull
