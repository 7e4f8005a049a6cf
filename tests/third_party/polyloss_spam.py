"""What polyloss must know of the arrays of `spam` beyond the array API standard: hooks of the contract."""

from __future__ import annotations

from typing import Any

import spam

from polyloss.backends import Library, Work
from polyloss.backends.numpy import LIBRARY as HOST

__all__ = ["LIBRARY"]


class Spam(Library):
    # Where arrays meet: in one tin. But a single number, a temperature for example, is taken from any.

    def device(self, x: spam.Array) -> Any:
        return x.device if x.ndim else None

    def moved(self, x: spam.Array, placed: dict[str, Any]) -> spam.Array:
        tin = placed.get("device", x.device)
        return x if x.device == tin else x.to_device(tin)

    # Arithmetic.

    def sum(self, x: spam.Array) -> spam.Array:
        """The library's own: exact, where the default is only pairwise."""
        return spam.sum(x, axis=-1)

    def matmul(self, a: spam.Array, b: spam.Array) -> spam.Array:
        """The library's own takes half of the digits by default."""
        return spam.matmul(a, b, precision="full")

    # Its memory is NumPy's, so that the kernels for host memory can compute in it.

    def stored(self, x: spam.Array) -> str | None:
        return HOST.stored(x.content)

    def address(self, x: spam.Array) -> int:
        return HOST.address(x.content)

    def strides(self, x: spam.Array) -> tuple[int, ...]:
        return HOST.strides(x.content)

    def is_contiguous(self, x: spam.Array) -> bool:
        return HOST.is_contiguous(x.content)

    def contiguous(self, x: spam.Array) -> spam.Array:
        return spam.Array(HOST.contiguous(x.content), x.device)

    def number(self, value: Any, work: Work) -> spam.Array:
        if work.divisor is None:
            return value
        return spam.asarray(HOST.number(value, work), dtype=work.dtype, device=work.arrays[0].device)


LIBRARY = Spam(spam)
