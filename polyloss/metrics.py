"""Metrics of a decision and of an order, from scores. `calibration` has those of probabilities.

None is differentiable, and none transforms scores by itself: where a threshold is needed it is asked for.
"""

from __future__ import annotations

from polyloss.backends import Array
from polyloss.inputs import Call, choice, integer, number
from polyloss.reduction import Reduction
from polyloss.samples import Ranking, Sample, accumulated, class_labels, indices, mean, metric, ratio, read

__all__ = [
    "accuracy",
    "average_precision",
    "f1",
    "ndcg",
    "roc_auc",
    "top_k_accuracy",
]

AVERAGES = ("binary", "micro", "macro", "weighted", "none")

# Of a decision.


@metric
def accuracy(predictions: Array, labels: Array, *, weights: Array | None = None, where: Array | None = None) -> Array:
    """The share of items whose predicted class is right.

    Parameters
    ----------
    predictions : array
        Class indices, integer or boolean, in the shape of ``labels``; or scores of any real dtype with one more axis,
        the classes. The largest score decides, and the first of equal ones.
    labels : array
        Class indices, integer or boolean.
    {weigh}

    Returns
    -------
    array
        0-d; NaN where there is nothing to average, or a NaN among the scores.

    Raises
    ------
    {raises}

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.accuracy(np.array([[0.1, 2.0], [3.0, 0.5], [0.2, 0.3]]), np.array([1, 0, 0])).round(6))
    0.666667
    """
    call = Call(predictions=predictions, labels=labels, weights=weights, where=where)
    x, undefined = read(call, "predictions", predictions)
    y = call.array_and_kind("labels", labels)[0]
    if x.ndim == y.ndim + 1:
        reduce = Reduction(call, x, weights, where, "mean", None, axis=x.ndim - 1)
        y, invalid = class_labels(call, "labels", labels, x, "predictions", reduce)
        if undefined is not None:
            invalid = invalid | call.xp.any(undefined, axis=-1)
        return mean(call, call.signed(call.xp.argmax(x, axis=-1)) == y, invalid, reduce)
    if x.ndim != y.ndim:
        raise ValueError(
            f"predictions must have the shape of labels, {tuple(y.shape)}, or one more axis, the classes, "
            f"got {tuple(x.shape)}"
        )
    if undefined is not None:
        raise TypeError(
            f"predictions of the shape of labels are class indices and must be integer or boolean, got {x.dtype}; "
            "compare yes/no scores with a threshold first"
        )
    y = call.same_shape("labels", indices(call, "labels", labels), "predictions", x)
    return mean(call, call.signed(x) == y, None, Reduction(call, x, weights, where, "mean", None))


@metric
def top_k_accuracy(
    scores: Array, labels: Array, k: int, *, weights: Array | None = None, where: Array | None = None
) -> Array:
    """The share of items whose label is among the k classes with the highest scores.

    Parameters
    ----------
    scores : array [..., K]
        Scores of the classes, of any real dtype.
    labels : array [...]
        Class indices, integer or boolean.
    k : int
        At least 1.
    {weigh}

    Returns
    -------
    array
        0-d; NaN where there is nothing to average, or a NaN among the scores.

    Raises
    ------
    {raises}

    Notes
    -----
    Of equal scores the higher class index comes first, as in scikit-learn; in `accuracy` the lower, as in argmax.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.top_k_accuracy(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1, 2]), 2))
    0.5
    """
    call = Call(scores=scores, labels=labels, weights=weights, where=where)
    x, undefined = read(call, "scores", scores)
    reduce = Reduction(call, x, weights, where, "mean", None, axis=x.ndim - 1)
    y, invalid = class_labels(call, "labels", labels, x, "scores", reduce)
    if integer("k", k) < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    xp, label = call.xp, call.xp.expand_dims(y, axis=-1)
    index = call.library.positions(x)
    own = xp.sum(xp.where(index == label, x, xp.zeros_like(x)), axis=-1, keepdims=True)
    ahead = (x > own) | ((x == own) & (index > label))
    right = xp.sum(xp.astype(ahead, call.library.index_dtype()), axis=-1) < k
    if undefined is not None:
        invalid = invalid | xp.any(undefined, axis=-1)
    return mean(call, right, invalid, reduce)


@metric
def f1(
    scores: Array,
    targets: Array,
    *,
    threshold: float,
    average: str = "binary",
    weights: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The harmonic mean of precision and recall of yes/no decisions.

    With tp, fp and fn the weights of true positives, false positives and false negatives::

        f1 = 2 tp / (2 tp + fp + fn)

    Parameters
    ----------
    scores : array
        Scores, probabilities or decisions, of any real dtype. Above the threshold they say yes.
    targets : array, the shape of ``scores``
        0 or 1, of any real dtype.
    threshold : float
        Required, because 0 is right for logits and 0.5 for probabilities. It is compared in the dtype of the scores.
    average : {"binary", "micro", "macro", "weighted", "none"}, default "binary"
        ``"binary"`` and ``"micro"``: all elements are one set. The others take the last axis as labels: ``"none"``
        gives the f1 of each, ``"macro"`` their mean, ``"weighted"`` their mean by the weight of the positives.
    {weigh}

    Returns
    -------
    array
        0-d; [K] with ``"none"``. NaN where there is no positive, neither true nor predicted, which a mean
        leaves out; and where a score is NaN.

    Raises
    ------
    {raises}

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.f1(np.array([2.0, -1.0, 0.5, -3.0]), np.array([1, 1, 0, 0]), threshold=0.0))
    0.5
    """
    call = Call(scores=scores, targets=targets, weights=weights, where=where)
    sample = Sample(call, "scores", scores, weights, where)
    yes = sample.binary(targets)
    number("threshold", threshold)  # an integer stays as it is: a float may not hold it
    per_label = choice("average", average, AVERAGES) not in ("binary", "micro")
    if per_label and sample.x.ndim == 0:
        raise ValueError(f"scores must have labels on the last axis for average={average!r}, got shape ()")
    xp, said = call.xp, sample.above(threshold)
    axes = tuple(range(sample.x.ndim - 1)) if per_label else None
    both, true, claimed = (xp.sum(sample.wide(sample.counts(x)), axis=axes) for x in (yes & said, yes, said))
    score = ratio(call, 2 * both, true + claimed)
    if average in ("macro", "weighted"):
        counts = true + claimed != 0
        zero, weight = xp.zeros_like(score), true if average == "weighted" else xp.ones_like(true)
        total = xp.sum(xp.where(counts, weight * score, zero))
        score, axes = ratio(call, total, xp.sum(xp.where(counts, weight, zero))), None
    score = sample.defined(score, axes)
    return sample.result(score)


# Of an order. The last axis is the list.


@metric
def roc_auc(scores: Array, targets: Array, *, weights: Array | None = None, where: Array | None = None) -> Array:
    """The area under the ROC curve: how often a positive scores higher than a negative, ties counted half.

    Parameters
    ----------
    scores : array [..., N]
        Scores of any real dtype; each list on the last axis has an area of its own.
    targets : array [..., N]
        0 or 1, of any real dtype.
    {weigh}

    Returns
    -------
    array [...]
        NaN where a list has no positive or no negative, or a NaN among its scores.

    Raises
    ------
    {raises}

    References
    ----------
    J. A. Hanley, B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 143 (1982).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.roc_auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1])))
    0.875
    """
    call = Call(scores=scores, targets=targets, weights=weights, where=where)
    sample = Sample(call, "scores", scores, weights, where)
    yes = sample.binary(targets)
    order = Ranking(call, "scores", sample.x)
    hits = accumulated(call, order.sorted(sample.counts(yes)))
    if weights is None:  # exact, and no second pass through the order
        misses = sample.up_to_each(order) - hits
    else:
        misses = accumulated(call, order.sorted(sample.counts(~yes)))
    # Of the positives a share, because the product or the sum of two weights may leave the range of floats.
    share = ratio(call, sample.wide(hits) / 2 + sample.wide(order.before(hits)) / 2, sample.wide(hits[..., -1:]))
    new, every = sample.wide(misses - order.before(misses)), sample.wide(misses[..., -1:])
    area = ratio(call, order.over_groups(new * share), call.xp.sum(every, axis=-1))  # of an empty list, 0
    return sample.result(sample.defined(area, -1))


@metric
def average_precision(
    scores: Array, targets: Array, *, weights: Array | None = None, where: Array | None = None
) -> Array:
    """Average precision: the precision at each score, weighted by the recall that is gained there.

    Per list, from the highest score s to the lowest::

        ap = sum_s (recall_s - recall_before_s) precision_s

    Parameters
    ----------
    scores : array [..., N]
        Scores of any real dtype; each list on the last axis has a value of its own.
    targets : array [..., N]
        0 or 1, of any real dtype.
    {weigh}

    Returns
    -------
    array [...]
        NaN where a list has no positive, or a NaN among its scores.

    Raises
    ------
    {raises}

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])).round(6))
    0.833333
    """
    call = Call(scores=scores, targets=targets, weights=weights, where=where)
    sample = Sample(call, "scores", scores, weights, where)
    yes = sample.binary(targets)
    order, xp = Ranking(call, "scores", sample.x), call.xp
    hits = accumulated(call, order.sorted(sample.counts(yes)))
    new, every = sample.wide(hits - order.before(hits)), sample.wide(sample.up_to_each(order))
    some = every != 0
    precision = xp.where(some, sample.wide(hits) / xp.where(some, every, xp.ones_like(every)), xp.zeros_like(every))
    ap = ratio(call, order.over_groups(new * precision), xp.sum(sample.wide(hits[..., -1:]), axis=-1))
    return sample.result(sample.defined(ap, -1))


@metric
def ndcg(scores: Array, relevance: Array, *, k: int | None = None, where: Array | None = None) -> Array:
    """Normalised discounted cumulative gain of each list, with linear gain.

    With the list in the order of the scores, over that of the best order::

        dcg = sum_r relevance_r / log2(r + 1),   r = 1, 2, ..., k

    Items of equal score share the mean of their places.

    Parameters
    ----------
    scores : array [..., N]
        Scores of any real dtype; each list on the last axis has a value of its own.
    relevance : array [..., N]
        At least 0, of any real dtype. For exponential gain pass ``2**relevance - 1``.
    k : int, optional
        Only the first k places count. Default: all.
    where : boolean array, optional
        False takes an item out of its list. 0-d, or the number of axes of ``scores``, size 1 broadcasting, or fewer
        axes, which are the leading ones.

    Returns
    -------
    array [...]
        NaN where a list has no relevant item, or a NaN among its scores.

    Raises
    ------
    {raises}

    References
    ----------
    K. Jaervelin, J. Kekaelaeinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20 (2002); F. McSherry,
    M. Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores", ECIR
    2008.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.ndcg(np.array([3.0, 2.0, 1.0]), np.array([0, 2, 1])).round(6))
    0.669672
    """
    call = Call(scores=scores, relevance=relevance, where=where)
    sample = Sample(call, "scores", scores, None, where)
    if k is not None and integer("k", k) < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    xp = call.xp
    gains = sample.gains(relevance)
    order = Ranking(call, "scores", sample.x)
    places = sample.up_to_each(order)
    discount = sample.discounts(places, k)
    if sample.keep is not None:
        discount = xp.where(order.sorted(sample.keep), discount, xp.zeros_like(discount))
    gain = order.sorted(gains)
    total, steps = accumulated(call, gain), accumulated(call, discount)
    count = sample.wide(places - order.before(places))
    # The difference of two sums loses digits, so an item that stands alone does without it.
    shared = (total - order.before(total)) * (steps - order.before(steps)) / xp.where(count == 0, count + 1, count)
    dcg = order.over_groups(xp.where(order.alone, gain * discount, shared))
    best = xp.sort(gains, axis=-1, descending=True, stable=False)
    ideal = call.library.sum(best * sample.discounts(call.library.positions(best) + 1, k))
    return sample.result(sample.defined(ratio(call, dcg, ideal), -1))
