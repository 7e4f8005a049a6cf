"""Whole calls in NumPy's arithmetic in float64, written down once more, without any care for rounding.

A loss gives its `Items`; `reduced` makes the value and the gradients of them, for every reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["LOSSES", "Items", "leading", "reduced", "sigmoid", "softmax"]

Array = np.ndarray
Gradients = dict[str, Array]


class Items(NamedTuple):
    """A loss before its reduction."""

    losses: Array
    pull: Callable[[Array], Gradients]  # from a factor of each item to the gradient in each parameter
    mass: Array | float = 1.0  # what an item weighs in the mean, beside its weight
    mass_pull: Callable[[Array], Gradients] = lambda factor: {}  # as `pull`, of the masses


def _times(q: Array, loss: Array) -> Array:
    """The product, and 0 times infinity is 0."""
    found = np.zeros(np.broadcast_shapes(q.shape, loss.shape))
    np.multiply(q, loss, where=(q != 0) | np.isnan(loss), out=found)
    return found


def softmax(
    logits: Array,
    targets: Array,
    *,
    axis: int = -1,
    class_weights: Array | None = None,
    class_mask: Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Items:
    """Softmax cross-entropy; a label that is not in range is of an item that is masked."""
    x = np.moveaxis(logits, axis, -1)
    keep = np.ones(x.shape, bool)
    if class_mask is not None:
        keep &= class_mask if class_mask.ndim == 1 else np.moveaxis(np.broadcast_to(class_mask, logits.shape), axis, -1)
    classes = x.shape[-1]
    soft = targets.dtype.kind == "f"
    t = np.moveaxis(targets, axis, -1) if soft else np.eye(classes)[np.clip(targets.astype(int), 0, classes - 1)]
    x = np.where(keep, x, -np.inf)
    top = np.max(x, axis=-1, keepdims=True)
    lse = top + np.log(np.sum(np.exp(x - top), axis=-1, keepdims=True))
    c = np.ones(classes) if class_weights is None else class_weights
    smooth = t * (1 - label_smoothing) + keep * label_smoothing / np.sum(keep, axis=-1, keepdims=True)
    q = c * smooth
    gaps = np.where(keep, lse - x, 0)
    slopes = (np.sum(q, axis=-1, keepdims=True) + 2 * z_loss * lse) * np.exp(x - lse) - q
    by_target = np.where((q == 0) & (x == -np.inf), lse - top, lse - x)  # 0 times infinity is 0, also in a derivative

    def pull(factor: Array) -> Gradients:
        f = factor[..., None]
        by = {"logits": f * slopes} | ({"targets": _times(f, by_target * c * (1 - label_smoothing))} if soft else {})
        found = {key: np.moveaxis(slope, -1, axis) for key, slope in by.items()}
        return found | {"class_weights": _rest(_times(f * smooth, by_target))}

    def mass_pull(factor: Array) -> Gradients:
        f = factor[..., None]
        found = {"class_weights": _rest(f * t)}
        return found | ({"targets": np.moveaxis(np.broadcast_to(f * c, x.shape), -1, axis)} if soft else {})

    items = np.sum(_times(q, gaps), axis=-1) + z_loss * lse[..., 0] ** 2
    return Items(items, pull) if class_weights is None else Items(items, pull, np.sum(c * t, axis=-1), mass_pull)


def _rest(x: Array, shape: tuple[int, ...] | None = None) -> Array:
    """The sum over what was broadcast, to a shape; by default to the last axis."""
    shape = x.shape[-1:] if shape is None else shape
    full = (1,) * (x.ndim - len(shape)) + shape
    summed = np.sum(x, axis=tuple(i for i, n in enumerate(full) if n == 1), keepdims=True)
    return np.reshape(np.broadcast_to(summed, full), shape)


def sigmoid(logits: Array, targets: Array, *, pos_weight: Any = 1.0, label_smoothing: float = 0.0) -> Items:
    """Sigmoid cross-entropy."""
    x, t, p = logits, targets * (1 - label_smoothing) + label_smoothing / 2, np.asarray(pos_weight)
    above, below = np.logaddexp(0, x), np.logaddexp(0, -x)  # softplus of x and of -x
    slopes = (1 - t) * np.exp(-below) - p * t * np.exp(-above)
    by_target = np.where(p == 1, -x, p * below - above) * (1 - label_smoothing)
    by_weight = _times(t, below)

    def pull(factor: Array) -> Gradients:
        found = {"logits": factor * slopes, "targets": _times(factor, by_target)}
        return found | {"pos_weight": _rest(_times(factor, by_weight), p.shape)}

    return Items(_times(p * t, below) + _times(1 - t, above), pull)


def _pairs(positive_scores: Array, negative_scores: Array) -> Array:
    many = negative_scores.ndim > positive_scores.ndim
    return np.asarray((positive_scores[..., None] if many else positive_scores) - negative_scores)


def _of_pairs(losses: Array, slopes: Array, many: bool) -> Items:
    def pull(factor: Array) -> Gradients:
        found = factor * slopes
        return {"positive_scores": np.sum(found, axis=-1) if many else found, "negative_scores": -found}

    return Items(losses, pull)


def bpr(positive_scores: Array, negative_scores: Array) -> Items:
    """BPR."""
    d = _pairs(positive_scores, negative_scores)
    return _of_pairs(np.logaddexp(0, -d), -np.exp(-np.logaddexp(0, d)), d.ndim > positive_scores.ndim)


def hinge(positive_scores: Array, negative_scores: Array, *, margin: float = 1.0) -> Items:
    """The pairwise hinge."""
    d = margin - _pairs(positive_scores, negative_scores)
    return _of_pairs(np.maximum(d, 0), -1.0 * (d > 0), d.ndim > positive_scores.ndim)


LOSSES: dict[str, Callable[..., Items]] = {
    "softmax_cross_entropy": softmax,
    "sigmoid_cross_entropy": sigmoid,
    "bpr": bpr,
    "pairwise_hinge": hinge,
}


def leading(x: Array | float, shape: tuple[int, ...]) -> Array:
    """Weights or a mask in the shape of the items: fewer axes are the leading ones."""
    x = np.asarray(x)
    return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)) if x.ndim else x, shape)


def reduced(
    items: Items,
    *,
    weights: Array | float = 1.0,
    where: Array | bool = True,
    reduction: str = "mean",
    denominator: float | None = None,
) -> tuple[Array, Gradients]:
    """The value, and the gradient in each parameter."""
    shape = items.losses.shape
    keep = leading(where, shape)
    w = np.where(keep, leading(weights, shape), 0.0)
    losses = np.where(keep, items.losses, 0.0)
    if reduction == "none":
        return w * losses, items.pull(w)
    total, by_mass = 1.0, reduction == "mean" and denominator is None
    if reduction == "mean":
        total = np.sum(np.where(keep, w * items.mass, 0.0)) if denominator is None else denominator
    if total == 0:
        return np.asarray(np.nan), items.pull(np.zeros(shape))
    value = np.sum(w * losses) / total
    gradients = items.pull(w / total)
    if by_mass:
        for key, part in items.mass_pull(np.where(w == 0, 0.0, -value * w / total)).items():
            gradients[key] = gradients[key] + part
    return value, gradients
