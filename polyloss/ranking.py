"""Losses that ask whether the relevant item scores higher than the irrelevant one."""

from __future__ import annotations

from dataclasses import dataclass

from polyloss.backends import Array, Gradients, Library, Residuals, Wanted
from polyloss.gradients import differentiable
from polyloss.inputs import Call, differ, number
from polyloss.primitives import Formula, SoftplusCrossEntropy
from polyloss.reduction import Loss, Reduction

__all__ = ["bpr", "pairwise_hinge"]


@differentiable("positive_scores", "negative_scores")
def pairwise_hinge(
    positive_scores: Array,
    negative_scores: Array,
    *,
    margin: float = 1.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Hinge loss of pairs: the positive should lead the negative by a margin.

    Per pair::

        l = max(0, margin - (s_positive - s_negative))

    It asks for the order of two scores alone. Pairs beyond the margin have no gradient, so the choice of negatives
    decides what is learned.

    Parameters
    ----------
    positive_scores : array, any shape
        Real floating scores of the relevant items.
    negative_scores : array
        Scores of the irrelevant items: the shape of ``positive_scores``, or one more trailing axis of M negatives each.
    margin : float, default 1
        The lead from which on the loss is 0.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``negative_scores`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    The derivative at the kink is 0. It is differentiable in both scores.

    References
    ----------
    R. Herbrich, T. Graepel, K. Obermayer, "Large margin rank boundaries for ordinal regression" (2000).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.pairwise_hinge(np.array([2.0, 0.5]), np.array([0.0, 0.0]), reduction="none"))
    [0.  0.5]
    """
    call = Call(
        positive_scores=positive_scores,
        negative_scores=negative_scores,
        weights=weights,
        where=where,
        denominator=denominator,
    )
    hinge = Hinge(number("margin", margin))
    pairs = _Pairs(call, positive_scores, negative_scores)
    reduce = Reduction(call, pairs.negative, weights, where, reduction, denominator)
    return reduce.of(reduce.apply(hinge, pairs.lead(reduce)), pairs.pull)


@differentiable("positive_scores", "negative_scores")
def bpr(
    positive_scores: Array,
    negative_scores: Array,
    *,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Bayesian personalised ranking: logistic loss of score differences.

    Per pair::

        l = softplus(-(s_positive - s_negative)) = -log sigmoid(s_positive - s_negative)

    A smooth relative of `pairwise_hinge`, for recommendation from implicit feedback.

    Parameters
    ----------
    positive_scores : array, any shape
        Real floating scores of the relevant items.
    negative_scores : array
        Scores of the irrelevant items: the shape of ``positive_scores``, or one more trailing axis of M negatives each.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``negative_scores`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    It is differentiable in both scores; the derivative in the positive one is ``-sigmoid(s_negative - s_positive)``.

    References
    ----------
    S. Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.bpr(np.array([1.0]), np.array([[0.0, 3.0]]), reduction="none").round(6))
    [[0.313262 2.126928]]
    """
    call = Call(
        positive_scores=positive_scores,
        negative_scores=negative_scores,
        weights=weights,
        where=where,
        denominator=denominator,
    )
    pairs = _Pairs(call, positive_scores, negative_scores)
    reduce = Reduction(call, pairs.negative, weights, where, reduction, denominator)
    return reduce.of(reduce.apply(SoftplusCrossEntropy(), pairs.lead(reduce)), pairs.pull)


class _Pairs:
    """Each positive against its negative, or against each of its M negatives on one more trailing axis."""

    def __init__(self, call: Call, positive_scores: Array, negative_scores: Array) -> None:
        self.call = call
        positive, negative = call.floating(positive_scores=positive_scores, negative_scores=negative_scores)
        self.many = negative.ndim == positive.ndim + 1
        expected = tuple(positive.shape)
        if differ(negative.shape[: positive.ndim], expected) or negative.ndim > positive.ndim + 1:
            raise ValueError(
                f"negative_scores must have the shape of positive_scores, {expected}, or one more trailing axis, "
                f"got {tuple(negative.shape)}"
            )
        positive = call.xp.expand_dims(positive, axis=-1) if self.many else positive
        self.positive = call.library.broadcast(positive, negative, None, ("positive_scores", "negative_scores"))
        self.negative = negative

    def lead(self, reduce: Reduction) -> Array:
        """By how much the positive leads, 0 for a masked pair."""
        return reduce.clean(self.positive) - reduce.clean(self.negative)

    def pull(self, gradient: Array, *_: None) -> dict[str, Array | None]:
        return {
            "positive_scores": self.call.library.sum(gradient) if self.many else gradient,
            "negative_scores": -gradient,
        }


@dataclass(frozen=True)
class Hinge(Formula):
    """``max(0, margin - x)`` per element; its derivative at the kink is 0."""

    margin: float = 1.0

    def differentiable(self, library: Library, x: Array) -> Array:
        short = self.margin - x
        return library.xp.where(short <= 0, library.xp.zeros_like(short), short)

    def vjp(self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, x: Array) -> Gradients:
        return (library.xp.where(self.margin - x <= 0, library.xp.zeros_like(x), -cotangent),)
