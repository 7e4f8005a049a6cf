"""Items and pairs before and after: their losses, whether they are right, and whether a metric could notice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from polyloss.classification import sigmoid_cross_entropy, softmax_cross_entropy
from polyloss.gradients import formula_of
from polyloss.inputs import choice
from polyloss.metrics import accuracy, f1, ndcg

__all__ = ["Items", "Pairs", "Piece"]

BLOCK = 1 << 19


class Piece(NamedTuple):
    """Items, or a block of pairs, in one axis."""

    before: np.ndarray
    after: np.ndarray
    was: np.ndarray
    """Whether it was right."""
    now: np.ndarray
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
        self.options = options
        shape = self.targets.shape if self.targets.ndim <= len(whole.shape) else whole.shape
        self.keep = np.ones(shape, bool) if whole.keep is None else np.broadcast_to(whole.keep, shape)
        self.threshold = settings.get("threshold", 0.0)
        self.settings = settings
        if loss is softmax_cross_entropy:
            axis = options.get("axis", -1)
            soft = self.targets.ndim == scores.ndim
            self.labels = np.argmax(self.targets, axis=axis) if soft else self.targets.astype(np.int64)
        else:
            self.labels = self.targets > 0.5

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
        yield Piece(*(np.asarray(x)[self.keep] for x in (*losses, *right, moved)))

    def score(self, x: np.ndarray) -> float:
        """The metric."""
        if self.loss is sigmoid_cross_entropy:
            options: dict[str, Any] = {"where": self.keep} | self.settings
            if self.metric is accuracy:
                return float(accuracy(self._decisions(x), self.labels, **options))
            if self.metric is f1:
                options["threshold"] = 0.5  # of the decisions
                return float(f1(self._decisions(x), self.labels, **options))
            return _mean_of_lists(self.metric, x, self.labels, options)
        decisions, keep = self._decisions(x), self.keep
        if self.metric is accuracy:
            return float(accuracy(decisions, self.labels, **({"where": keep} | self.settings)))
        classes = np.arange(x.shape[self.options.get("axis", -1)])
        said, labels = (y[keep][:, None] == classes for y in (decisions, self.labels))
        averaged: dict[str, Any] = {"threshold": 0.5, "average": "macro"} | self.settings
        return float(f1(said, labels, **averaged))

    def _decisions(self, x: np.ndarray) -> Any:
        if self.loss is sigmoid_cross_entropy:
            return x > self.threshold
        axis, mask = self.options.get("axis", -1), self.options.get("class_mask")
        x = np.moveaxis(x, axis, -1)
        if mask is not None:
            mask = np.asarray(mask)
            x = np.where(mask if mask.ndim == 1 else np.moveaxis(np.broadcast_to(mask, x.shape), axis, -1), x, -np.inf)
        return np.argmax(x, axis=-1)

    def _replaced(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Which items have another number of items of the other class below or beside them in their list."""
        moved = np.zeros(before.shape, bool)
        for i in np.ndindex(before.shape[:-1]):
            for own in (True, False):
                mine = (self.labels[i] == own) & self.keep[i]
                others = (self.labels[i] != own) & self.keep[i]
                places = [_places(x[i][mine], x[i][others]) for x in (before, after)]
                moved[i][mine] = np.any(places[0] != places[1], axis=0)
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
        self.targets = np.asarray(targets)
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

    def divisor(self, count: int) -> float:
        return float(count) if self.kind == "mean" and count else 1.0

    def score(self, x: np.ndarray) -> float:
        """The metric, averaged over the lists in which it is defined."""
        return _mean_of_lists(self.metric, x, self.targets, {"where": self.keep} | self.settings)

    def pieces(self, before: np.ndarray, after: np.ndarray) -> Iterator[Piece]:
        first = self.settings.get("k") if self.metric is ndcg else None
        for i in np.ndindex(before.shape[:-1]):
            keep = self.keep[i]
            x, y, t = before[i][keep], after[i][keep], self.targets[i][keep]
            if not t.size:
                continue
            seen = np.ones(t.shape, bool) if first is None else _among(x, first) | _among(y, first)
            yield from self._pairs_of_a_list(x, y, t, seen)

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
                losses, signs = [], []
                for scores in (x, y):
                    p, n = scores[rows], scores[columns]
                    losses.append(self.loss(p, np.broadcast_to(n, shape)).ravel()[pair])
                    signs.append(np.sign(p[:, None] - n).astype(np.int8).ravel()[pair])
                could = signs[0] != signs[1]
                if not seen.all():
                    could &= (seen[rows][:, None] | seen[columns]).ravel()[pair]
                yield Piece(losses[0], losses[1], signs[0] > 0, signs[1] > 0, could)


def _places(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the others score lower, and how many do not score higher [2, N]."""
    others = np.sort(others)
    return np.stack([np.searchsorted(others, x, side=side) for side in ("left", "right")])


def _among(x: np.ndarray, k: int) -> np.ndarray:
    """Which scores are among the k highest, in the best case where there are ties."""
    return x.size - np.searchsorted(np.sort(x), x, side="right") < k


def _mean_of_lists(metric: Callable[..., Any], x: np.ndarray, t: np.ndarray, options: dict[str, Any]) -> float:
    values = np.asarray(metric(x, t, **options))
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if defined.size else float("nan")
