"""Logits to probabilities, and the two functions that the losses are made of.

Accurate in value and in derivative: each entry is formed from the side on which nothing cancels (`primitives.row`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec

from polyloss import dispatch
from polyloss.backends import Array
from polyloss.inputs import Call, axis_of, last_axis_to, to_last_axis
from polyloss.primitives import Row, SoftplusCrossEntropy, minus_abs, row

__all__ = ["log_sigmoid", "log_softmax", "logsumexp", "sigmoid", "softmax", "softplus"]

P = ParamSpec("P")


def _quietly(transform: Callable[P, Array]) -> Callable[P, Array]:
    """Runs a transform in its library's scope, as a loss does."""

    @functools.wraps(transform)
    def run(*args: P.args, **kwargs: P.kwargs) -> Array:
        with dispatch.scope(*args, *kwargs.values()):
            return transform(*args, **kwargs)

    return run


@_quietly
def sigmoid(x: Array) -> Array:
    call = Call(x=x)
    (v,) = call.floating(x=x)
    e = call.xp.exp(minus_abs(call.library, v))
    return call.result("x", call.xp.where(v >= 0, 1 / (1 + e), e / (1 + e)))


@_quietly
def log_sigmoid(x: Array) -> Array:
    call = Call(x=x)
    (v,) = call.floating(x=x)
    return call.result("x", -call.apply(SoftplusCrossEntropy(), v).value())


@_quietly
def softplus(x: Array) -> Array:
    call = Call(x=x)
    (v,) = call.floating(x=x)
    return call.result("x", call.apply(SoftplusCrossEntropy(), -v).value())


@_quietly
def softmax(x: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    call = Call(x=x, where=where)
    through, around, axis = _rows(call, x, axis, where)
    p = call.xp.where(through.is_top, 1 / (1 + through.others), around.exps / (1 + around.others))
    return call.result("x", last_axis_to(call, p, axis))


@_quietly
def log_softmax(x: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    call = Call(x=x, where=where)
    through, around, axis = _rows(call, x, axis, where)
    xp = call.xp
    log_p = xp.where(through.is_top, -xp.log1p(through.others), -around.gap - xp.log1p(around.others))
    return call.result("x", last_axis_to(call, log_p, axis))


@_quietly
def logsumexp(x: Array, *, axis: int = -1, keepdims: bool = False, where: Array | None = None) -> Array:
    call = Call(x=x, where=where)
    through, around, axis = _rows(call, x, axis, where)
    xp = call.xp
    top = xp.where(through.top == math.inf, through.top, around.top)
    lse = top + xp.log1p(around.others)
    lse = xp.where(through.top == -math.inf, xp.full_like(lse, -math.inf), lse)
    lse = last_axis_to(call, lse, axis) if keepdims else lse[..., 0]
    return call.result("x", lse)


def _rows(call: Call, x: Array, axis: int, where: Array | None) -> tuple[Row, Row, int]:
    """The rows twice, with their derivative at the top from either side; see `primitives.row`."""
    (v,) = call.floating(x=x)
    axis = axis_of(axis, v, "x")
    v = to_last_axis(call, v, axis)
    if where is not None:
        keep = call.boolean("where", where)
        keep = to_last_axis(call, call.trailing("where", keep, tuple(x.shape), "x"), axis)
        v = call.xp.where(keep, v, call.xp.full_like(v, -math.inf))
    return row(call.library, v), row(call.library, v, constant_top=True), axis
