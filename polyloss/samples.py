"""What a metric is told of a sample: scores, targets, which items count and how much, and which are undefined.

And its order, for the metrics of one: along the last axis, in one sort and a few passes. Every shape is that of the
scores, so that nothing depends on a value and a trace can follow it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from polyloss import dispatch
from polyloss.backends import Array
from polyloss.docstrings import complete
from polyloss.inputs import Call, axis_of, without
from polyloss.reduction import Reduction

__all__ = ["Ranking", "Sample", "accumulated", "class_labels", "indices", "mean", "metric", "ratio", "read"]

P = ParamSpec("P")


def metric(function: Callable[P, Array]) -> Callable[P, Array]:
    """Runs a metric in its library's scope, on arrays that are constants to its autodiff."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Array:
        constants = (
            tuple(dispatch.detached(x) for x in args),
            {name: dispatch.detached(x) for name, x in kwargs.items()},
        )
        with dispatch.scope(*args, *kwargs.values()):
            return function(*constants[0], **constants[1])

    return complete(run)


def read(call: Call, name: str, value: Any) -> tuple[Array, Array | None]:
    """Scores of any real dtype, and which of them are NaN (None: integers, which stay integers).

    They decide the dtype of the metric: that of floating ones, at least float32, or the library's default.
    """
    x, floating = call.array_and_kind(name, value)
    if floating:
        (x,) = call.floating(**{name: x})
        return x, x != x
    call.dtype = call.library.float_dtype(np.empty(0))
    _whole(call, name, value, x)
    if call.xp.isdtype(x.dtype, ("bool", "unsigned integer")):  # which not every library can sort
        shift, x = _shift(call, x), call.xp.astype(x, call.library.index_dtype())
        x = x ^ -shift if shift else x
    return x, None


def _whole(call: Call, name: str, value: Any, x: Array) -> None:
    """Refuses integers that the library of the call has cut to its range, where they would be ties."""
    if x is value or not (isinstance(value, np.ndarray) or dispatch.is_number_like(value)):
        return
    given = np.asarray(value)
    if given.dtype.kind == "b" or not given.size:
        return
    info = call.xp.iinfo(x.dtype)
    if given.min() < info.min or given.max() > info.max:
        raise ValueError(f"{name} must fit {x.dtype}, as {call.library.name} holds them here, got {given.dtype}")


def _shift(call: Call, x: Array) -> int:
    """What `read` subtracts from integers whose sign bit is a digit, so that they keep their order."""
    xp, bits = call.xp, call.xp.iinfo(call.library.index_dtype()).bits
    return 1 << (bits - 1) if xp.isdtype(x.dtype, "unsigned integer") and xp.iinfo(x.dtype).bits >= bits else 0


def indices(call: Call, name: str, value: Any) -> Array:
    """Class indices as signed integers."""
    y, floating = call.array_and_kind(name, value)
    if floating:
        raise TypeError(f"{name} are class indices and must be integer or boolean, got {y.dtype}")
    return call.signed(y)


def class_labels(call: Call, name: str, value: Any, of: Array, of_name: str, reduce: Reduction) -> tuple[Array, Array]:
    """Class indices for scores with the classes on the last axis, and which are out of range where none can look."""
    axis = axis_of(-1, of, of_name)
    y = call.labels(name, indices(call, name, value), without(of.shape, axis), axis, of, of_name)
    y = reduce.clean(y)
    invalid = (y < 0) | (y >= of.shape[axis])
    call.valid(name, y, invalid, f"class indices in [0, {of.shape[axis]})", given=value)
    return y, invalid


def mean(call: Call, right: Array, invalid: Array | None, reduce: Reduction) -> Array:
    """The weighted share of the items that are right; an invalid one is NaN."""
    items = call.cast(right)
    return reduce.value(items if invalid is None else call.xp.where(invalid, call.xp.full_like(items, math.nan), items))


def ratio(call: Call, numerator: Array, denominator: Array) -> Array:
    """A quotient that is NaN where the denominator is 0."""
    return numerator / call.xp.where(denominator != 0, denominator, call.xp.full_like(denominator, math.nan))


class Sample:
    """The items of one call: elements of the scores, each with a target."""

    def __init__(self, call: Call, name: str, scores: Any, weights: Any, where: Any) -> None:
        self.call, self.name = call, name
        x, undefined = read(call, name, scores)
        self._shift = _shift(call, call.array_and_kind(name, scores)[0])
        self.keep = None if where is None else call.leading("where", call.boolean("where", where), x)
        self.weights = None
        if weights is not None:
            self.weights = self.wide(call.leading("weights", call.real("weights", weights), x))
        self.x = self._clean(x)
        self._undefined = None if undefined is None else self._kept(undefined)

    def binary(self, targets: Any) -> Array:
        """Which targets are 1; all must be 0 or 1. NaN makes the metric NaN, as does another value on a device."""
        call = self.call
        t = call.same_shape("targets", call.real_as_given("targets", targets), self.name, self.x)
        if t.dtype == call.xp.bool:
            return t
        unknown, yes = self._kept(t != t), t == 1
        other = self._kept((t != 0) & ~yes & (t == t))
        call.valid("targets", t, other, "0 or 1")
        undefined = unknown | other
        self._undefined = undefined if self._undefined is None else self._undefined | undefined
        return yes

    def gains(self, relevance: Any) -> Array:
        """The relevance of the items, 0 for those that are left out."""
        call = self.call
        r = call.same_shape("relevance", call.real_as_given("relevance", relevance), self.name, self.x)
        r = self._clean(self.wide(r))
        return call.valid("relevance", r, r < 0, "at least 0")

    def above(self, limit: float) -> Array:
        """Which scores are above it, in their own dtype: floating ones round the limit, integers are not rounded."""
        call, x = self.call, self.x
        if call.xp.isdtype(x.dtype, "real floating"):
            return x > call.rounded(self.name, np.asarray(float(limit)))
        info = call.xp.iinfo(x.dtype)
        whole = math.floor(limit.item() if isinstance(limit, np.generic) else limit) - self._shift
        if whole < info.min:
            return call.xp.ones_like(x, dtype=call.xp.bool)
        return call.xp.zeros_like(x, dtype=call.xp.bool) if whole >= info.max else x > whole

    def counts(self, which: Array) -> Array:
        """What these items weigh, the others 0: booleans where nothing weighs."""
        which = self._kept(which)
        if self.weights is None:
            return which
        return self.call.xp.where(which, self.weights, self.call.xp.zeros_like(self.weights))

    def up_to_each(self, order: Ranking) -> Array:
        """The weight of the items up to each position of the order."""
        xp, x = self.call.xp, self.x
        if self.keep is None and self.weights is None:
            return xp.broadcast_to(self.call.library.positions(x) + 1, tuple(x.shape))
        return accumulated(self.call, order.sorted(self.counts(xp.ones_like(x, dtype=xp.bool))))

    def discounts(self, places: Array, k: int | None) -> Array:
        """``1 / log2(place + 1)`` for the first k places, counted from 1."""
        discount = 1 / self.call.xp.log2(self.wide(places) + 1)
        return discount if k is None else self.call.xp.where(places <= k, discount, self.call.xp.zeros_like(discount))

    def wide(self, x: Array) -> Array:
        """``x`` in the dtype in which long sums and products of counts are kept."""
        return self.call.xp.astype(x, self.call.library.wide_dtype(x), copy=False)

    def defined(self, value: Array, axis: int | tuple[int, ...] | None) -> Array:
        """The metric of the items along ``axis``, NaN where one of them is undefined."""
        if self._undefined is None:
            return value
        xp = self.call.xp
        undefined = xp.any(self._undefined, axis=axis)
        return xp.where(undefined, xp.full_like(value, math.nan), value)

    def result(self, value: Array) -> Array:
        """The metric as the caller gets it."""
        return self.call.library.result(self.call.cast(value))

    def _kept(self, which: Array) -> Array:
        return which if self.keep is None else which & self.keep

    def _clean(self, x: Array) -> Array:
        return x if self.keep is None else self.call.xp.where(self.keep, x, self.call.xp.zeros_like(x))


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
