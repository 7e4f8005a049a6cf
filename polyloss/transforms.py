"""Logits to probabilities, and the two functions that the losses are made of.

Accurate in value and in derivative: each entry is formed from the side on which nothing cancels (`primitives.row`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

from polyloss import dispatch
from polyloss.backends import Array
from polyloss.docstrings import complete
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

    return complete(run)


@_quietly
def sigmoid(x: Array) -> Array:
    """The logistic function, ``1 / (1 + exp(-x))``: a logit to a probability.

    Parameters
    ----------
    x : array, any shape
        Real floating.

    Returns
    -------
    array
        The shape and dtype of ``x``.

    Raises
    ------
    {raises}

    Notes
    -----
    No digit is lost, and nothing overflows, at either end.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.sigmoid(np.array([-100.0, 0.0, 2.0])))
    [3.72007598e-44 5.00000000e-01 8.80797078e-01]
    """
    call = Call(x=x)
    (v,) = call.as_given(x=x)
    if (fast := dispatch.transform("sigmoid", call.library, v)) is not None:
        return call.result("x", fast)
    v = call.cast(v)
    e = call.xp.exp(minus_abs(call.library, v))
    return call.result("x", call.xp.where(v >= 0, 1 / (1 + e), e / (1 + e)))


@_quietly
def log_sigmoid(x: Array) -> Array:
    """The logarithm of the logistic function, ``-softplus(-x)``.

    Parameters
    ----------
    x : array, any shape
        Real floating.

    Returns
    -------
    array
        The shape and dtype of ``x``.

    Raises
    ------
    {raises}

    Notes
    -----
    Computed as a whole, so that it keeps its digits where the sigmoid rounds to 0 or 1.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.log_sigmoid(np.array([-1000.0, 0.0, 40.0])))
    [-1.00000000e+03 -6.93147181e-01 -4.24835426e-18]
    """
    call = Call(x=x)
    (v,) = call.as_given(x=x)
    if (fast := dispatch.transform("log_sigmoid", call.library, v)) is not None:
        return call.result("x", fast)
    return call.result("x", -_softplus_of_minus(call, call.cast(v)))


@_quietly
def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, a smooth ``max(0, x)``.

    Parameters
    ----------
    x : array, any shape
        Real floating.

    Returns
    -------
    array
        The shape and dtype of ``x``.

    Raises
    ------
    {raises}

    References
    ----------
    M. Maechler, "Accurately computing log(1 - exp(-|a|))" (2012).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.softplus(np.array([-40.0, 0.0, 1000.0])))
    [4.24835426e-18 6.93147181e-01 1.00000000e+03]
    """
    call = Call(x=x)
    (v,) = call.as_given(x=x)
    if (fast := dispatch.transform("softplus", call.library, v)) is not None:
        return call.result("x", fast)
    return call.result("x", _softplus_of_minus(call, -call.cast(v)))


def _softplus_of_minus(call: Call, v: Array) -> Array:
    primitive: Any = SoftplusCrossEntropy()
    return call.library.apply(primitive, v)


@_quietly
def softmax(x: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis: logits to class probabilities.

    Parameters
    ----------
    x : array
        Real floating.
    axis : int, default -1
        The class axis.
    where : boolean array, optional
        Broadcasts to ``x``. An entry that is False is left out, and its probability is 0.

    Returns
    -------
    array
        The shape and dtype of ``x``.

    Raises
    ------
    {raises}

    Notes
    -----
    The largest logit is subtracted first, so nothing overflows. One logit of +inf takes its limit; two, or a row with
    nothing finite or nothing kept, are NaN.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41 (2021).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.softmax(np.array([2.0, 0.0, 1000.0]), where=np.array([True, True, False])))
    [0.88079708 0.11920292 0.        ]
    """
    call = Call(x=x, where=where)
    v, axis = _logits(call, x, axis, where)
    if where is None and (fast := dispatch.transform("softmax", call.library, v)) is not None:
        return call.result("x", last_axis_to(call, fast, axis))
    v = call.cast(v)
    through, around = _both_ways(call, v)
    p = call.xp.where(through.is_top, 1 / (1 + through.others), around.exps / (1 + around.others))
    return call.result("x", last_axis_to(call, p, axis))


@_quietly
def log_softmax(x: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """``x - logsumexp(x)`` along an axis: the logarithm of `softmax`, with all its digits.

    Parameters
    ----------
    x : array
        Real floating.
    axis : int, default -1
        The class axis.
    where : boolean array, optional
        Broadcasts to ``x``. An entry that is False is left out, and its log-probability is -inf.

    Returns
    -------
    array
        The shape and dtype of ``x``.

    Raises
    ------
    {raises}

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.log_softmax(np.array([0.0, 40.0])))
    [-4.00000000e+01 -4.24835426e-18]
    """
    call = Call(x=x, where=where)
    v, axis = _logits(call, x, axis, where)
    if where is None and (fast := dispatch.transform("log_softmax", call.library, v)) is not None:
        return call.result("x", last_axis_to(call, fast, axis))
    v = call.cast(v)
    through, around = _both_ways(call, v)
    xp = call.xp
    beyond = through.is_top | (through.top == math.inf)
    log_p = xp.where(beyond, -through.gap - xp.log1p(through.others), -around.gap - xp.log1p(around.others))
    if where is not None:
        log_p = xp.where(v == -math.inf, xp.full_like(log_p, -math.inf), log_p)
    return call.result("x", last_axis_to(call, log_p, axis))


@_quietly
def logsumexp(x: Array, *, axis: int = -1, keepdims: bool = False, where: Array | None = None) -> Array:
    """``log(sum(exp(x)))`` along an axis, a smooth maximum.

    Parameters
    ----------
    x : array
        Real floating.
    axis : int, default -1
        The axis that is summed.
    keepdims : bool, default False
        Whether that axis stays, with size 1.
    where : boolean array, optional
        Broadcasts to ``x``. An entry that is False is left out.

    Returns
    -------
    array
        The shape of ``x`` without ``axis``, in its dtype.

    Raises
    ------
    {raises}

    Notes
    -----
    It is -inf, with gradient 0, where nothing is kept or all is -inf.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41 (2021).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.logsumexp(np.array([1000.0, 1000.0])).round(6))
    1000.693147
    """
    call = Call(x=x, where=where)
    v, axis = _logits(call, x, axis, where, fewest=0)
    if where is None and (fast := dispatch.transform("logsumexp", call.library, v)) is not None:
        return call.result("x", call.xp.expand_dims(fast, axis=axis) if keepdims else fast)
    v, xp = call.cast(v), call.xp
    empty = xp.all(v == -math.inf, axis=-1, keepdims=True)
    v = xp.where(empty, xp.zeros_like(v), v)  # the result alone would be too late for the derivative
    if v.shape[-1]:
        through, around = _both_ways(call, v)
        lse = xp.where(through.top == math.inf, through.top, around.top + xp.log1p(around.others))
    else:
        lse = xp.zeros_like(empty, dtype=v.dtype)
    lse = xp.where(empty, xp.full_like(lse, -math.inf), lse)
    lse = last_axis_to(call, lse, axis) if keepdims else lse[..., 0]
    return call.result("x", lse)


def _logits(call: Call, x: Array, axis: int, where: Array | None, fewest: int = 1) -> tuple[Array, int]:
    """The rows on the last axis, -inf where nothing is kept, and the axis where they were."""
    (v,) = call.as_given(x=x)
    axis, given = axis_of(axis, v, "x", fewest), v
    v = to_last_axis(call, v, axis)
    if where is not None:
        keep = call.trailing("where", call.boolean("where", where), given, "x")
        v = call.xp.where(to_last_axis(call, keep, axis), v, call.xp.full_like(v, -math.inf))
    return v, axis


def _both_ways(call: Call, v: Array) -> tuple[Row, Row]:
    """The rows twice, with their derivative at the top from either side; see `primitives.row`."""
    return row(call.library, v), row(call.library, v, constant_top=True)
