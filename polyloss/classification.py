"""Losses that ask which class an item belongs to, from logits. `evaluation` has those from probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyloss.backends import Array
from polyloss.gradients import differentiable
from polyloss.inputs import Call, axis_of, integer, last_axis_to, number, to_last_axis
from polyloss.primitives import LseCrossEntropy, SoftplusCrossEntropy
from polyloss.reduction import Loss, Reduction

__all__ = ["class_targets", "sigmoid_cross_entropy", "softmax_cross_entropy"]


@differentiable("logits", "targets")
def sigmoid_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    label_smoothing: float = 0.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Cross-entropy of independent yes/no questions, from logits.

    Per element, with x the logit, t the target and p the ``pos_weight``::

        l = p t softplus(-x) + (1 - t) softplus(x)

    Use it for binary and multi-label classification. It takes logits and fuses the sigmoid, so that it neither
    overflows nor takes the logarithm of a probability that was rounded to 0 or 1.

    Parameters
    ----------
    logits : array, any shape
        Real floating. Its dtype decides that of the result.
    targets : array, the shape of ``logits``
        Boolean, integer or floating, in [0, 1]. NaN makes its own item NaN.
    pos_weight : array, optional
        Multiplies the loss of the positive part; broadcasts to ``logits`` from the right (one per label).
    label_smoothing : float, default 0
        e in [0, 1]: the target becomes ``t (1 - e) + e/2``.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``logits`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    Infinite logits take their limit: (inf, 1) and (-inf, 0) give 0, the others inf. It is differentiable in ``logits``
    and ``targets``; the derivative in a logit is ``(1 - t) sigmoid(x) - p t sigmoid(-x)``.

    References
    ----------
    I. J. Good, "Rational decisions", J. R. Stat. Soc. B 14 (1952); M. Maechler, "Accurately computing
    log(1 - exp(-|a|))" (2012).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.sigmoid_cross_entropy(np.array([2.0, -20.0]), np.array([1, 0]), reduction="none"))
    [1.26928011e-01 2.06115362e-09]
    """
    call = Call(
        logits=logits, targets=targets, pos_weight=pos_weight, weights=weights, where=where, denominator=denominator
    )
    (x,) = call.as_given(logits=logits)
    t = call.same_shape("targets", call.real_as_given("targets", targets), "logits", x)
    smoothing = number("label_smoothing", label_smoothing, 0, 1)
    p = None
    if pos_weight is not None:
        p = call.trailing("pos_weight", call.real("pos_weight", pos_weight), x, "logits")
    reduce = Reduction(call, x, weights, where, reduction, denominator)

    def prepare(x: Array, t: Array, p: Array | None) -> tuple[Array | None, ...]:
        x, t = reduce.clean(call.cast(x)), call.unit_interval("targets", reduce.clean(call.cast(t)))
        return x, t, None if p is None else reduce.clean(p)

    items = reduce.apply(SoftplusCrossEntropy(smoothing), x, t, p, prepare=prepare)
    return reduce.of(items, lambda gx, gt, gp: {"logits": gx, "targets": gt}, target="targets")


@differentiable("logits", "targets")
def softmax_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    axis: int = -1,
    class_weights: Array | None = None,
    class_mask: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Cross-entropy of one choice among K classes, from logits.

    Per row x of logits, with t the target row (one-hot for a label), smoothed, and c the class weights::

        l = sum_k c_k t_k (logsumexp(x) - x_k) + z_loss logsumexp(x)^2

    Use it for classification and language modelling. It takes logits and fuses the softmax: see `log_loss` for
    probabilities that you already have.

    Parameters
    ----------
    logits : array
        Real floating, the classes along ``axis``. Its dtype decides that of the result.
    targets : array
        Integer or boolean: class indices, the shape of ``logits`` without ``axis``. Floating: class probabilities in
        [0, 1] (rows need not sum to 1), the shape of ``logits``.
    axis : int, default -1
        The class axis.
    class_weights : array [K], optional
        One weight per class, along ``axis``. A mean divides by the weights of the targets.
    class_mask : boolean array, optional
        False takes a class out of the softmax; [K] along ``axis``, or broadcasting to ``logits``. A target there gives
        inf.
    label_smoothing : float, default 0
        e in [0, 1]: the target becomes ``t (1 - e) + e/n`` over the n classes that ``class_mask`` keeps.
    z_loss : float, default 0
        The factor of ``logsumexp(x)^2``, which holds the logits near 0.
    ignore_index : int, optional
        Rows with this label are masked, as by ``where``.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``logits`` without ``axis`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    A logit of -inf is a probability of 0; a target on it gives inf. One logit of +inf takes its limit; two, or a row
    without a finite logit, are NaN. It is differentiable in ``logits`` and in floating ``targets``; the derivative in
    the logits is ``(sum_k q_k + 2 z_loss logsumexp(x)) softmax(x) - q`` with ``q = c t``.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
    Numer. Anal. 41 (2021). C. Szegedy et al., "Rethinking the Inception architecture" (2016), for label smoothing.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.softmax_cross_entropy(np.array([[0.0, 40.0]], dtype=np.float32), np.array([1])))
    4.248354e-18
    """
    call = Call(
        logits=logits,
        targets=targets,
        class_weights=class_weights,
        class_mask=class_mask,
        weights=weights,
        where=where,
        denominator=denominator,
    )
    (x,) = call.as_given(logits=logits)
    axis = axis_of(axis, x, "logits")
    primitive = LseCrossEntropy(number("label_smoothing", label_smoothing, 0, 1), number("z_loss", z_loss, 0))
    c = mask = None
    if class_weights is not None:
        c = call.real("class_weights", class_weights)
        call.per_class("class_weights", c, x.shape[axis])
    if class_mask is not None:
        mask = _class_mask(call, class_mask, x, axis)
    reduce = Reduction(call, x, weights, where, reduction, denominator, axis=axis)
    t, prepare_targets = class_targets(call, targets, x, axis, reduce, ignore_index)
    if c is not None:
        reduce.weigh(
            lambda: _target_weight(call, prepare_targets(t), c),
            lambda g: {"targets": last_axis_to(call, call.xp.expand_dims(g, axis=-1) * c, axis)},
        )

    def prepare(x: Array, t: Array, c: Array | None, mask: Array | None) -> tuple[Array | None, ...]:
        if mask is not None and reduce.keep is not None:
            # A masked row keeps every class, so that its numbers are harmless.
            mask = mask | ~call.xp.expand_dims(reduce.keep, axis=-1)
        rows = to_last_axis(call, call.cast(x), axis)
        c = None if c is None else call.library.broadcast(c, rows)
        return reduce.clean(rows, rows=True), prepare_targets(t), c, mask

    items = reduce.apply(primitive, x, t, c, mask, prepare=prepare, axis=axis)
    return reduce.of(items, lambda gx, gt, gc, gm: {"logits": gx, "targets": gt}, target="targets")


def _class_mask(call: Call, class_mask: Array, x: Array, axis: int) -> Array:
    mask = call.boolean("class_mask", class_mask)
    if mask.ndim == 1 and mask.shape[0] == x.shape[axis]:
        return call.library.broadcast(mask, to_last_axis(call, x, axis))
    return to_last_axis(call, call.trailing("class_mask", mask, x, "logits"), axis)


def class_targets(
    call: Call, targets: Any, of: Array, axis: int, reduce: Reduction, ignore_index: int | None, name: str = "logits"
) -> tuple[Array, Callable[[Array], Array]]:
    """The targets as they were given, and what makes of them what the formula takes.

    That is valid labels, or rows of class probabilities with the classes last; both with masked items cleaned.
    """
    t, soft = call.array_and_kind("targets", targets)
    if soft:
        if ignore_index is not None:
            raise ValueError("ignore_index is for class indices; floating targets take where=")
        t = call.same_shape("targets", call.real_as_given("targets", targets), name, of)

        def rows(t: Array) -> Array:
            return call.unit_interval("targets", reduce.clean(to_last_axis(call, call.cast(t), axis), rows=True), axis)

        return t, rows
    t = call.labels("targets", t, reduce.shape, axis, of, name)
    if ignore_index is not None:
        y = call.signed(t)
        ignored, limits = integer("ignore_index", ignore_index), call.xp.iinfo(y.dtype)
        if limits.min < ignored <= limits.max:
            reduce.mask(y != ignored)
    classes = of.shape[axis]

    def labels(t: Array) -> Array:
        y = reduce.clean(call.signed(t))
        return call.valid("targets", y, (y < 0) | (y >= classes), f"class indices in [0, {classes})", given=targets)

    return t, labels


def _target_weight(call: Call, t: Array, c: Array) -> Array:
    """``sum_k c_k t_k`` of the unsmoothed target: what an item weighs in the denominator."""
    return call.library.sum(c * t) if t.dtype == call.dtype else call.library.gather(c, t)
