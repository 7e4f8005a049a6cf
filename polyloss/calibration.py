"""Metrics of probabilities: how far they are from what comes true. `metrics` has those of decisions and orders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyloss.backends import Array
from polyloss.inputs import Call, choice, integer
from polyloss.primitives import one_hot
from polyloss.reduction import Reduction
from polyloss.samples import class_labels, metric, ratio

__all__ = ["Bins", "brier", "calibration_error"]

STRATEGIES = ("uniform", "quantile")


@metric
def brier(probabilities: Array, targets: Array, *, weights: Array | None = None, where: Array | None = None) -> Array:
    """The Brier score: the mean squared error of probabilities.

    Per item, with p the probability and t the target::

        (p - t)^2,   or for classes   sum_k (p_k - t_k)^2,   half of it for two

    Parameters
    ----------
    probabilities : array
        Real floating, in [0, 1]: one yes/no probability per item, or with one more axis than ``targets``, the classes.
    targets : array
        In the shape of ``probabilities``: in [0, 1], of any real dtype, and each element is an item. With one axis
        less: class indices, integer or boolean.
    {weigh}

    Returns
    -------
    array
        0-d; NaN where there is nothing to average.

    Raises
    ------
    {raises}

    Notes
    -----
    As in scikit-learn (``scale_by_half="auto"``), two classes give the number of the yes/no question between them, in
    [0, 1]. More have the range [0, 2] of Brier's sum, which is twice as wide for two: there multiply by 2.

    References
    ----------
    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.brier(np.array([0.9, 0.2]), np.array([1, 0])).round(6))
    0.025
    """
    call = Call(probabilities=probabilities, targets=targets, weights=weights, where=where)
    (p,) = call.floating(probabilities=probabilities)
    if p.ndim == call.array_and_kind("targets", targets)[0].ndim + 1:
        reduce = Reduction(call, p, weights, where, "mean", None, axis=p.ndim - 1)
        y, _ = class_labels(call, "targets", targets, p, "probabilities", reduce)
        q = call.unit_interval("probabilities", reduce.clean(p, rows=True), p.ndim - 1)
        total = call.library.sum((q - one_hot(call.library, q, y)) ** 2)
        return reduce.value(total / 2 if q.shape[-1] < 3 else total)
    reduce = Reduction(call, p, weights, where, "mean", None)
    t = reduce.clean(call.same_shape("targets", call.real("targets", targets), "probabilities", p))
    q = call.unit_interval("probabilities", reduce.clean(p))
    return reduce.value((q - call.unit_interval("targets", t)) ** 2)


@metric
def calibration_error(
    probabilities: Array,
    targets: Array,
    *,
    bins: int = 15,
    strategy: str = "uniform",
    weights: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The expected calibration error: how far probabilities are from how often they come true.

    Over bins b of items with similar probabilities p, with weights w::

        sum_b |sum_b w (p - t)| / sum w

    Parameters
    ----------
    probabilities : array
        Real floating, in [0, 1]: one yes/no probability per item; or with one more axis than ``targets``, the classes,
        and then the largest probability is asked whether its class is right.
    targets : array
        In the shape of ``probabilities``: in [0, 1], of any real dtype. With one axis less: class indices, integer or
        boolean.
    bins : int, default 15
        How many.
    strategy : {"uniform", "quantile"}, default "uniform"
        ``"uniform"``: bins of equal width; ``"quantile"``: of equal numbers of items, which a few crowded bins do not
        dominate.
    {weigh}

    Returns
    -------
    array
        0-d; NaN where there is nothing to average.

    Raises
    ------
    {raises}

    Notes
    -----
    The bins are those of scikit-learn's `calibration_curve`, with edges in the dtype of the probabilities.

    It grows with the number of bins and shrinks with that of the items, also for a perfect model: compare it at the
    same numbers. `polyloss.diagnostics.reliability_curve` shows the bins with their confidence intervals.

    References
    ----------
    M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI
    2015; C. Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.calibration_error(np.array([0.9, 0.9, 0.2, 0.2]), np.array([1, 0, 0, 0])).round(6))
    0.3
    """
    call = Call(probabilities=probabilities, targets=targets, weights=weights, where=where)
    found = Bins.of(call, probabilities, targets, bins, strategy, weights, where)
    gap = call.xp.sum(call.xp.abs(found.probability - found.outcome))
    return call.library.result(call.xp.astype(ratio(call, gap, call.xp.sum(found.weight)), call.dtype))


@dataclass(frozen=True)
class Bins:
    """Sums over the items of each bin."""

    weight: Array
    squares: Array
    """Of the weights."""
    probability: Array
    outcome: Array

    @classmethod
    def of(
        cls, call: Call, probabilities: Any, targets: Any, bins: int, strategy: str, weights: Any, where: Any
    ) -> Bins:
        """The items of one call, in ``bins`` bins of equal width or of equal numbers of items."""
        choice("strategy", strategy, STRATEGIES)
        if integer("bins", bins) < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        xp = call.xp
        p, t, reduce = _outcomes(call, probabilities, targets, weights, where)
        keep = reduce.clean(xp.ones_like(p, dtype=xp.bool))
        w = keep
        if reduce.weights is not None:
            w = reduce.clean(reduce.weights)
            w = call.valid("weights", w, w < 0, "at least 0")
        p, t, w, keep = (x if x.ndim == 1 else xp.reshape(x, (-1,)) for x in (p, t, w, keep))
        if strategy == "uniform":
            edges = call.rounded("probabilities", np.linspace(0, 1, bins + 1)[1:-1])
        else:
            edges = _quantiles(call, p, None if reduce.keep is None else keep, bins)
        place = xp.searchsorted(edges, p, side="left")  # an edge belongs to the bin below
        p, t, w = (xp.astype(x, call.library.wide_dtype(x), copy=False) for x in (p, t, w))
        rows = [w, p, t] if reduce.weights is None else [w, w * p, w * t, w * w]  # p and t of masked items are 0
        weight, probability, outcome, *squares = call.library.sums_of_groups(rows, place, bins)
        return cls(weight, squares[0] if squares else weight, probability, outcome)


def _outcomes(call: Call, probabilities: Any, targets: Any, weights: Any, where: Any) -> tuple[Array, Array, Reduction]:
    """A probability per item and whether it came true: for classes, that of the likeliest one."""
    (p,) = call.floating(probabilities=probabilities)
    if p.ndim == call.array_and_kind("targets", targets)[0].ndim + 1:
        reduce = Reduction(call, p, weights, where, "mean", None, axis=p.ndim - 1)
        y, invalid = class_labels(call, "targets", targets, p, "probabilities", reduce)
        p = call.unit_interval("probabilities", reduce.clean(p, rows=True), p.ndim - 1)
        t = reduce.clean(call.cast(call.signed(call.xp.argmax(p, axis=-1)) == y))
        return call.xp.max(p, axis=-1), call.xp.where(invalid, call.xp.full_like(t, math.nan), t), reduce
    reduce = Reduction(call, p, weights, where, "mean", None)
    t = reduce.clean(call.same_shape("targets", call.real("targets", targets), "probabilities", p))
    return call.unit_interval("probabilities", reduce.clean(p)), call.unit_interval("targets", t), reduce


def _quantiles(call: Call, p: Array, keep: Array | None, bins: int) -> Array:
    """The edges between bins of equal numbers of items, interpolated linearly as by `numpy.percentile`."""
    if call.library.lazy:
        raise TypeError(
            f"strategy='quantile' must sort the probabilities, and {call.library.name} has no lazy sort: compute them "
            "first, or take strategy='uniform'"
        )
    xp, n, wide, index = call.xp, p.shape[0], call.library.wide_dtype(p), call.library.index_dtype()
    if n == 0:
        return p
    ordered = xp.sort(p if keep is None else xp.where(keep, p, xp.full_like(p, math.inf)), stable=False)
    share = np.linspace(0, 1, bins + 1)[1:-1] * 100 / 100
    if keep is None:  # in float64 whatever the library
        low, part = np.divmod(share * (n - 1), 1)
        low, part = call.asarray(low.astype(np.int64), index), call.asarray(part, wide)
    else:
        at = call.asarray(share, wide) * (xp.sum(xp.astype(keep, wide)) - 1)
        low, part = xp.astype(xp.floor(at), index), at - xp.floor(at)
    a, b = (xp.astype(xp.take(ordered, xp.clip(i, 0, n - 1), axis=0), wide) for i in (low, low + 1))
    between = xp.where(part >= 0.5, b - (b - a) * (1 - part), a + (b - a) * part)
    return xp.astype(xp.where(part == 0, a, between), p.dtype)
