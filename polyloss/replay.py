"""Calls that are like an earlier one: the same options, and arrays of the same dtypes and shapes.

All that was checked and decided for the earlier call holds for them too, except the values, which a kernel checks. So
it is done once, as a compiler of traces does it, and a small call costs half. A call can be replayed if its arrays went
to a kernel as they are, with nothing computed from them before or after, and if their library says by a signature what
a kernel may ask of them. Or its library compiles a call as a whole.

A small call that is like the one just before, in the layout of its arrays too, need not even find its signature: a
`Shortcut` goes from one look at the arrays to the kernel, of which all but their addresses is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyloss import dispatch
from polyloss.application import Application
from polyloss.backends import Array, InvalidTarget, Kernel, Unavailable, Work
from polyloss.reduction import Loss

__all__ = ["Replay", "Replays", "Shortcut", "Whole", "signature"]

MOST = 256
"""Calls that are remembered of one function."""

_OPTIONS = frozenset([int, float, bool, str, type(None)])


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """What two calls must share; None for a call that cannot be replayed."""
    if len({*map(id, args)}) < len(args):  # which of them an array of the kernel was cannot be told
        return None
    found: list[Any] = []
    for x in args:
        one = _signature(x)
        if one is None:
            return None
        found.append(one)
    if kwargs:
        for name, value in kwargs.items():
            if type(value) in _OPTIONS:
                found.append((name, type(value), value))
            else:
                one = _signature(value)
                if one is None:
                    return None
                found.append((name, one))
    return tuple(found)


def _signature(x: Any) -> Any:
    library = dispatch.known(x)
    if library is None:
        if x is None or dispatch.is_number_like(x):
            return None
        try:
            library = dispatch.library_of(x)
        except TypeError:  # the loss will name the argument
            return None
    return library.signature(x)


Once = Callable[..., tuple[Loss, Any, tuple[Any, ...] | None]]
"""A call gone the long way: what was computed, the result of the call, and the gradients in it, if there are any."""


class Shortcut(NamedTuple):
    """How a call is repeated: one of two arrays that are like those of an earlier call, with the same options."""

    compute: Callable[[Array, Array], Any]
    is_like: Callable[[Array, Array], bool]
    options: dict[str, Any]

    def serves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call is such a one."""
        options = self.options
        if len(args) != 2 or len(kwargs) != len(options):
            return False
        for name, value in kwargs.items():
            if name not in options or type(value) is not type(options[name]) or value != options[name]:
                return False
        return self.is_like(*args)


@dataclass(slots=True)
class Replay:
    """What a call has in common with the earlier ones of its signature, for a kernel."""

    kernel: Kernel
    like: Application
    positions: tuple[int | None, ...]  # of the application's arrays among the arguments
    sources: tuple[int, ...] | None  # of the results among the gradients of the application's arrays; None: a value
    items: Callable[..., Array]  # of the application's arrays, by the formula
    shortcut: Shortcut | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value, or the value and a tuple of gradients; None: this call must go the long way."""
        kernel, like = self.kernel, self.like
        library = like.library
        work = like.on(*[None if i is None else args[i] for i in self.positions])
        try:
            if self.shortcut is None or not self.shortcut.is_like(*args):
                self.shortcut = self._shortcut(work, args, kwargs)
            if self.sources is None:
                return library.result(library.run(kernel, work, self.items))
            value, gradients = kernel.value_and_vjp(work)
        except (InvalidTarget, Unavailable):
            return None
        return library.result(library.number(value, work)), tuple([gradients[i] for i in self.sources])

    def _shortcut(self, work: Work, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shortcut | None:
        if len(args) != 2 or self.positions[:2] != (0, 1) or self.sources not in (None, (0,)):
            return None
        library = work.library
        compute = self._with_gradient(work) if self.sources else library.bound(self.kernel, work, self.items)
        is_like = None if compute is None else library.guard(*args)
        return None if compute is None or is_like is None else Shortcut(compute, is_like, kwargs)

    def _with_gradient(self, work: Work) -> Callable[[Array, Array], Any] | None:
        bound = self.kernel.bound(work, gradient=True)
        if bound is None:
            return None
        library, like = work.library, work.on()

        def compute(x: Array, t: Array) -> tuple[Array, tuple[Array | None]]:
            value, gradient = bound(x, t)
            return library.result(library.number(value, like)), (gradient,)

        return compute


@dataclass(slots=True)
class Whole:
    """A call that its library compiles as a whole."""

    compiled: Callable[..., Any]  # of the positional arguments, and of the arrays among the others
    shortcut: Shortcut | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Likewise."""
        return self.compiled(args, {name: value for name, value in kwargs.items() if type(value) not in _OPTIONS})


class Replays(dict[tuple[Any, ...], Replay | Whole | None]):
    """The calls of one function, by their signatures; None for one that cannot be replayed."""

    def __init__(self, once: Once, formula: Callable[..., Loss]) -> None:
        self._once, self._formula = once, formula
        self._latest: Shortcut | None = None

    def clear(self) -> None:
        super().clear()
        self._latest = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call, by the shortest way. torch.compile must not trace it."""
        if dispatch.is_generic():  # there a call says nothing about the next
            return self._once(*args, **kwargs)[1]
        latest = self._latest
        if latest is not None and latest.serves(args, kwargs):
            try:
                return latest.compute(*args)
            except (InvalidTarget, Unavailable):
                pass
        key = signature(args, kwargs)
        if key is not None and (result := self._again(key, args, kwargs)) is not None:
            return result
        loss, result, gradients = self._once(*args, **kwargs)
        if key is not None and key not in self:
            self._keep(key, self._replay(loss, args, kwargs, gradients))
        return result

    def _again(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call with that signature; None: it must go the long way."""
        replay = self.get(key)
        if replay is None and key not in self and (replay := self._whole(args, kwargs)) is not None:
            self._keep(key, replay)
        if replay is None:
            return None
        result = replay(args, kwargs)
        self._latest = replay.shortcut
        return result

    def _whole(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Whole | None:
        """A first call as a whole, where all its arrays are of one library, which compiles it."""
        options = {name: value for name, value in kwargs.items() if type(value) in _OPTIONS}
        libraries = {dispatch.library_of(x) for x in (*args, *kwargs.values()) if type(x) not in _OPTIONS}
        if len(libraries) != 1:
            return None
        once = self._once
        compiled = libraries.pop().compiled(lambda args, arrays: once(*args, **arrays, **options)[1])
        return None if compiled is None else Whole(compiled)

    def _keep(self, key: tuple[Any, ...], replay: Replay | Whole | None) -> None:
        if len(self) >= MOST:
            self.clear()
        self[key] = replay

    def _replay(
        self, loss: Loss, args: tuple[Any, ...], kwargs: dict[str, Any], gradients: tuple[Any, ...] | None
    ) -> Replay | None:
        like, reduction = loss.items, loss.reduction
        if not isinstance(like, Application) or like.kernel is None or like.disposable:
            return None
        if like.keep is not None or reduction.weights is not None or reduction.mass is not None:
            return None
        if not (reduction.denominator is None or isinstance(reduction.denominator, int)):
            return None
        if like.divisor != reduction.linear()[1]:  # the kernel of the reduced loss was not available: that of the items
            return None
        if not all(type(value) in _OPTIONS for value in kwargs.values()):  # an array by name may be one of the others
            return None
        at = {id(x): i for i, x in enumerate(args)}
        if not all(x is None or id(x) in at for x in like.arrays):
            return None
        positions = tuple(None if x is None else at[id(x)] for x in like.arrays)
        if not set(at.values()) <= set(positions):
            return None
        sources = None
        if gradients is not None:
            found = {id(g): i for i, g in enumerate(loss.gradients or ()) if g is not None}
            if not all(id(g) in found for g in gradients):
                return None
            sources = tuple(found[id(g)] for g in gradients)
        options = {name: value for name, value in kwargs.items() if name != "denominator"} | {"reduction": "none"}
        formula, count = self._formula, len(args)  # not args: this lives as long as the function

        def items(*arrays: Any) -> Array:
            given = dict(zip(positions, arrays))
            with dispatch.generic():
                return formula(*[given[i] for i in range(count)], **options).value()

        return Replay(like.kernel, like.without_arrays(), positions, sources, items)
