"""Calls that are like an earlier one: the same options, and arrays of the same dtypes and shapes.

All that was checked and decided for the earlier call holds for them too, except the values, which a kernel checks. So
it is done once, as a compiler of traces does it, and a small call costs half. A call can be replayed if its arrays are
plain (`Library.plain`) and went to a kernel as they are, with nothing computed from them before or after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyloss import dispatch
from polyloss.application import Application
from polyloss.backends import InvalidTarget, Unavailable
from polyloss.reduction import Loss

__all__ = ["Replay", "record", "signature"]

MOST = 256
"""Calls that are remembered of one function."""

_OPTIONS = frozenset([int, float, bool, str, type(None)])


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """What two calls must share; None for a call that cannot be replayed."""
    found: list[Any] = []
    for x in args:
        library = dispatch.plain_type(type(x))
        one = None if library is None else library.signature(x)
        if one is None:
            return None
        found.append(one)
    if kwargs:
        for name, value in kwargs.items():
            if type(value) not in _OPTIONS:
                return None
            found.append((name, type(value), value))
    return tuple(found)


@dataclass(slots=True)
class Replay:
    """What a call has in common with the earlier ones of its signature."""

    like: Application
    positions: tuple[int | None, ...]  # of the application's arrays among the arguments
    sources: tuple[int, ...]  # of the results among the gradients of the application's arrays

    def __call__(self, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
        """The value and the gradients; None: this call must go the long way."""
        like = self.like
        library = like.library
        if dispatch.is_generic():
            return None
        work = like.on(*[None if i is None else args[i] for i in self.positions])
        try:
            value, gradients = like.kernel.value_and_vjp(work)  # type: ignore[union-attr]
        except (InvalidTarget, Unavailable):
            return None
        return library.result(library.number(value, work)), tuple([gradients[i] for i in self.sources])


def record(loss: Loss, args: tuple[Any, ...], results: tuple[Any, ...]) -> Replay | None:
    """The replay of a call that gave these gradients."""
    like, reduction = loss.items, loss.reduction
    if not isinstance(like, Application) or like.kernel is None or like.disposable or loss.gradients is None:
        return None
    if like.keep is not None or reduction.weights is not None or reduction.mass is not None:
        return None
    if not (reduction.denominator is None or isinstance(reduction.denominator, int)):
        return None
    at = {id(x): i for i, x in enumerate(args)}
    from_ = {id(g): i for i, g in enumerate(loss.gradients) if g is not None}
    if not all(x is None or id(x) in at for x in like.arrays) or not all(id(g) in from_ for g in results):
        return None
    positions = tuple(None if x is None else at[id(x)] for x in like.arrays)
    return Replay(like.without_arrays(), positions, tuple(from_[id(g)] for g in results))
