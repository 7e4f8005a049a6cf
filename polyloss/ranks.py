"""Lists that are sorted by their scores: what the metrics of an order count, ties included.

Along the last axis, in one sort and a few passes. Every shape is that of the scores, so that nothing here depends on a
value and a trace can follow it.
"""

from __future__ import annotations

from polyloss.backends import Array
from polyloss.inputs import Call

__all__ = ["Ranking", "accumulated"]


class Ranking:
    """The items of each list from the highest score to the lowest. Equal scores form a group.

    An item that ``keep`` leaves out may stand anywhere; it must count as 0 in every array that is accumulated.
    """

    def __init__(self, call: Call, name: str, scores: Array) -> None:
        if call.library.lazy:
            raise TypeError(
                f"{name} must be sorted, and {call.library.name} has no lazy sort: compute the scores first "
                f"({name}.compute()), or map the metric over blocks that hold whole lists"
            )
        if scores.ndim == 0:
            raise ValueError(f"{name} must hold a list on its last axis, got shape ()")
        self.call, xp = call, call.xp
        self._order = xp.argsort(scores, axis=-1, descending=True, stable=False)
        ordered = self.sorted(scores)
        positions = call.library.positions(scores)
        changes = ordered[..., 1:] != ordered[..., :-1]
        edge = xp.ones_like(ordered[..., :1], dtype=xp.bool)
        self.last = xp.concat([changes, edge], axis=-1)
        """Whether a position is the last of its group."""
        first = xp.concat([edge, changes], axis=-1)
        start = call.library.cumulative_max(xp.where(first, positions, xp.zeros_like(positions)))
        self.alone = first & self.last
        self._at_start = start == 0
        self._before = xp.where(self._at_start, start, start - 1)

    def sorted(self, x: Array) -> Array:
        """The numbers of the items, in their order."""
        return self.call.xp.take_along_axis(x, self._order, axis=-1)

    def before(self, cumulated: Array) -> Array:
        """What had been accumulated before the group of each position."""
        xp = self.call.xp
        return xp.where(self._at_start, xp.zeros_like(cumulated), xp.take_along_axis(cumulated, self._before, axis=-1))

    def over_groups(self, contribution: Array) -> Array:
        """The sum of what stands at the last position of each group."""
        return self.call.library.sum(self.call.xp.where(self.last, contribution, self.call.xp.zeros_like(contribution)))


def accumulated(call: Call, x: Array) -> Array:
    """Sums from the first position to each; of booleans as integers."""
    xp = call.xp
    return xp.cumulative_sum(xp.astype(x, call.library.index_dtype()) if x.dtype == xp.bool else x, axis=-1)
