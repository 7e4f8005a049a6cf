"""Items and pairs before and after: their losses, whether they are right, and whether a metric could notice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polyloss.classification import sigmoid_cross_entropy, softmax_cross_entropy
from polyloss.gradients import formula_of
from polyloss.inputs import Call, choice
from polyloss.metrics import accuracy, f1, ndcg
from polyloss.transforms import logsumexp

__all__ = ["Items", "Pairs", "Piece"]

BLOCK = 1 << 19

Twice: TypeAlias = Sequence[np.ndarray]
"""Something before, and after."""


class Piece(NamedTuple):
    """Items, or a block of pairs, in one axis."""

    loss: Twice
    right: Twice
    lead: Twice
    """Of the target or the positive over the others, in the scores."""
    could_move: np.ndarray


class Items:
    """The items of a cross-entropy."""

    unit = "items"

    def __init__(
        self,
        loss: Callable[..., Any],
        options: dict[str, Any],
        metric: Callable[..., Any],
        settings: dict[str, Any],
        targets: Any,
        where: Any,
        scores: np.ndarray,
    ) -> None:
        if where is not None:
            if options.get("where") is not None:
                raise ValueError("where was given twice, to explain_change and in the partial of the loss")
            options = options | {"where": where}
        self.loss, self.metric, self.targets = loss, metric, np.asarray(targets)
        kind = choice("reduction", options.pop("reduction", "mean"), ("mean", "sum"))
        whole = formula_of(loss)(scores, self.targets, reduction=kind, **options).reduction
        self._divisor = whole.linear()[1]
        options.pop("denominator", None)
        self.options, self.settings = options, settings
        self.keep = np.ones(whole.shape, bool) if whole.keep is None else np.broadcast_to(whole.keep, whole.shape)
        self.threshold = settings.get("threshold", 0.0)
        self.axis, self.mask = options.get("axis", -1), options.get("class_mask")
        if loss is softmax_cross_entropy:
            soft = self.targets.ndim == scores.ndim
            self.labels = np.argmax(self.targets, axis=self.axis) if soft else self.targets.astype(np.int64)
        else:
            self.labels = self.targets > 0.5
        self.relevance = self.targets if metric is ndcg else self.labels

    def divisor(self, count: int) -> float:
        return float(self._divisor)  # a number, where items are summed

    def pieces(self, before: np.ndarray, after: np.ndarray) -> Iterator[Piece]:
        losses = [self.loss(x, self.targets, reduction="none", **self.options) for x in (before, after)]
        said = [self._decisions(x) for x in (before, after)]
        right = [d == self.labels for d in said]
        if self.metric is accuracy:
            moved = right[0] != right[1]
        elif self.metric is f1:
            moved = said[0] != said[1]
        else:
            moved = self._replaced(before, after)
        leads = [self._lead(x) for x in (before, after)]
        losses, right, leads = ([x[self.keep] for x in twice] for twice in (losses, right, leads))
        yield Piece(losses, right, leads, moved[self.keep])

    def score(self, x: np.ndarray) -> float:
        """The metric."""
        options = {"where": self.keep} | self.settings
        if self.metric not in (accuracy, f1):
            return _mean_of_lists(self.metric, x, self.relevance, options)
        said, labels = self._decisions(x), self.labels
        if self.metric is accuracy:
            return float(accuracy(said, labels, **options))
        if self.loss is softmax_cross_entropy:  # each class is a label, said or not
            classes = np.arange(x.shape[self.axis])
            said, labels = (y[..., None] == classes for y in (said, labels))
            options = {"average": "macro"} | options
        return float(f1(said, labels, **(options | {"threshold": 0.5})))  # of the decisions

    def _decisions(self, x: np.ndarray) -> Any:
        if self.loss is sigmoid_cross_entropy:
            return x > self.threshold
        x, mask = self._classes(x)
        return np.argmax(np.where(mask, x, -np.inf), axis=-1)

    def _lead(self, x: np.ndarray) -> Any:
        if self.loss is sigmoid_cross_entropy:
            return np.where(self.labels, x, -x)
        x, mask = self._classes(x.astype(np.float64))
        own = np.arange(x.shape[-1]) == self.labels[..., None]
        others = np.asarray(logsumexp(x, where=mask & ~own))
        return np.sum(np.where(own, x, 0), axis=-1) - others

    def _classes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits with the classes on the last axis, and which of them the loss reads."""
        mask = np.asarray(True if self.mask is None else self.mask)
        if mask.ndim != 1:
            mask = np.moveaxis(np.broadcast_to(mask, x.shape), self.axis, -1)
        return np.moveaxis(x, self.axis, -1), mask

    def _replaced(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Which items have another number of items of other relevance below or beside them in their list."""
        moved = np.zeros(before.shape, bool)
        for i in np.ndindex(before.shape[:-1]):
            keep = self.keep[i]
            x, y, t = before[i][keep], after[i][keep], self.relevance[i][keep]
            moved[i][keep] = np.any(_places(x, t) != _places(y, t), axis=0) & _seen(x, y, self.metric, self.settings)
        return moved


class Pairs:
    """All pairs of different relevance in each list, the more relevant item as the positive."""

    unit = "pairs"

    def __init__(
        self,
        loss: Callable[..., Any],
        options: dict[str, Any],
        metric: Callable[..., Any],
        settings: dict[str, Any],
        targets: Any,
        where: Any,
        scores: np.ndarray,
    ) -> None:
        self.kind = choice("reduction", options.pop("reduction", "mean"), ("mean", "sum"))
        if strange := set(options) - {"margin"}:
            raise ValueError(
                f"of the options of {loss.__name__}, pairs of a list take margin alone, got {sorted(strange)}"
            )
        self.loss = functools.partial(loss, reduction="none", **options)
        self.metric, self.settings = metric, settings
        call = Call(targets=targets)
        self.targets = call.real_as_given("targets", targets)
        if self.targets.shape != scores.shape or not scores.ndim:
            raise ValueError(
                f"targets must hold the relevance of each score, in the shape of before, {scores.shape}, "
                f"with a list on the last axis, got {self.targets.shape}"
            )
        self.keep = np.ones(scores.shape, bool)
        if where is not None:
            where = np.asarray(where)
            if where.dtype != bool or where.shape not in ((), scores.shape):
                raise ValueError(f"where must be boolean of shape {scores.shape}, got {where.dtype} {where.shape}")
            self.keep = np.broadcast_to(where, scores.shape)
        call.valid("targets", self.targets, self.keep & ~np.isfinite(self.targets), "finite")

    def divisor(self, count: int) -> float:
        return float(count) if self.kind == "mean" else 1.0

    def score(self, x: np.ndarray) -> float:
        """The metric, averaged over the lists in which it is defined."""
        return _mean_of_lists(self.metric, x, self.targets, {"where": self.keep} | self.settings)

    def pieces(self, before: np.ndarray, after: np.ndarray) -> Iterator[Piece]:
        for i in np.ndindex(before.shape[:-1]):
            keep = self.keep[i]
            x, y, t = before[i][keep], after[i][keep], self.targets[i][keep]
            if t.size:
                yield from self._pairs_of_a_list(x, y, t, _seen(x, y, self.metric, self.settings))

    def _pairs_of_a_list(self, x: np.ndarray, y: np.ndarray, t: np.ndarray, seen: np.ndarray) -> Iterator[Piece]:
        above, below = np.flatnonzero(t > t.min()), np.flatnonzero(t < t.max())
        graded = above.size + below.size > t.size
        step = max(1, BLOCK // max(1, below.size))
        for start in range(0, above.size, step):
            rows = above[start : start + step]
            # A row that alone is longer than a block is cut as well.
            for left in range(0, below.size, BLOCK):
                columns = below[left : left + BLOCK]
                pair = (t[rows][:, None] > t[columns]).ravel() if graded else slice(None)
                shape = rows.size, columns.size
                losses, leads = [], []
                for scores in (x, y):
                    p, n = scores[rows], scores[columns]
                    losses.append(self.loss(p, np.broadcast_to(n, shape)).ravel()[pair])
                    leads.append((p[:, None] - n).ravel()[pair])
                right = [lead > 0 for lead in leads]
                could = (right[0] != right[1]) | ((leads[0] < 0) != (leads[1] < 0))
                if not seen.all():
                    could &= (seen[rows][:, None] | seen[columns]).ravel()[pair]
                yield Piece(losses, right, leads, could)


def _places(x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """How many items of other relevance score lower than each, and how many do not score higher [2, N]."""
    places = _below(x)
    order = np.argsort(relevance, stable=True)
    for own in np.split(order, np.flatnonzero(np.diff(relevance[order])) + 1):
        places[:, own] -= _below(x[own])
    return places


def _below(x: np.ndarray) -> np.ndarray:
    """How many items score lower than each, and how many do not score higher [2, N]."""
    ordered = np.sort(x)
    return np.stack([np.searchsorted(ordered, x, side=side) for side in ("left", "right")])


def _seen(x: np.ndarray, y: np.ndarray, metric: Callable[..., Any], settings: dict[str, Any]) -> np.ndarray:
    """Which items of a list the metric looks at before or after: for ndcg, the first k, with all that tie with them."""
    k = settings.get("k") if metric is ndcg else None
    if k is None:
        return np.ones(x.shape, bool)
    above = [x.size - _below(scores)[1] for scores in (x, y)]
    return np.asarray(np.minimum(*above) < k)


def _mean_of_lists(metric: Callable[..., Any], x: np.ndarray, t: np.ndarray, options: dict[str, Any]) -> float:
    values = np.asarray(metric(x, t, **options))
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if defined.size else float("nan")
