"""A primitive and the arrays of one call, not computed yet: by a kernel in one pass, or by the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from polyloss import dispatch
from polyloss.backends import Array, Gradients, InvalidTarget, Kernel, Unavailable, Wanted, Work

__all__ = ["Application", "Linear", "as_they_are"]


class Linear(Protocol):
    """A reduction: a sum of weighted items, over a number or a 0-d array."""

    def linear(self) -> tuple[Array | None, Any]:
        """The weights, None where all are 1; and the divisor, None where the items are not summed."""


def as_they_are(*arrays: Array | None) -> tuple[Array | None, ...]:
    """The arrays: nothing is to be prepared."""
    return arrays


@dataclass(slots=True)
class Application(Work):
    """A primitive on the arrays that the user gave.

    A kernel takes the arrays as they are. The formula takes what ``prepare`` makes of them: in the dtype of the
    computation, with masked items cleaned, values checked and the classes last.
    """

    prepare: Callable[..., tuple[Array | None, ...]] = as_they_are
    kernel: Kernel | None = None

    # By the formula, or for the value by a kernel: items, which are neither weighted nor reduced.

    def value(self) -> Array:
        """The items, differentiable by the library's own autodiff. A masked one holds any finite number."""
        if (fused := self.fused()) is not None and (items := fused.fused_value()) is not None:
            return items
        with self.library.scope(self.arrays[0]):
            return self.library.apply(self.primitive, *self.prepare(*self.arrays))

    def value_and_vjp(self, cotangent: Array, wanted: Wanted) -> tuple[Array, Gradients]:
        """The items, and the gradients of ``sum(cotangent * items)`` in the wanted arrays as they were given."""
        with self.library.scope(self.arrays[0]):
            arrays = self.prepare(*self.arrays)
            wanted += (False,) * (len(arrays) - len(wanted))
            items, gradients = self.library.value_and_vjp(self.primitive, cotangent, wanted, *arrays)
            return items, tuple(None if g is None else self._as_given(g) for g in gradients)

    # By a kernel: weighted and reduced.

    def fused(
        self, wanted: Wanted | None = None, reduction: Linear | None = None, scale: float = 1.0
    ) -> Application | None:
        """Itself, to be computed by a kernel, where there is one: the items, or with a reduction the loss.

        ``wanted``: the arrays whose gradient will be asked for; None: those in which the library's autodiff may ask.
        """
        library, arrays = self.library, self.arrays
        kernels = dispatch.kernels_for(library, arrays[0])
        if kernels is None:
            return None
        if wanted is None:
            wanted = tuple(map(library.differentiates, arrays)) if library.differentiates(*arrays) else ()
        self.wanted, self.scale = wanted, scale
        self.weights, self.divisor = (None, None) if reduction is None else reduction.linear()
        divisor = self.divisor
        if not (divisor is None or isinstance(divisor, float)) and library.memory(divisor) != library.memory(arrays[0]):
            return None
        self.kernel = kernels.take(self)
        return None if self.kernel is None else self

    def fused_value(self) -> Array | None:
        """The value, differentiable by the library's own autodiff; None: take the formula."""
        try:
            return self.library.run(self.kernel, self, _items(self))  # type: ignore[arg-type]
        except (InvalidTarget, Unavailable):
            self._check()
            return None

    def fused_value_and_vjp(self) -> tuple[Array, Gradients] | None:
        """The value and the gradients of the arrays as they were given; None: take the formula."""
        try:
            value, gradients = self.kernel.value_and_vjp(self)  # type: ignore[union-attr]
        except (InvalidTarget, Unavailable):
            self._check()
            return None
        return self.library.number(value, self), gradients

    def without_arrays(self) -> Application:
        """What is left when the arrays are gone: the options, the layout of the call, the kernel."""
        return Application(
            self.primitive,
            self.library,
            self.dtype,
            (),
            self.axis,
            wanted=self.wanted,
            divisor=self.divisor,
            stored=self.stored,
            kernel=self.kernel,
        )

    def _check(self) -> None:
        """Raises the error that names the invalid value, if there is one."""
        with self.library.scope(self.arrays[0]):
            self.prepare(*self.arrays)

    def _as_given(self, gradient: Array) -> Array:
        """A gradient of the formula, whose classes are last, with them where they were."""
        last, axis = gradient.ndim - 1, self.axis
        if not self.primitive.rows or axis == last or gradient.ndim != self.arrays[0].ndim:
            return gradient
        return self.library.xp.permute_dims(gradient, (*range(axis), last, *range(axis, last)))


def _items(application: Application) -> Callable[..., Array]:
    """The items as plain array code, as a function that holds none of the arrays."""
    primitive, library, prepare = application.primitive, application.library, application.prepare

    def items(*arrays: Any) -> Array:
        return primitive.differentiable(library, *prepare(*arrays))

    return items
