"""none, sum, mean: the one place where a loss is weighted, masked and reduced."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, Protocol

from polyloss.application import Application, Linear, as_they_are
from polyloss.backends import Array, Gradients, Wanted
from polyloss.inputs import Call, choice, is_known, without

__all__ = ["Items", "Loss", "Reduction"]

REDUCTIONS = ("none", "sum", "mean")


class Items(Protocol):
    """The losses per item, before they are computed."""

    def value(self) -> Array:
        """The items, differentiable by the library's own autodiff."""

    def value_and_vjp(self, cotangent: Array, wanted: Wanted) -> tuple[Array, Gradients]:
        """The items and the gradients of ``sum(cotangent * items)`` in predictions, targets, and so on."""

    def fused(self, wanted: Wanted | None = None, reduction: Linear | None = None) -> Items | None:
        """Itself, to be computed by a kernel, weighted and reduced, where there is one."""

    def fused_value(self) -> Array | None:
        """The value; None: a kernel cannot compute it after all."""

    def fused_value_and_vjp(self) -> tuple[Array, Gradients] | None:
        """The value and the gradients, likewise."""


class Reduction:
    """What ``weights``, ``where``, ``reduction`` and ``denominator`` make of the items of one call.

    It is linear in the items, with coefficients ``w / denominator`` that are known before any item is. So the cotangent
    of the items is known too, and value and gradient can be had in one pass.

    The items are the elements of ``like``, or its rows along ``axis``.
    """

    def __init__(
        self,
        call: Call,
        like: Array,
        weights: Any,
        where: Any,
        reduction: str,
        denominator: Any,
        *,
        axis: int | None = None,
    ) -> None:
        self.call, self.like, self.axis = call, like, axis
        self.shape = without(like.shape, axis)
        self.kind = choice("reduction", reduction, REDUCTIONS)
        if denominator is not None and self.kind != "mean":
            raise ValueError(f"denominator is for reduction='mean' alone, got reduction={reduction!r}")
        self.keep = None if where is None else call.leading("where", call.boolean("where", where), like, axis)
        self.weights = None if weights is None else call.leading("weights", call.real("weights", weights), like, axis)
        self.denominator: Array | int | None = None if denominator is None else self._scalar(denominator)
        self.mass: Callable[[], Array] | None = None
        self.mass_pull: Callable[[Array], dict[str, Array | None]] | None = None

    def _scalar(self, denominator: Any) -> Array:
        d = self.call.real("denominator", denominator)
        if d.ndim:
            raise ValueError(f"denominator must be a number or a 0-d array, got shape {tuple(d.shape)}")
        return d

    def each(self, x: Array, name: str = "") -> Array:
        """``x`` (the argument ``name``) for every item."""
        return self.call.library.broadcast(x, self.like, self.axis, (name, "the loss"))

    def mask(self, keep: Array) -> None:
        """Masks further items, as ``where`` does."""
        self.keep = keep if self.keep is None else self.keep & keep

    def weigh(self, mass: Callable[[], Array], pull: Callable[[Array], dict[str, Array | None]]) -> None:
        """``mass()`` multiplies the items' weights in the denominator (their losses are weighted already).

        Where the mass depends on a parameter, the mean does so through its denominator as well; ``pull`` takes the
        gradient in the mass to that parameter.
        """
        self.mass = mass
        self.mass_pull = pull if self.denominator is None else None

    def clean(self, x: Array, *, rows: bool = False) -> Array:
        """``x`` with 0 for the masked items, so that nothing of them reaches value or gradient.

        Masking the losses alone would not do: 0 * NaN comes back through the gradient.
        """
        if self.keep is None:
            return x
        keep = self.call.xp.expand_dims(self.keep, axis=-1) if rows else self.keep
        return self.call.xp.where(keep, x, self.call.xp.zeros_like(x))

    def apply(
        self,
        primitive: Any,
        *arrays: Array | None,
        prepare: Callable[..., tuple[Array | None, ...]] = as_they_are,
        axis: int = -1,
        disposable: bool = False,
    ) -> Application:
        """The primitive on these arrays, as they were given or as ``prepare`` makes them; see `Application`.

        ``disposable``: the predictions are the loss's own, and not needed once the gradient is known.
        """
        call = self.call
        if axis < 0:
            axis += arrays[0].ndim  # type: ignore[union-attr]
        application = Application(primitive, call.library, call.dtype, arrays, axis, self.keep, prepare=prepare)
        application.disposable = disposable
        return application

    def of(self, items: Items, pull: Callable[..., dict[str, Any]], target: str | None = None) -> Loss:
        """The loss. ``pull`` takes the gradients of the arrays to the parameters; ``target`` names the second array."""
        return Loss(self, items, pull, target)

    def value(self, items: Array) -> Array:
        """The items, weighted, masked and reduced."""
        return self.call.library.result(self._value(items))

    def _value(self, items: Array) -> Array:
        xp = self.call.xp
        items = self.clean(items)
        if self.weights is not None:
            items = self.clean(self.weights) * items
        if self.kind == "none":
            return items
        total = self.call.library.total(items)
        if self.kind == "sum":
            return total
        denominator = self._divisor()
        if isinstance(denominator, int):
            return total / denominator if denominator else total * math.nan
        some = denominator != 0
        mean = total / xp.where(some, denominator, xp.ones_like(denominator))
        return xp.where(some, mean, self.call.library.undefined(mean))

    def linear(self) -> tuple[Array | None, Any]:
        """The weights and the divisor, as a kernel takes them (see `Work`); None: the items are not summed."""
        if self.kind == "none":
            return self.weights, None
        if self.kind == "sum":
            return self.weights, 1.0
        divisor = self._divisor()
        if not isinstance(divisor, int):
            divisor = self.call.library.stop_gradient(divisor)
            if self.call.library.memory(divisor) != "host":  # a number of it would stall a device, or is not there yet
                return self.weights, divisor
        return self.weights, float(divisor)

    @property
    def constant(self) -> bool:
        """Whether the library's autodiff will ask for no derivative in the weights or the denominator."""
        weights, divisor = self.weights, self.denominator
        if weights is None and divisor is None:
            return True
        return not self.call.library.differentiates(weights, None if isinstance(divisor, int) else divisor)

    def cotangent(self) -> Array:
        """The derivative of the value in the items; of their sum for ``"none"``."""
        xp = self.call.xp
        one = self.call.full((), 1.0)
        w = one if self.weights is None else self.weights
        if self.kind == "mean":
            d = self._divisor()
            d = self.call.full((), float(d)) if isinstance(d, int) else d
            w = xp.where(d != 0, w / xp.where(d != 0, d, one), xp.zeros_like(w))
        return self.clean(self.each(w))

    def mass_gradients(self, value: Array) -> dict[str, Array | None]:
        """The gradients by way of the denominator."""
        if self.mass_pull is None or self.kind != "mean":
            return {}
        c = self.cotangent()
        return self.mass_pull(self.call.xp.where(c == 0, c, -value * c))  # the mean of nothing is NaN

    def _divisor(self) -> Array | int:
        """What a mean divides by: the denominator, or the sum of the items' weights."""
        if self.denominator is None:
            self.denominator = self._total_weight()
        return self.denominator

    def _total_weight(self) -> Array | int:
        """The sum of the items' weights; their plain count where nothing weighs or masks."""
        w = self.weights
        if self.mass is not None:
            mass = self.mass()
            w = mass if w is None else w * mass
        if w is None and self.keep is None and (not self.call.library.lazy or is_known(self.shape)):
            return math.prod(self.shape)
        if w is None:
            w = self.each(self.call.full((), 1.0))
        return self.call.library.total(self.clean(w))


@dataclass(slots=True)
class Loss:
    """One loss of one call, not computed yet: a formula that yields its value and its gradients."""

    reduction: Reduction
    items: Items
    pull: Callable[..., dict[str, Any]]
    target: str | None
    gradients: Gradients | None = None  # that a kernel has computed

    def value(self) -> Array:
        reduction = self.reduction
        if reduction.constant and (fused := self.items.fused(None, reduction)) is not None:
            value = fused.fused_value()
            if value is not None:
                return reduction.call.library.result(value)
        return reduction.value(self.items.value())

    @property
    def floating(self) -> Set[str]:
        """The parameters that are floating arrays in this call."""
        return self.reduction.call.floating_names

    def value_and_gradients(self, wrt: tuple[str, ...]) -> tuple[Array, tuple[Array, ...]]:
        """The value, and the gradients in these parameters."""
        reduction = self.reduction
        wanted = (True, self.target in wrt)
        fused = self.items.fused(wanted, reduction)
        found = None if fused is None else fused.fused_value_and_vjp()
        if found is not None:
            value, gradients = found
            self.gradients = gradients
            return reduction.call.library.result(value), self._in_parameters(wrt, gradients, {})
        items, gradients = self.items.value_and_vjp(reduction.cotangent(), wanted)
        value = reduction.value(items)
        return value, self._in_parameters(wrt, gradients, reduction.mass_gradients(value))

    def _in_parameters(
        self, wrt: tuple[str, ...], gradients: Gradients, more: dict[str, Array | None]
    ) -> tuple[Array, ...]:
        pulled = self.pull(*gradients)
        found = []
        for name in wrt:
            gradient = pulled[name]
            if callable(gradient):  # not computed for those who do not ask
                gradient = gradient()
            if name in more:
                gradient = gradient + more[name]
            found.append(self.reduction.call.result(name, gradient))
        return tuple(found)
