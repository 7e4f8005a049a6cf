"""What the change of a loss was made of, and how much of it a metric could see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyloss.backends import Array
from polyloss.classification import sigmoid_cross_entropy, softmax_cross_entropy
from polyloss.diagnostics.host import axes_or_new, floats, in_host_memory, taken_apart
from polyloss.diagnostics.moves import Items, Pairs, Piece
from polyloss.metrics import accuracy, f1, ndcg, roc_auc
from polyloss.ranking import bpr, pairwise_hinge

__all__ = ["Change", "Part", "explain_change"]

KINDS: dict[Any, Any] = {
    sigmoid_cross_entropy: (Items, (accuracy, f1, roc_auc, ndcg)),
    softmax_cross_entropy: (Items, (accuracy, f1)),
    pairwise_hinge: (Pairs, (ndcg, roc_auc)),
    bpr: (Pairs, (ndcg, roc_auc)),
}

NAMES = (
    "wrong, became right",
    "right, became wrong",
    "right, pushed further",
    "right, drawn nearer",
    "wrong, less wrong",
    "wrong, more wrong",
    "unchanged",
)


@dataclass(frozen=True)
class Part:
    """The items or pairs that fared alike."""

    name: str
    count: int
    change: float
    """Of the loss; those of all parts add up to the whole."""
    could_move: float
    """As much of ``change`` as lies in items or pairs that could have moved the metric."""


@dataclass(frozen=True)
class Change:
    """The change of a loss, taken apart."""

    loss: str
    unit: str
    """``"items"`` or ``"pairs"``: what the loss is a mean or sum of."""
    count: int
    before: float
    after: float
    change: float
    parts: tuple[Part, ...]
    fall: float
    """How far the loss fell where it fell, not counting where it rose."""
    fall_could_move: float
    """As much of ``fall`` as lies in items or pairs that could have moved the metric."""
    metric: str
    metric_before: float
    metric_after: float

    @property
    def could_move(self) -> float:
        """The share of the improvement that could have moved the metric at all; NaN where nothing improved."""
        return self.fall_could_move / self.fall if self.fall else math.nan

    def __getitem__(self, name: str) -> Part:
        """The part of that name."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f"no part {name!r}; there are {', '.join(repr(part.name) for part in self.parts)}")

    def __str__(self) -> str:
        width = max(len(self.metric) + 11, 14)
        lines = [
            f"{self.loss} of {self.count:,} {self.unit}: {self.before:.6g} -> {self.after:.6g} ({self.change:+.3g})",
            f"{self.metric}: {self.metric_before:.6g} -> {self.metric_after:.6g} "
            f"({self.metric_after - self.metric_before:+.3g})",
            f"{'':<22}{self.unit:>15}{'share':>8}{'loss':>12}{'could move ' + self.metric:>{width + 2}}",
        ]
        moved = sum(part.could_move for part in self.parts)
        for name, count, change, could in (
            *((p.name, p.count, p.change, p.could_move) for p in self.parts),
            ("all", self.count, self.change, moved),
        ):
            share = count / self.count if self.count else math.nan
            lines.append(f"{name:<22}{count:>15,}{share:>8.1%}{change:>+12.3g}{could:>+{width + 2}.3g}")
        lines.append(f"Of what improved, {self.could_move:.1%} could have moved {self.metric}.")
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """Draws a bar for each part of the change, dark where it could have moved the metric; gives the axes."""
        axes = axes_or_new(axes, (6.4, 2.9))
        parts = [part for part in self.parts if part.name != "unchanged"]
        rows = range(len(parts))
        axes.barh(rows, [part.change for part in parts], color="#c6dbef", label=f"could not move {self.metric}")
        axes.barh(rows, [part.could_move for part in parts], color="#08519c", label=f"could move {self.metric}")
        axes.set_yticks(rows, [f"{part.name} ({part.count / max(self.count, 1):.1%})" for part in parts])
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"change of {self.loss}")
        axes.set_title(
            f"loss {self.before:.3g} to {self.after:.3g}, "
            f"{self.metric} {self.metric_before:.3f} to {self.metric_after:.3f}",
            fontsize="medium",
        )
        axes.legend(frameon=False, fontsize="small")
        return axes


def explain_change(
    before: Array,
    after: Array,
    targets: Array,
    *,
    loss: Callable[..., Array],
    metric: Callable[..., Array] | None = None,
    where: Array | None = None,
) -> Change:
    """Takes the change of a loss apart: what became right or wrong, and what was only pushed further.

    A loss falls most easily where nothing is left to gain: right items are pushed further, and a metric that looks at
    decisions or at an order does not see it.

    Parameters
    ----------
    before, after : array
        The model's logits or scores before and after, real floating, of one shape.
    targets : array
        As the loss takes them. For `pairwise_hinge` and `bpr` the relevance of each score, of any real dtype: the pairs
        are all items of one list (the last axis) with different relevance, the more relevant one as the positive.
    loss
        `sigmoid_cross_entropy`, `softmax_cross_entropy`, `pairwise_hinge` or `bpr`, or a `functools.partial` with its
        options; of a pair loss, ``margin`` and ``reduction`` alone.
    metric
        What to show beside it: `accuracy`, `f1`, `roc_auc` or `ndcg`, where they fit the loss, or a
        `functools.partial` of one. Default: `accuracy`, and `ndcg` for pairs.
    where : boolean array, optional
        False leaves an item out. For a pair loss it has the shape of ``targets``; else it is the loss's own ``where``.

    Returns
    -------
    Change
        Its parts add up to the change of the loss, exactly so by `math.fsum`. ``print`` shows a table, ``plot`` a
        picture.

    Raises
    ------
    TypeError
        If the loss or the metric is none of these, or an argument has the wrong type.
    ValueError
        If a shape does not fit, or a loss is not finite, so that its change is no number.

    Notes
    -----
    *Right* means: the logit is on the target's side of 0 (of ``threshold``, if the metric has one); the target's logit
    is the largest; the positive scores higher than the negative. *Pushed further* and *less wrong* mean that the scores
    lead by more: that the target's probability rose, or the positive's over the negative. With label smoothing the loss
    may rise by that. *Unchanged* is the loss.

    *Could have moved the metric* means: for accuracy, the item changed sides; for f1, its decision changed; for the
    metrics of an order, a pair changed its order, or an item its place among those of other relevance (with
    ``ndcg(k=...)``, where one was among the first k). Where none did, the metric cannot have moved. Soft targets are
    cut at 1/2, or for softmax at the largest, for all metrics but ndcg, whose relevance they are. Metrics of lists are
    averaged over the lists in which they are defined.

    Pairs are counted in blocks of half a million, so that memory does not grow with their number.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> from polyloss.diagnostics import explain_change
    >>> before, after = np.array([2.0, 1.0, 0.5]), np.array([5.0, 1.0, 0.5])
    >>> print(explain_change(before, after, np.array([1, 0, 0]), loss=polyloss.bpr, metric=polyloss.ndcg))
    bpr of 2 pairs: 0.257337 -> 0.0145988 (-0.243)
    ndcg: 1 -> 1 (+0)
                                    pairs   share        loss  could move ndcg
    wrong, became right                 0    0.0%          +0               +0
    right, became wrong                 0    0.0%          +0               +0
    right, pushed further               2  100.0%      -0.243               +0
    right, drawn nearer                 0    0.0%          +0               +0
    wrong, less wrong                   0    0.0%          +0               +0
    wrong, more wrong                   0    0.0%          +0               +0
    unchanged                           0    0.0%          +0               +0
    all                                 2  100.0%      -0.243               +0
    Of what improved, 0.0% could have moved ndcg.
    """
    function, options = taken_apart(loss)
    if function not in KINDS:
        raise TypeError(f"loss must be one of {_names(KINDS)}, or a functools.partial of one, got {loss!r}")
    kind, metrics = KINDS[function]
    measure, settings = taken_apart(metrics[0] if metric is None else metric)
    if measure not in metrics:
        raise TypeError(
            f"metric must be one of {_names(metrics)} for {function.__name__}, or a functools.partial of one, "
            f"got {metric!r}"
        )
    if "where" in settings:
        raise ValueError("where is an argument of explain_change, not an option of the metric")
    if settings.get("average") == "none":
        raise ValueError("average must make one number of all labels, got 'none'")
    one, two = floats(before=before, after=after)
    if one.shape != two.shape:
        raise ValueError(f"after must have the shape of before, {one.shape}, got {two.shape}")
    moves = kind(function, options, measure, settings, in_host_memory(targets), in_host_memory(where), one)
    scores = moves.score(one), moves.score(two)
    with np.errstate(all="ignore"):
        counts, changes, total = _counted(moves.pieces(one, two))
    divisor = moves.divisor(int(counts.sum())) or math.nan  # the mean of nothing is NaN
    parts = tuple(
        Part(
            name,
            int(counts[..., i].sum()),
            math.fsum(changes[..., i].flat) / divisor,
            math.fsum(changes[:, 1, i]) / divisor,
        )
        for i, name in enumerate(NAMES)
    )
    return Change(
        loss=function.__name__,
        unit=moves.unit,
        count=int(counts.sum()),
        before=total[0] / divisor,
        after=total[1] / divisor,
        change=math.fsum(part.change for part in parts),
        parts=parts,
        fall=abs(math.fsum(changes[1].flat) / divisor),
        fall_could_move=abs(math.fsum(changes[1, 1]) / divisor),
        metric=measure.__name__,
        metric_before=scores[0],
        metric_after=scores[1],
    )


def _counted(pieces: Iterator[Piece]) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Counts and changes of the summed loss, and the summed loss before and after.

    The first two are [fell or not, could move the metric or not, part].
    """
    shape, size = (2, 2, len(NAMES)), 4 * len(NAMES)
    counts: np.ndarray = np.zeros(size, np.int64)
    changes: list[np.ndarray] = [np.zeros(size)]
    totals: tuple[list[float], list[float]] = ([], [])
    for piece in pieces:
        change = piece.loss[1].astype(np.float64) - piece.loss[0]
        if not np.all(np.isfinite(change)):
            raise ValueError("the loss is not finite for every item, before and after, so its change is no number")
        (was, now), fell = piece.right, change < 0
        # Where the scores lead by as much as before, or none can tell, the loss decides.
        nearer = (piece.lead[1] > piece.lead[0]) | (fell & ~(piece.lead[1] < piece.lead[0]))
        w, n, near, f, could = (x.astype(np.int8) for x in (was, now, nearer, fell, piece.could_move))
        part = np.where(was != now, 1 - n, np.where(change == 0, 6, 5 - 2 * w - near))  # its place in NAMES
        cell = (part + len(NAMES) * (could + 2 * f)).astype(np.intp)
        counts += np.bincount(cell, minlength=size)
        changes.append(np.bincount(cell, weights=change, minlength=size))
        for total, items in zip(totals, piece.loss):
            total.append(float(np.sum(items, dtype=np.float64)))
    exact = np.array([math.fsum(column) for column in zip(*changes)])
    return counts.reshape(shape), exact.reshape(shape), (math.fsum(totals[0]), math.fsum(totals[1]))


def _names(functions: Sequence[Any] | dict[Any, Any]) -> str:
    return ", ".join(f.__name__ for f in functions)
