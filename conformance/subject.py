"""A loss under test: on one route, in one dtype, with what every law does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.compare import compare
from polyloss.conformance.losses import Row
from polyloss.conformance.routes import Route, rounded, to_numpy

__all__ = ["RESOLUTION", "Draw", "Subject"]

RESOLUTION = {"float64": 1e-13, "float32": 4e-6}


@dataclass(frozen=True)
class Draw:
    """From what a law draws its numbers."""

    seed: int = 0
    n: int = 3
    magnitude: float = 1.0

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def __str__(self) -> str:
        return f"seed={self.seed}, n={self.n}, magnitude={self.magnitude}"


@dataclass(frozen=True)
class Subject:
    """One row of the table of losses on a route, in a dtype."""

    row: Row
    route: Route
    dtype: str
    last: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The arrays and options of the last call, for a report."""

    def draw(self, draw: Draw, n: int | None = None) -> dict[str, np.ndarray]:
        """Arguments as the dtype holds them."""
        found = self.row.arguments(draw.seed, draw.n if n is None else n, "float64", draw.magnitude)
        return {name: rounded(x, self.dtype) for name, x in found.items()}

    def given(self, arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        self.last.clear()
        self.last.update(arguments | self.row.options | options)
        return self.route.arrays(self.last, self.dtype)

    def value(self, arguments: dict[str, Any], **options: Any) -> Any:
        with self.route.inside(self.dtype):
            return self.row.loss(**self.given(arguments, options))

    def items(self, arguments: dict[str, Any], **options: Any) -> np.ndarray:
        return to_numpy(self.value(arguments, reduction="none", **options))

    def value_and_gradients(self, arguments: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Any]]:
        """By the formula, in every parameter that the loss is differentiable in."""
        return self._differentiated(arguments, options, self.row.floating(arguments))

    def value_and_slope(self, arguments: dict[str, Any], **options: Any) -> tuple[Any, Any]:
        """The same in the first parameter alone, for which there are kernels whatever else might be differentiated."""
        value, gradients = self._differentiated(arguments, options, self.row.floating(arguments)[:1])
        return value, next(iter(gradients.values()))

    def _differentiated(
        self, arguments: dict[str, Any], options: dict[str, Any], wrt: tuple[str, ...]
    ) -> tuple[Any, dict[str, Any]]:
        with self.route.inside(self.dtype):  # another than that of the cell, where a law compares two
            value, gradients = polyloss.value_and_grad(self.row.loss, wrt)(**self.given(arguments, options))
        return value, dict(zip(wrt, gradients))

    def on(self, route: Route) -> Subject:
        """The same loss on another route."""
        return Subject(self.row, route, self.dtype, self.last)

    def close(self, got: Any, expected: Any, what: str, factor: float = 1.0) -> None:
        """Equal to rounding, measured at the largest number of the array; NaN and infinities in the same places."""
        exact = np.abs(to_numpy(expected).astype(np.float64))
        scale = np.max(exact, where=np.isfinite(exact), initial=1e-6)
        allowed = RESOLUTION[self.dtype] * (exact + scale * factor)
        compare(got, expected, what, self.dtype, allowed, scale)
