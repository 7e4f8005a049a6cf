"""Log losses, from probabilities: to evaluate. `classification` has the same losses from logits, to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polyloss.backends import Array, Gradients, Library, Residuals, Wanted
from polyloss.classification import class_targets
from polyloss.gradients import differentiable
from polyloss.inputs import Call, axis_of, number, to_last_axis
from polyloss.primitives import Formula, one_hot
from polyloss.reduction import Loss, Reduction

__all__ = ["binary_log_loss", "log_loss"]


@differentiable("probabilities", "targets")
def binary_log_loss(
    probabilities: Array,
    targets: Array,
    *,
    eps: float = 0.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Log loss of yes/no probabilities, for evaluation.

    Per element, with p the probability and t the target::

        l = -t log(p) - (1 - t) log(1 - p)

    Its mean over a data set is what is called the log loss. To train, use `sigmoid_cross_entropy` on logits: a
    probability that was rounded to 0 or 1 has lost what the loss needs.

    Parameters
    ----------
    probabilities : array, any shape
        Real floating, in [0, 1].
    targets : array, the shape of ``probabilities``
        Boolean, integer or floating, in [0, 1].
    eps : float, default 0
        Clips the probabilities to [eps, 1 - eps]; the gradient is 0 where it does.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``probabilities`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    0 log 0 is 0. Without ``eps`` the loss is inf at p = 0, and its slope the largest finite number. It is
    differentiable in ``probabilities`` and floating ``targets``.

    References
    ----------
    I. J. Good, "Rational decisions", J. R. Stat. Soc. B 14 (1952).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.binary_log_loss(np.array([0.9, 0.2]), np.array([1, 0])).round(6))
    0.164252
    """
    call = Call(probabilities=probabilities, targets=targets, weights=weights, where=where, denominator=denominator)
    (p,) = call.floating(probabilities=probabilities)
    t = call.same_shape("targets", call.real("targets", targets), "probabilities", p)
    primitive = BinaryLogLoss(number("eps", eps, 0, 0.5))
    reduce = Reduction(call, p, weights, where, reduction, denominator)

    def prepare(p: Array, t: Array) -> tuple[Array, Array]:
        return call.unit_interval("probabilities", reduce.clean(p)), call.unit_interval("targets", reduce.clean(t))

    return reduce.of(reduce.apply(primitive, p, t, prepare=prepare), _to_probabilities, target="targets")


@differentiable("probabilities", "targets")
def log_loss(
    probabilities: Array,
    targets: Array,
    *,
    axis: int = -1,
    eps: float = 0.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Log loss of class probabilities, for evaluation.

    Per row p of probabilities, with t the target row (one-hot for a label)::

        l = -sum_k t_k log(p_k)

    To train, use `softmax_cross_entropy` on logits.

    Parameters
    ----------
    probabilities : array
        Real floating, in [0, 1], the classes along ``axis``; each row sums to 1 (to 1e-3, or the dtype's resolution).
    targets : array
        Integer or boolean: class indices, the shape of ``probabilities`` without ``axis``. Floating: class
        probabilities in [0, 1], the shape of ``probabilities``.
    axis : int, default -1
        The class axis.
    eps : float, default 0
        Clips the probabilities to [eps, 1 - eps]; the gradient is 0 where it does.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``probabilities`` without ``axis`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    0 log 0 is 0. Without ``eps`` the loss is inf where a target has probability 0. It is differentiable in
    ``probabilities`` and floating ``targets``.

    References
    ----------
    I. J. Good, "Rational decisions", J. R. Stat. Soc. B 14 (1952).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.log_loss(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]), np.array([0, 1])).round(6))
    0.289909
    """
    call = Call(probabilities=probabilities, targets=targets, weights=weights, where=where, denominator=denominator)
    (p,) = call.floating(probabilities=probabilities)
    axis = axis_of(axis, p, "probabilities")
    primitive = RowLogLoss(number("eps", eps, 0, 0.5))
    reduce = Reduction(call, p, weights, where, reduction, denominator, axis=axis)
    t, prepare_targets = class_targets(call, targets, p, axis, reduce, None, "probabilities")
    tolerance = max(1e-3, call.resolution("probabilities"))

    def prepare(p: Array, t: Array) -> tuple[Array, Array]:
        t = prepare_targets(t)
        q = call.unit_interval("probabilities", reduce.clean(to_last_axis(call, p, axis), rows=True), axis)
        return _rows_of_sum_one(call, q, reduce, tolerance), t

    return reduce.of(reduce.apply(primitive, p, t, prepare=prepare, axis=axis), _to_probabilities, target="targets")


def _to_probabilities(gp: Array, gt: Array | None) -> dict[str, Array | None]:
    return {"probabilities": gp, "targets": gt}


def _rows_of_sum_one(call: Call, p: Array, reduce: Reduction, tolerance: float) -> Array:
    """``p``, whose rows must sum to 1; elsewhere than in host memory a row that does not becomes NaN."""
    xp = call.xp
    total = call.library.sum(p)
    off = xp.abs(total - 1) > tolerance
    if reduce.keep is not None:
        off = off & reduce.keep
    expected = "1 (binary_log_loss takes one probability per item)"
    one = call.valid("the sum of a row of probabilities", xp.ones_like(total), off, expected, given=total)
    return p * xp.expand_dims(one, axis=-1)  # NaN where looking is not possible


def _minus_log(library: Library, q: Array) -> Array:
    """-log q; at q = 0 it is inf, with the largest finite slope instead of -inf, so that 0 times it is 0."""
    xp = library.xp
    zero = q == 0
    return xp.where(zero, math.inf - _largest(library, q) * q, -xp.log(xp.where(zero, xp.ones_like(q), q)))


def _minus_log1m(library: Library, q: Array) -> Array:
    """-log(1 - q), likewise."""
    xp = library.xp
    one = q == 1
    return xp.where(one, math.inf + _largest(library, q) * (q - 1), -library.log1p(-xp.where(one, xp.zeros_like(q), q)))


def _clip(library: Library, p: Array, eps: float) -> Array:
    """P clipped to [eps, 1 - eps], with derivative 0 where it is."""
    if not eps:
        return p
    # A factor of 0, which unlike a selection lets a NaN derivative through.
    inside = library.xp.astype((p >= eps) & (p <= 1 - eps), p.dtype)
    return inside * p + (1 - inside) * library.xp.clip(p, eps, 1 - eps)


def _unless_clipped(library: Library, p: Array, eps: float, slope: Array) -> Array:
    """The slope, or 0 where p is clipped; NaN stays. (XLA makes a selection of a factor that is 0 or 1.)"""
    kept = (p >= eps) & (p <= 1 - eps) | (slope != slope)
    return library.xp.where(kept, slope, library.xp.zeros_like(slope))


def _largest(library: Library, x: Array) -> float:
    return float(library.xp.finfo(x.dtype).max)


@dataclass(frozen=True)
class BinaryLogLoss(Formula):
    """``-t log p - (1 - t) log(1 - p)`` per element, with p clipped to [eps, 1 - eps]; 0 log 0 = 0."""

    eps: float = 0.0

    def _seen(self, library: Library, p: Array, t: Array) -> tuple[Array, Array]:
        """The clipped p as the logarithm sees it, and as log1p sees it: harmless where it is multiplied by 0."""
        xp = library.xp
        q = _clip(library, p, self.eps)
        return (
            xp.where((t == 0) & (q == 0), xp.ones_like(q), q),
            xp.where((t == 1) & (q == 1), xp.zeros_like(q), q),
        )

    def differentiable(self, library: Library, p: Array, t: Array) -> Array:
        yes, no = self._seen(library, p, t)
        return t * _minus_log(library, yes) + (1 - t) * _minus_log1m(library, no)

    def vjp(
        self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, p: Array, t: Array
    ) -> Gradients:
        xp = library.xp
        yes, no = self._seen(library, p, t)
        gp = gt = None
        if wanted[0]:
            limit = xp.full_like(p, _largest(library, p))
            slope = xp.minimum((1 - t) / (1 - no), limit) - xp.minimum(t / xp.abs(yes), limit)  # -0.0 is 0
            gp = cotangent * _unless_clipped(library, p, self.eps, slope)
        if wanted[1]:
            gt = cotangent * (_minus_log(library, yes) - _minus_log1m(library, no))
        return gp, gt


@dataclass(frozen=True)
class RowLogLoss(Formula):
    """``-sum_k t_k log p_k`` per row, with p clipped to [eps, 1 - eps]; 0 log 0 = 0.

    Targets are class indices (an index out of range makes its item NaN) or rows of probabilities.
    """

    eps: float = 0.0

    rows = True

    def _seen(self, library: Library, p: Array, targets: Array) -> tuple[Array, Array]:
        """The target rows, and the clipped p as the logarithm sees it: harmless where it is multiplied by 0."""
        xp = library.xp
        t = targets if targets.ndim == p.ndim else one_hot(library, p, targets)
        q = _clip(library, p, self.eps)
        return t, xp.where((t == 0) & (q == 0), xp.ones_like(q), q)

    def differentiable(self, library: Library, p: Array, targets: Array) -> Array:
        t, q = self._seen(library, p, targets)
        return library.sum(t * _minus_log(library, q))

    def vjp(
        self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, p: Array, targets: Array
    ) -> Gradients:
        xp = library.xp
        cotangent = xp.expand_dims(cotangent, axis=-1)
        t, q = self._seen(library, p, targets)
        gp = gt = None
        if wanted[0]:
            slope = -xp.minimum(t / xp.abs(q), xp.full_like(p, _largest(library, p)))  # -0.0 is 0
            gp = cotangent * _unless_clipped(library, p, self.eps, slope)
        if wanted[1]:
            gt = cotangent * _minus_log(library, q)
        return gp, gt
