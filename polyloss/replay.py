"""Calls that are like an earlier one: the same options, and arrays of the same dtypes and shapes.

All that was checked and decided for the earlier call holds for them too, except the values, which a kernel checks. So
it is done once, as a compiler of traces does it, and a small call costs half. A call can be replayed if its arrays went
to a kernel as they are, with nothing computed from them before or after, and if their library says by a signature what
a kernel may ask of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyloss import dispatch
from polyloss.application import Application
from polyloss.backends import Array, InvalidTarget, Unavailable, Work
from polyloss.reduction import Loss

__all__ = ["Replay", "Replays", "signature"]

MOST = 256
"""Calls that are remembered of one function."""

_OPTIONS = frozenset([int, float, bool, str, type(None)])


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """What two calls must share; None for a call that cannot be replayed."""
    found: list[Any] = []
    for x in args:
        library = dispatch.known(x)
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
    items: Callable[..., Array]  # of the application's arrays, by the formula

    def value(self, args: tuple[Any, ...]) -> Any:
        """The value, differentiable by the library's own autodiff; None: this call must go the long way."""
        if dispatch.is_generic():
            return None
        like = self.like
        library = like.library
        work = like.on(*[None if i is None else args[i] for i in self.positions])
        try:
            return library.result(library.run(like.kernel, work, self.items))  # type: ignore[arg-type]
        except (InvalidTarget, Unavailable):
            return None

    def value_and_gradients(self, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]] | None:
        """The value and the gradients of arguments that are detached, likewise."""
        if dispatch.is_generic():
            return None
        like = self.like
        library = like.library
        work: Work = like.on(*[None if i is None else args[i] for i in self.positions])
        try:
            value, gradients = like.kernel.value_and_vjp(work)  # type: ignore[union-attr]
        except (InvalidTarget, Unavailable):
            return None
        return library.result(library.number(value, work)), tuple([gradients[i] for i in self.sources])


class Replays(dict[tuple[Any, ...], "Replay | None"]):
    """The calls of one function, by their signatures; None for one that cannot be replayed."""

    def record(
        self,
        key: tuple[Any, ...],
        loss: Loss,
        formula: Callable[..., Loss],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        gradients: tuple[Any, ...] = (),
    ) -> None:
        """Remembers a call, which gave these gradients."""
        if key not in self:
            if len(self) >= MOST:
                self.clear()
            self[key] = _replay(loss, formula, args, kwargs, gradients)


def _replay(
    loss: Loss,
    formula: Callable[..., Loss],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gradients: tuple[Any, ...],
) -> Replay | None:
    like, reduction = loss.items, loss.reduction
    if not isinstance(like, Application) or like.kernel is None or like.disposable:
        return None
    if like.keep is not None or reduction.weights is not None or reduction.mass is not None:
        return None
    if not (reduction.denominator is None or isinstance(reduction.denominator, int)):
        return None
    at = {id(x): i for i, x in enumerate(args)}
    if not all(x is None or id(x) in at for x in like.arrays):
        return None
    positions = tuple(None if x is None else at[id(x)] for x in like.arrays)
    if not set(at.values()) <= set(positions):
        return None
    from_ = {id(g): i for i, g in enumerate(loss.gradients or ()) if g is not None}
    if not all(id(g) in from_ for g in gradients):
        return None
    options = {name: value for name, value in kwargs.items() if name != "denominator"} | {"reduction": "none"}

    def items(*arrays: Any) -> Array:
        given = dict(zip(positions, arrays))
        with dispatch.generic():
            return formula(*[given[i] for i in range(len(args))], **options).value()

    return Replay(like.without_arrays(), positions, tuple(from_[id(g)] for g in gradients), items)
