"""The log-sum-exp cross-entropy on its kernels: which of `rows`, `split` and `soft`, and how a row is shared."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from polyloss.backends import Array, Bound, Gradients, Work
from polyloss.backends.cuda import compiled
from polyloss.backends.cuda.call import FLOATS, WHOLE, Factors, Value, cast, operand, room
from polyloss.backends.cuda.fields import BATCH, FORMS, MOST_BLOCKS, ROWS_BLOCK, SOFT_BLOCK, SPLIT_BLOCK

__all__ = ["Lse", "Shape", "shape_of"]

FEW = 128
"""The most classes that a part of a warp takes: by vectors where a row is a number of them, else one by one."""

SPLIT = 64
"""The most rows that are split among blocks, where they are long: more of them keep a device busy as they are."""

LONG = 512 * BATCH * 16
"""Bytes from which on a row is long: more than a block holds in registers."""

SIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
THREADS = 256  # of a block in which teams are parts of it


class Shape(NamedTuple):
    """How a launch covers the rows."""

    form: str
    lanes: int  # that share a row
    shelved: int  # batches in shared memory
    dynamic: int  # bytes of it

    def blocks(self, rows: int) -> int:
        """Of the launch."""
        return min(MOST_BLOCKS, rows if FORMS[self.form].block else -(-rows * self.lanes // THREADS))


@functools.lru_cache(maxsize=512)
def slices_of(classes: int, size: int, aligned: bool, even: bool, device: int) -> tuple[Shape, int]:
    """The form for the gradient alone, and into how many pieces a row is cut."""
    vectors = -(-classes * size // 16)
    most = FORMS["block256"].lanes * BATCH
    if classes <= FEW or not aligned or vectors <= most:
        return shape_of(classes, size, aligned, even, device), 1
    return Shape("block256", 256, 0, 0), -(-vectors // most)


@functools.lru_cache(maxsize=512)
def shape_of(classes: int, size: int, aligned: bool, even: bool, device: int, busy: bool = False) -> Shape:
    """The form for rows of so many classes of ``size`` bytes.

    ``aligned``: logits and gradient are so alike; ``even``: at the first row, to 16 bytes; ``busy``: no more than 256
    threads have the registers that they need.
    """
    if classes <= FEW:
        whole = aligned and even and classes * size % 16 == 0
        lanes, units = 1, classes * size // 16 if whole else classes
        while lanes * BATCH < units:
            lanes *= 2
        return Shape("few vectors" if whole else "few", lanes, 0, 0)
    if not aligned:
        return Shape("scalar block", 256, 0, 0)
    vectors = -(-classes * size // 16)
    for form in ("warp", "block64", "block128", "block256"):
        if vectors <= FORMS[form].lanes * BATCH:
            return Shape(form, FORMS[form].lanes, 0, 0)
    # Two blocks on a multiprocessor, one of which reads while the other writes, as long as most of a row is kept.
    batch = 256 * BATCH * 16
    alone, beside = room(device, 1024 if size < 8 and not busy else 2048)
    if vectors * 16 <= batch + beside // batch * batch + 2 * batch:
        form, most = "long256", beside
    else:
        form, most = "long256" if busy else "long512", alone
    lanes = FORMS[form].lanes
    batch = lanes * BATCH * 16
    shelved = min(-(-vectors * 16 // batch) - 1, most // batch)
    return Shape(form, lanes, shelved, shelved * batch)


class Lse:
    """The kernel for log-sum-exp cross-entropy."""

    def takes(self, work: Work, kind: str) -> bool:
        x, targets, c, mask = work.arrays
        axis, shape, stored = work.axis, x.shape, work.library.stored
        target_kind = stored(targets) or ""
        if target_kind in WHOLE:
            fits = targets.shape == shape[:axis] + shape[axis + 1 :]
        else:
            fits = target_kind in FLOATS and targets.shape == shape
        if c is not None:
            fits = fits and stored(c) in FLOATS and c.shape == shape[axis : axis + 1]
        if mask is not None:
            fits = fits and stored(mask) == "bool"
        work.stored = kind, target_kind
        return bool(fits) and shape[axis] <= 1 << 24  # single precision counts classes

    def value(self, work: Work, *, residuals: bool = False) -> tuple[Any, tuple[Array, ...]]:
        value, _, kept = self._compute(work, True, False, () if residuals else None)
        return value, kept

    def vjp(self, work: Work, residuals: tuple[Array, ...]) -> Gradients:
        return self._compute(work, False, True, residuals)[1]

    def value_and_vjp(self, work: Work) -> tuple[Any, Gradients]:
        value, gradients, _ = self._compute(work, True, True, None)
        return value, gradients

    def bound(self, work: Work, *, gradient: bool) -> Bound | None:
        return None

    def _compute(
        self, work: Work, value: bool, gradient: bool, residuals: tuple[Array, ...] | None
    ) -> tuple[Any, Gradients, tuple[Array, ...]]:
        """``residuals``: () asks for them, None does without, and others are used."""
        library, axis = work.library, work.axis
        x, y, c, mask = work.arrays
        kind, target_kind = work.stored
        dense = target_kind in FLOATS
        soft = dense or mask is not None or work.primitive.label_smoothing != 0
        last = axis == x.ndim - 1
        items = x.shape[:axis] + x.shape[axis + 1 :]
        x = x if last else _classes_last(library, x, axis)
        rows = math.prod(items)
        split = value and not soft and rows <= SPLIT and x.shape[-1] * SIZE[kind] > LONG
        in_place = last and work.disposable and value and gradient and library.is_contiguous(x)
        in_place = in_place and not split
        x = x if library.is_contiguous(x) else library.contiguous(x)
        g = x if in_place else library.empty(x.shape, x.dtype, x) if gradient else None
        if dense:
            y = y if last else _classes_last(library, y, axis)
        elif target_kind not in ("int32", "int64"):
            y, target_kind = cast(library, y, library.xp.int64), "int64"
        y = y if library.is_contiguous(y) else library.contiguous(y)
        c = c if c is None else operand(work, c, c.shape, work.dtype)
        w = work.weights if work.weights is None else operand(work, work.weights, items, work.dtype)
        keep = work.keep if work.keep is None else operand(work, work.keep, items)
        compute = self._soft if soft else self._split if split else self._rows
        left, kept = compute(work, items, (x, y, c, mask, w, keep, g), (kind, target_kind), value, residuals)
        if g is not None and not last:
            g = _classes_back(library, g, axis)
        return left, (g, None, None, None), kept

    def _rows(
        self,
        work: Work,
        items: tuple[int, ...],
        arrays: tuple[Any, ...],
        kinds: tuple[str, str],
        value: bool,
        residuals: tuple[Array, ...] | None,
    ) -> tuple[Any, tuple[Array, ...]]:
        library = work.library
        x, y, c, _, w, keep, g = arrays
        at, queue = library.address, library.queue(x)
        classes = x.shape[-1]
        rows = math.prod(items)
        if not value and not residuals:  # nothing was kept
            residuals = self._rows(work, items, (*arrays[:6], None), kinds, True, ())[1]
        if residuals == ():
            residuals = library.empty((rows,), work.dtype, x), library.empty((rows,), work.dtype, x)
        top, others = residuals or (None, None)
        x_at, g_at = at(x), 0 if g is None else at(g)
        aligned = g is None or (x_at - g_at) % 16 == 0
        key, pieces = (classes, SIZE[kinds[0]], aligned, x_at % 16 == 0, queue[0]), 1
        if value:
            shape = shape_of(*key)
        else:
            shape, pieces = slices_of(*key)
        blocks = shape.blocks(rows * pieces)
        left, given = Value(work, queue, items, blocks, value), Factors(work)
        parameters = ROWS_BLOCK.pack(
            x_at,
            at(y),
            0 if c is None else at(c),
            0 if w is None else at(w),
            0 if keep is None else at(keep),
            left.items_at,
            left.sums_at,
            left.result_at,
            0 if top is None else at(top),
            0 if others is None else at(others),
            g_at,
            given.scale_at,
            given.divisor_at,
            rows,
            classes,
            shape.lanes,
            shape.shelved,
            pieces,
            -(-classes // pieces),
            work.primitive.z_loss,
            given.scale_by,
            given.divide_by,
        )
        kernel = compiled.kernel("rows", *kinds, shape.form, value, g is not None)
        kernel(queue, blocks, parameters, shape.dynamic)
        return left.finished(work, given), residuals or ()

    def _split(
        self,
        work: Work,
        items: tuple[int, ...],
        arrays: tuple[Any, ...],
        kinds: tuple[str, str],
        value: bool,
        residuals: tuple[Array, ...] | None,
    ) -> tuple[Any, tuple[Array, ...]]:
        library = work.library
        x, y, c, _, w, keep, g = arrays
        at, queue = library.address, library.queue(x)
        classes, rows = x.shape[-1], math.prod(items)
        pieces = -(-classes * SIZE[kinds[0]] // LONG)
        parts = library.empty((4, rows * pieces), work.dtype, x)
        kept = tuple(library.empty((rows,), work.dtype, x) for _ in range(2))
        joiners = -(-rows * 32 // THREADS)
        left, given = Value(work, queue, items, joiners, True), Factors(work)
        parameters = SPLIT_BLOCK.pack(
            at(x),
            at(y),
            0 if c is None else at(c),
            0 if w is None else at(w),
            0 if keep is None else at(keep),
            left.items_at,
            left.sums_at,
            left.result_at,
            at(kept[0]),
            at(kept[1]),
            at(parts),
            given.divisor_at,
            rows,
            classes,
            pieces,
            work.primitive.z_loss,
            given.divide_by,
        )
        compiled.kernel("split", kinds[0], "", "block512")(queue, min(MOST_BLOCKS, rows * pieces), parameters)
        compiled.kernel("split", *kinds, "")(queue, joiners, parameters)
        if g is not None:
            self._rows(work, items, arrays, kinds, False, kept)
        return left.finished(work, given), kept

    def _soft(
        self,
        work: Work,
        items: tuple[int, ...],
        arrays: tuple[Any, ...],
        kinds: tuple[str, str],
        value: bool,
        residuals: tuple[Array, ...] | None,
    ) -> tuple[Any, tuple[Array, ...]]:
        library = work.library
        x, y, c, mask, w, keep, g = arrays
        at, queue = library.address, library.queue(x)
        classes = x.shape[-1]
        rows = math.prod(items)
        mask, mask_step = (None, 0) if mask is None else _class_mask(work, mask, items, classes)
        dense = kinds[1] in FLOATS
        x_at, y_at, g_at, size = at(x), at(y), 0 if g is None else at(g), SIZE[kinds[0]]
        aligned = g is None or (x_at - g_at) % 16 == 0
        aligned = aligned and not (dense and (x_at // size - y_at // SIZE[kinds[1]]) % (16 // size))
        shape = shape_of(classes, size, aligned, x_at % 16 == 0, queue[0], True)
        blocks = shape.blocks(rows)
        left, given = Value(work, queue, items, blocks, value), Factors(work)
        e = work.primitive.label_smoothing
        parameters = SOFT_BLOCK.pack(
            x_at,
            0 if dense else y_at,
            y_at if dense else 0,
            0 if c is None else at(c),
            0 if mask is None else at(mask),
            0 if w is None else at(w),
            0 if keep is None else at(keep),
            left.items_at,
            left.sums_at,
            left.result_at,
            g_at,
            given.scale_at,
            given.divisor_at,
            rows,
            classes,
            mask_step,
            shape.lanes,
            shape.shelved,
            1 - e,
            e,
            work.primitive.z_loss,
            given.scale_by,
            given.divide_by,
        )
        general = mask is not None or c is not None
        compiled.kernel("soft", *kinds, general, shape.form, g is not None)(queue, blocks, parameters, shape.dynamic)
        return left.finished(work, given), ()


def _classes_last(library: Any, x: Array, axis: int) -> Array:
    return library.xp.permute_dims(x, (*range(axis), *range(axis + 1, x.ndim), axis))


def _classes_back(library: Any, x: Array, axis: int) -> Array:
    last = x.ndim - 1
    return library.xp.permute_dims(x, (*range(axis), last, *range(axis, last)))


def _class_mask(work: Work, mask: Array, items: tuple[int, ...], classes: int) -> tuple[Array, int]:
    """The mask, one row of it where all are the same, and the step from row to row."""
    if not any(step for n, step in zip(items, work.library.strides(mask)) if n > 1):
        return operand(work, mask[(0,) * len(items)], (classes,)), 0
    return operand(work, mask, (*items, classes)), classes
