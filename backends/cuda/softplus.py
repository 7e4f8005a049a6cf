"""The softplus cross-entropy on its kernel, `elements`: which arrays, seen how."""

from __future__ import annotations

import math
from typing import Any

from polyloss.backends import Array, Bound, Gradients, Work
from polyloss.backends.cuda import compiled
from polyloss.backends.cuda.call import FLOATS, WHOLE, WIDE, Factors, Value, cast
from polyloss.backends.cuda.fields import ELEMENTS_BLOCK, MOST_BLOCKS
from polyloss.backends.strided import views

__all__ = ["Softplus"]

THREADS = 256


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
        return None

    def _compute(self, work: Work, value: bool, gradient: bool) -> tuple[Any, Gradients]:
        library = work.library
        kind, target_kind = work.stored
        x, t, p = work.arrays if len(work.arrays) == 3 else (*work.arrays, None, None)
        queue = library.queue(x)
        shape = x.shape
        size = math.prod(shape)
        seen, columns, alive = views(library, shape, size, (x, t, _cast(work, p), _cast(work, work.weights), work.keep))
        g = library.empty(shape, x.dtype, x) if gradient else None
        g_at = 0 if g is None else library.address(g)
        form = "scalars"
        if seen[2] == 1 and seen[1] == columns and (seen[0] | g_at) & 15 == 0:
            plain = p is None and work.weights is None and work.keep is None and columns == size
            plain = plain and (t is None or (target_kind == kind and seen[5] == 1 and seen[3] & 15 == 0))
            form = "plain" if plain else "vectors"
        each = 1 if form == "scalars" else 16 // (8 if kind == "float64" else 4 if kind == "float32" else 2)
        blocks = min(MOST_BLOCKS, max(1, -(-size // (each * THREADS))))
        left, given = Value(work, queue, shape, blocks, value), Factors(work)
        e = work.primitive.label_smoothing
        parameters = ELEMENTS_BLOCK.pack(
            seen[0],
            seen[3],
            seen[6],
            seen[9],
            seen[12],
            g_at,
            left.items_at,
            left.sums_at,
            left.result_at,
            given.scale_at,
            given.divisor_at,
            size,
            columns,
            *seen[1:3],
            *seen[4:6],
            *seen[7:9],
            *seen[10:12],
            *seen[13:15],
            1 - e,
            e / 2,
            given.scale_by,
            given.divide_by,
        )
        compiled.kernel("elements", kind, target_kind if t is not None else kind, form, value, gradient)(
            queue, blocks, parameters
        )
        del alive
        return left.finished(work, given), (g, None, None)


def _cast(work: Work, x: Array | None) -> Array | None:
    return x if x is None else cast(work.library, x, work.dtype)
