"""One table of losses, from which every law makes its inputs.

A row says how to draw valid arguments for n items, which of them are floating and hence differentiable, and what may
lie behind a mask. Items are along the first axis of every argument that is not shared by all items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import polyloss

__all__ = ["LOSSES", "Row", "of_seven_bits", "row_of"]

Arguments = dict[str, np.ndarray]

WEIGHTS = ("class_weights", "pos_weight")
"""Floating arguments that are no variables of a loss."""


@dataclass(frozen=True)
class Row:
    """A loss with some options, and how to call it."""

    loss: Callable[..., Any]
    draw: Callable[[np.random.Generator, int, float], Arguments]  # (generator, items, magnitude) -> float64, int64
    options: dict[str, Any] = field(default_factory=dict)
    garbage: dict[str, float | int] = field(default_factory=dict)  # out of range, beside NaN and infinities
    shared: frozenset[str] = frozenset()  # arguments that belong to no single item
    item_shape: tuple[int, ...] = ()  # the shape of the loss behind the first axis
    fewest: int = 1  # items

    def arguments(self, seed: int, n: int, dtype: str = "float64", magnitude: float = 1.0) -> Arguments:
        drawn = self.draw(np.random.default_rng(seed), n, magnitude)
        return {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in drawn.items()}

    def floating(self, arguments: Arguments) -> tuple[str, ...]:
        """The parameters that the loss can be differentiated in."""
        return tuple(name for name, x in arguments.items() if x.dtype.kind == "f" and name not in WEIGHTS)

    def take(self, arguments: Arguments, items: Any) -> Arguments:
        return {name: x if name in self.shared else x[items] for name, x in arguments.items()}


def _sigmoid(soft: bool) -> Callable[..., Arguments]:
    def draw(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
        targets = rng.random((n, 3)) if soft else rng.integers(2, size=(n, 3))
        return {"logits": magnitude * rng.standard_normal((n, 3)), "targets": targets}

    return draw


def _weighted_positives(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    return _sigmoid(soft=True)(rng, n, magnitude) | {"pos_weight": rng.random((n, 3)) + 0.5}


def _softmax(
    soft: bool = False, *trailing: int, classes: int = 4, extra: Callable[..., Arguments] | None = None
) -> Callable[..., Arguments]:
    def draw(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
        shape = (n, classes, *trailing)
        targets = rng.random(shape) / classes if soft else rng.integers(classes, size=(n, *trailing))
        found = {"logits": magnitude * rng.standard_normal(shape), "targets": targets}
        return found | (extra(rng, n) if extra else {})

    return draw


def _masked_classes(rng: np.random.Generator, n: int) -> Arguments:
    return {"class_mask": np.broadcast_to(np.array([True, True, True, False]), (n, 4)).copy()}


def _soft_masked(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    found = _softmax(soft=True, extra=_weighted_classes)(rng, n, magnitude) | _masked_classes(rng, n)
    return found | {"targets": found["targets"] * found["class_mask"]}


def _weighted_classes(rng: np.random.Generator, n: int) -> Arguments:
    return {"class_weights": rng.random(4) + 0.5}


def _scores(many: bool) -> Callable[..., Arguments]:
    def draw(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
        negative = (n, 3) if many else (n,)
        return {
            "positive_scores": magnitude * rng.standard_normal(n),
            "negative_scores": magnitude * rng.standard_normal(negative),
        }

    return draw


def _pairs(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    return {
        "first": magnitude * rng.standard_normal((n, 3)),
        "second": magnitude * rng.standard_normal((n, 3)),
        "similar": rng.integers(2, size=n),
    }


def _pairs_of_pairs(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    first, second = magnitude * rng.standard_normal((2, n, 2, 3))
    return {"first": first, "second": second, "similar": rng.random((n, 2))}


def _distances(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    return {"distances": magnitude * rng.random((n, 2)), "similar": rng.random((n, 2))}


def _embeddings(*negatives: int, own: bool = False) -> Callable[..., Arguments]:
    def draw(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
        found = {
            "queries": magnitude * rng.standard_normal((n, 3)),
            "positives": magnitude * rng.standard_normal((n, 3)),
        }
        if negatives:
            found["negatives"] = magnitude * rng.standard_normal(((n,) if own else ()) + (*negatives, 3))
        return found

    return draw


def _probabilities(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    return {"probabilities": rng.uniform(0.05, 0.95, (n, 3)), "targets": rng.random((n, 3))}


def _distributions(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    p = rng.uniform(0.05, 1, (n, 4))
    return {"probabilities": p / p.sum(axis=-1, keepdims=True), "targets": rng.integers(4, size=n)}


def _soft_distributions(rng: np.random.Generator, n: int, magnitude: float) -> Arguments:
    p, t = (x / x.sum(axis=1, keepdims=True) for x in rng.uniform(0.05, 1, (2, n, 4, 4)))
    return {"probabilities": p, "targets": t}


def of_seven_bits(row: Row, p: np.ndarray) -> np.ndarray:
    """Probabilities whose rows sum to 1 in 16 bits too."""
    axis = row.options.get("axis", -1)
    p = np.floor(p.astype(np.float64) * 128) / 128
    largest = np.expand_dims(np.argmax(p, axis=axis), axis)
    np.put_along_axis(p, largest, np.take_along_axis(p, largest, axis) + 1 - p.sum(axis=axis, keepdims=True), axis)
    return p


LOSSES: dict[str, Row] = {
    "sigmoid_cross_entropy": Row(
        polyloss.sigmoid_cross_entropy, _sigmoid(soft=False), garbage={"targets": 7}, item_shape=(3,)
    ),
    "sigmoid_cross_entropy, fractions": Row(
        polyloss.sigmoid_cross_entropy, _sigmoid(soft=True), garbage={"targets": 1.5}, item_shape=(3,)
    ),
    "sigmoid_cross_entropy, soft": Row(
        polyloss.sigmoid_cross_entropy,
        _sigmoid(soft=True),
        {"label_smoothing": 0.1, "pos_weight": 2.5},
        {"targets": -0.5},
        item_shape=(3,),
    ),
    "sigmoid_cross_entropy, weighted positives": Row(
        polyloss.sigmoid_cross_entropy, _weighted_positives, garbage={"targets": 1.5}, item_shape=(3,)
    ),
    "softmax_cross_entropy": Row(polyloss.softmax_cross_entropy, _softmax(), garbage={"targets": -7}),
    "softmax_cross_entropy, soft": Row(polyloss.softmax_cross_entropy, _softmax(soft=True), garbage={"targets": 2.0}),
    "softmax_cross_entropy, many classes": Row(
        polyloss.softmax_cross_entropy, _softmax(classes=70), {"z_loss": 0.01}, {"targets": -1}
    ),
    "softmax_cross_entropy, all options": Row(
        polyloss.softmax_cross_entropy,
        _softmax(extra=_weighted_classes),
        {"label_smoothing": 0.2, "z_loss": 0.01},
        {"targets": 99},
        frozenset({"class_weights"}),
    ),
    "softmax_cross_entropy, soft, all options": Row(
        polyloss.softmax_cross_entropy,
        _softmax(True, 2, extra=_weighted_classes),
        {"axis": 1, "label_smoothing": 0.2, "z_loss": 0.01},
        {"targets": 99.0},
        frozenset({"class_weights"}),
        item_shape=(2,),
    ),
    "softmax_cross_entropy, axis 1": Row(
        polyloss.softmax_cross_entropy, _softmax(False, 2, 3), {"axis": 1}, {"targets": 4}, item_shape=(2, 3)
    ),
    "softmax_cross_entropy, class mask": Row(
        polyloss.softmax_cross_entropy,
        lambda rng, n, m: _softmax(extra=_masked_classes)(rng, n, m) | {"targets": rng.integers(3, size=n)},
        {"label_smoothing": 0.1},
        {"targets": -1},
    ),
    "softmax_cross_entropy, soft, class mask": Row(
        polyloss.softmax_cross_entropy,
        _soft_masked,
        {"label_smoothing": 0.1},
        {"targets": 99.0},
        frozenset({"class_weights"}),
    ),
    "pairwise_hinge": Row(polyloss.pairwise_hinge, _scores(many=False)),
    "pairwise_hinge, many": Row(polyloss.pairwise_hinge, _scores(many=True), {"margin": 2.5}, item_shape=(3,)),
    "pairwise_hinge, negative margin": Row(polyloss.pairwise_hinge, _scores(many=False), {"margin": -0.5}),
    "bpr": Row(polyloss.bpr, _scores(many=False)),
    "bpr, many": Row(polyloss.bpr, _scores(many=True), item_shape=(3,)),
    "contrastive": Row(polyloss.contrastive, _pairs, {"margin": 2.0}, {"similar": 2}),
    "contrastive, fractions": Row(
        polyloss.contrastive, _pairs_of_pairs, {"margin": 2.0}, {"similar": 1.5}, item_shape=(2,)
    ),
    "contrastive_from_distance": Row(
        polyloss.contrastive_from_distance, _distances, garbage={"distances": -1.0, "similar": 1.5}, item_shape=(2,)
    ),
    "info_nce": Row(polyloss.info_nce, _embeddings(), {"temperature": 0.5}, fewest=2),
    "info_nce, symmetric": Row(
        polyloss.info_nce, _embeddings(), {"temperature": 0.5, "symmetric": True, "similarity": "dot"}, fewest=2
    ),
    "info_nce, negatives": Row(polyloss.info_nce, _embeddings(2, own=True), {"temperature": 0.5}),
    "info_nce, negatives in a batch": Row(
        polyloss.info_nce, _embeddings(2, own=True), {"temperature": 0.5, "in_batch": True}
    ),
    "info_nce, shared negatives": Row(
        polyloss.info_nce,
        _embeddings(2),
        {"temperature": 0.5, "in_batch": True},
        shared=frozenset({"negatives"}),
    ),
    "binary_log_loss": Row(
        polyloss.binary_log_loss,
        _probabilities,
        {"eps": 0.1},
        {"probabilities": 1.5, "targets": -1.0},
        item_shape=(3,),
    ),
    "log_loss": Row(polyloss.log_loss, _distributions, garbage={"probabilities": 0.9, "targets": 4}),
    "log_loss, soft, axis 1": Row(
        polyloss.log_loss,
        _soft_distributions,
        {"axis": 1, "eps": 0.1},
        {"probabilities": 0.9, "targets": 2.0},
        item_shape=(4,),
    ),
}


def row_of(name: str) -> Row:
    """A row of the table, or that of a transform, which has no arguments of its own."""
    return LOSSES.get(name) or Row(getattr(polyloss, name), lambda *_: {})
