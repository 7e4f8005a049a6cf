"""The softplus cross-entropy on its kernel, `elements`: which arrays, seen how."""

from __future__ import annotations

import math
from typing import Any

from polyloss.backends import Array, Bound, Gradients, InvalidTarget, Work
from polyloss.backends.cpu import compiled
from polyloss.backends.cpu.call import FLOATS, WHOLE, WIDE, bound, is_small, run, space, value_of
from polyloss.backends.cpu.fields import BLOCK, ELEMENTS_BLOCK
from polyloss.backends.strided import views

__all__ = ["Softplus"]


class Softplus:
    """The kernel for softplus cross-entropy."""

    def takes(self, work: Work, kind: str) -> bool:
        targets, p = (*work.arrays[1:], None, None)[:2]
        stored = work.library.stored
        target_kind = WIDE[kind] if targets is None else stored(targets)
        if target_kind not in FLOATS and target_kind not in WHOLE:
            return False
        if p is not None and stored(p) not in FLOATS:
            return False
        work.stored = kind, target_kind
        return True

    def value(self, work: Work, *, residuals: bool = False) -> tuple[Any, tuple[Array, ...]]:
        return self._compute(work, True, False)[0], ()

    def vjp(self, work: Work, residuals: tuple[Array, ...]) -> Gradients:
        return self._compute(work, False, True)[1]

    def value_and_vjp(self, work: Work) -> tuple[Any, Gradients]:
        return self._compute(work, True, True)

    def bound(self, work: Work, *, gradient: bool) -> Bound | None:
        if len(work.arrays) < 2 or not is_small(work):
            return None
        e, factor, shape = work.primitive.label_smoothing, work.factor, work.arrays[0].shape
        size = math.prod(shape)
        blocks = -(-size // BLOCK)

        def pack(x: int, t: int, sums: int, g: int) -> bytes:
            absent = (0,) * 9
            return ELEMENTS_BLOCK.pack(x, size, 1, t, size, 1, *absent, g, 0, sums, size, size, 1 - e, e / 2, factor)

        kernel = compiled.kernel("elements", *work.stored, True, gradient)
        return bound(work, kernel, pack, blocks, gradient=gradient)

    def _compute(self, work: Work, value: bool, gradient: bool) -> tuple[Any, Gradients]:
        library = work.library
        x, t, p = work.arrays if len(work.arrays) == 3 else (*work.arrays, None, None)
        shape = x.shape
        size = math.prod(shape)
        operands = x, t, _cast(work, p), _cast(work, work.weights), work.keep
        seen, columns, _alive = views(library, shape, size, operands)
        g = library.empty(shape, x.dtype, x) if gradient else None
        blocks = -(-size // BLOCK)
        left, items_at, sums_at = space(work, shape, blocks) if value else (None, 0, 0)
        e = work.primitive.label_smoothing
        at = 0 if g is None else library.address(g)
        parameters = ELEMENTS_BLOCK.pack(*seen, at, items_at, sums_at, size, columns, 1 - e, e / 2, work.factor)
        bad = run(library, compiled.kernel("elements", *work.stored, value, gradient), parameters, blocks, size)
        if bad and not work.poison:
            raise InvalidTarget
        return value_of(work, left), (g, None, None)


def _cast(work: Work, x: Array | None) -> Array | None:
    return x if x is None or x.dtype == work.dtype else work.library.xp.astype(x, work.dtype)
