"""Who gets the gradient: negatives by temperature, pairs by margin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyloss.backends import Array
from polyloss.classification import softmax_cross_entropy
from polyloss.contrastive import contrastive, contrastive_from_distance
from polyloss.diagnostics.host import axes_or_new, by_name, in_host_memory, legend_below, taken_apart
from polyloss.gradients import formula_of, grad, value_and_grad
from polyloss.inputs import number
from polyloss.ranking import pairwise_hinge
from polyloss.retrieval import info_nce
from polyloss.transforms import softmax

__all__ = ["ActivePairs", "NegativeShares", "active_pairs", "negative_shares"]

TAKEN: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    info_nce: (("queries", "positives", "negatives"), ("similarity", "in_batch", "candidate_mask")),
    softmax_cross_entropy: (("logits", "targets"), ("axis", "class_mask")),
}
"""What `negative_shares` takes of each loss: arrays, and options."""

PAIRS: dict[Any, tuple[tuple[str, ...], str]] = {
    pairwise_hinge: (("positive_scores", "negative_scores"), "negative_scores"),
    contrastive: (("first", "second", "similar"), "first"),
    contrastive_from_distance: (("distances", "similar"), "distances"),
}
"""What `active_pairs` takes of each loss, and in which of these a pair has its gradient."""


@dataclass(frozen=True)
class NegativeShares:
    """How the gradient of each query is shared out among its negatives, at each temperature."""

    temperatures: tuple[float, ...]
    shares: np.ndarray
    """[temperature, query, candidate]: they sum to 1 over the negatives; 0 for the positive and what is masked."""
    pull: np.ndarray
    """[temperature, query]: the gradient that all negatives get together, one minus the positive's probability."""

    @property
    def effective(self) -> np.ndarray:
        """[temperature, query]: the effective number of negatives, ``1 / sum(share^2)``.

        It is n where n negatives share the gradient equally.
        """
        return np.asarray(1 / np.sum(self.shares**2, axis=-1))

    def __str__(self) -> str:
        lines = [f"{'temperature':>12}{'effective negatives':>22}{'share of the hardest':>23}{'pull':>9}"]
        for t, effective, shares, pull in zip(self.temperatures, self.effective, self.shares, self.pull):
            hardest = np.mean(np.max(shares, axis=-1))
            lines.append(f"{t:>12g}{np.mean(effective):>22.1f}{hardest:>23.1%}{np.mean(pull):>9.3f}")
        return "\n".join([*lines, f"means over {self.pull.shape[1]:,} queries"])

    def plot(self, axes: Any = None) -> Any:
        """Draws the share of the gradient that the hardest negatives get together; gives the axes."""
        axes = axes_or_new(axes)
        for t, shares, effective in zip(self.temperatures, self.shares, self.effective):
            together = np.cumsum(-np.sort(-shares, axis=-1), axis=-1).mean(axis=0)
            ranks = np.unique(np.geomspace(1, together.size, 60).round().astype(int))
            axes.plot(ranks, together[ranks - 1], label=f"{t:g} ({np.mean(effective):.1f} effective)")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="hardest negatives", ylabel="share of the gradient", ylim=(0, 1.02))
        axes.legend(title="temperature", frameon=False, fontsize="small", title_fontsize="small")
        return axes


def negative_shares(
    loss: Callable[..., Array],
    *arguments: Array,
    temperatures: Sequence[float] = (0.02, 0.05, 0.1, 0.3, 1.0),
    **options: Any,
) -> NegativeShares:
    """The share of the gradient that each negative gets, and how many negatives that makes.

    A low temperature gives nearly all of it to the few hardest negatives: however large the batch, it learns from them
    alone. A high one gives all the same, easy or not.

    Parameters
    ----------
    loss
        `info_nce` or `softmax_cross_entropy`, or a `functools.partial` of one.
    *arguments : array
        What the loss takes first: queries, positives and perhaps negatives; or logits and targets, where the
        classes of target 0 are the negatives. Logits are divided by the temperature.
    temperatures : sequence of float
        Each above 0.
    **options
        Of `info_nce`: ``similarity``, ``in_batch``, ``candidate_mask``; of `softmax_cross_entropy`: ``axis``,
        ``class_mask``.

    Returns
    -------
    NegativeShares
        ``print`` shows a table, ``plot`` a picture.

    Raises
    ------
    TypeError
        If the loss is none of these, or an argument has the wrong type.
    ValueError
        If a shape does not fit or a temperature is not above 0.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> from polyloss.diagnostics import negative_shares
    >>> logits = np.array([[1.0, 0.9, 0.5, 0.5]])
    >>> print(negative_shares(polyloss.softmax_cross_entropy, logits, np.array([0]), temperatures=[0.1, 1.0]))
     temperature   effective negatives   share of the hardest     pull
             0.1                   1.1                  96.5%    0.276
               1                   2.9                  42.7%    0.679
    means over 1 queries
    """
    function, preset = taken_apart(loss)
    if function not in TAKEN:
        raise TypeError(f"loss must be info_nce or softmax_cross_entropy, or a functools.partial of one, got {loss!r}")
    names, taken = TAKEN[function]
    options = preset | {name: in_host_memory(x) for name, x in options.items()}
    if strange := sorted(set(options) - set(taken)):
        raise TypeError(f"of the options of {function.__name__}, {', '.join(taken)} are taken, got {strange}")
    arrays = by_name(names, arguments, fewest=2)
    if function is info_nce:
        options["temperature"] = 1.0
    items: Any = formula_of(function)(**arrays, **options).items
    scores, labels, _, mask = items.prepare(*items.arrays)
    positive = labels[..., None] == np.arange(scores.shape[-1]) if labels.ndim < scores.ndim else labels > 0
    tried = tuple(number("temperatures", t, 0, above=True) for t in temperatures)
    if not tried or not labels.size:
        raise ValueError(f"there must be a temperature and a query, got {len(tried)} and {labels.size}")
    slope, pulls, shares = grad(softmax_cross_entropy), [], []
    for t in tried:
        gradient = slope(scores.astype(np.float64) / t, labels, class_mask=mask, reduction="sum")
        found = np.where(positive, 0, gradient).reshape(-1, scores.shape[-1])
        pull = np.sum(found, axis=-1)
        pulls.append(pull)
        # A softmax of the negatives alone, which is a number also where the pull of a confident query is none.
        negative = ~positive if mask is None else ~positive & np.asarray(mask, bool)
        share = softmax(scores.astype(np.float64) / t, where=negative)
        shares.append(np.asarray(share).reshape(found.shape))
    return NegativeShares(tried, np.stack(shares), np.stack(pulls))


@dataclass(frozen=True)
class ActivePairs:
    """The share of negative pairs that still have a gradient, at each margin."""

    loss: str
    margins: tuple[float, ...]
    shares: np.ndarray
    count: int

    def __str__(self) -> str:
        lines = [f"{'margin':>10}{'active':>10}"]
        lines += [f"{m:>10g}{share:>10.1%}" for m, share in zip(self.margins, self.shares)]
        return "\n".join([*lines, f"of {self.count:,} negative pairs of {self.loss}"])

    def plot(self, axes: Any = None, label: str = "") -> Any:
        """Draws the share over the margin; gives the axes."""
        axes = axes_or_new(axes, (5.0, 4.2))
        axes.plot(self.margins, self.shares, marker="o", markersize=3, label=label or None)
        axes.set(xlabel="margin", ylabel="negative pairs with a gradient", ylim=(0, 1.02))
        if label:
            legend_below(axes)
        return axes


def active_pairs(loss: Callable[..., Array], *arguments: Array, margins: Sequence[float]) -> ActivePairs:
    """The share of negative pairs that a loss still learns from, at each margin.

    A pair beyond the margin has no gradient. Where few are left, a batch teaches little: take harder negatives or a
    larger margin. Where all are, the margin is not what decides.

    Parameters
    ----------
    loss
        `pairwise_hinge`, `contrastive` or `contrastive_from_distance`.
    *arguments : array
        What the loss takes first. Of the contrastive losses, the pairs with ``similar`` 0 are counted: no margin lets
        go of the similar ones. Equal embeddings have no gradient, at whatever margin.
    margins : sequence of float
        Which to try.

    Returns
    -------
    ActivePairs
        ``print`` shows a table, ``plot`` a picture.

    Raises
    ------
    TypeError
        If the loss is none of these, or an argument has the wrong type.
    ValueError
        If a shape does not fit.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> from polyloss.diagnostics import active_pairs
    >>> leads = np.array([2.0, 0.5, -1.0, 1.5])
    >>> print(active_pairs(polyloss.pairwise_hinge, leads, np.zeros(4), margins=[0.1, 1, 3]))
        margin    active
           0.1     25.0%
             1     50.0%
             3    100.0%
    of 4 negative pairs of pairwise_hinge
    """
    if loss not in PAIRS:
        raise TypeError(f"loss must be pairwise_hinge, contrastive or contrastive_from_distance, got {loss!r}")
    names, wrt = PAIRS[loss]
    arrays = by_name(names, arguments, fewest=len(names))
    counts = np.asarray(arrays["similar"]) == 0 if "similar" in arrays else slice(None)
    tried = tuple(number("margins", m) for m in margins)
    if not tried:
        raise ValueError("there must be a margin, got none")
    both, active = value_and_grad(loss, wrt), []
    for m in tried:
        items, slope = both(**arrays, margin=m, reduction="none")
        moves = np.any(slope != 0, axis=-1) if loss is contrastive else slope != 0
        active.append(np.where(np.isnan(items), np.nan, moves)[counts])
    shares = np.array([np.mean(a) if a.size else np.nan for a in active])
    return ActivePairs(loss.__name__, tried, shares, int(active[0].size))
