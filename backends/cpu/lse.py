"""The log-sum-exp cross-entropy on its kernels: which of `rows`, `soft` and `lanes`, on arrays seen how."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from polyloss.backends import Array, Bound, Gradients, InvalidTarget, Library, Work
from polyloss.backends.cpu import compiled
from polyloss.backends.cpu.call import FLOATS, WHOLE, bound, is_small, operand, run, space, value_of
from polyloss.backends.cpu.fields import FEW, LANES, LSE_BLOCK, LSE_LAYOUT, ROWS
from polyloss.backends.strided import rows_of

__all__ = ["Lse"]

LABELS = ("int32", "int64")
"""The dtypes of labels that kernels read; others become int64."""

_pack = LSE_BLOCK.pack
Steps = tuple[int, int, int, int]  # outer, inner, class; the number of inner rows


class Plan(NamedTuple):
    """What the layout alone decides."""

    form: str  # "rows" or "lanes"
    classes: int
    rows: int
    blocks: int
    layout: bytes


def _planned(form: str, classes: int, rows: int, x: Steps, g: Steps) -> Plan:
    inner = x[3]
    blocks = -(-rows // ROWS) if form == "rows" else rows // inner * -(-inner // LANES)
    return Plan(form, classes, rows, blocks, LSE_LAYOUT.pack(*x[:3], inner, rows, classes, *g[:3]))


@functools.lru_cache(maxsize=512)
def _contiguous(shape: tuple[int, ...], soft: bool) -> Plan:
    """The plan for contiguous predictions with the classes last."""
    *items, classes = shape
    rows = math.prod(items)
    steps = (0, classes, 1, rows)
    return _planned("lanes" if classes <= FEW and not soft else "rows", classes, rows, steps, steps)


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
            fits = fits and stored(c) in FLOATS and (c.shape == shape[axis : axis + 1] or _repeated(work, c))
        if mask is not None:
            fits = fits and stored(mask) == "bool"
        work.stored = kind, target_kind
        return bool(fits)

    def value(self, work: Work, *, residuals: bool = False) -> tuple[Any, tuple[Array, ...]]:
        value, _, kept = self._compute(work, True, False, () if residuals else None)
        return value, kept

    def vjp(self, work: Work, residuals: tuple[Array, ...]) -> Gradients:
        return self._compute(work, False, True, residuals)[1]

    def value_and_vjp(self, work: Work) -> tuple[Any, Gradients]:
        value, gradients, _ = self._compute(work, True, True, None)
        return value, gradients

    def bound(self, work: Work, *, gradient: bool) -> Bound | None:
        primitive, x = work.primitive, work.arrays[0]
        target_kind = work.stored[1]
        dense = target_kind in FLOATS
        if not is_small(work) or work.axis != x.ndim - 1 or not (dense or target_kind in LABELS):
            return None
        e, z, factor = primitive.label_smoothing, primitive.z_loss, work.factor
        plan = _contiguous(x.shape, dense or e != 0)
        kernel = _kernel(work, plan, target_kind, True, gradient)

        def pack(x: int, t: int, sums: int, g: int) -> bytes:
            labels, soft = (0, t) if dense else (t, 0)
            known = _pack(x, labels, soft, 0, 0, 0, 0, 0, sums, 0, 0, g, 0, 1 - e, e, z, factor)
            return known + plan.layout

        return bound(work, kernel, pack, plan.blocks, gradient=gradient)

    def _compute(
        self, work: Work, value: bool, gradient: bool, residuals: tuple[Array, ...] | None
    ) -> tuple[Any, Gradients, tuple[Array, ...]]:
        """``residuals``: () asks for them, None does without, and others are used."""
        library, primitive, axis = work.library, work.primitive, work.axis
        x, y, c, mask = work.arrays
        kind, target_kind = work.stored
        e = primitive.label_smoothing
        dense = target_kind in FLOATS
        soft = dense or mask is not None or e != 0
        in_place = work.disposable and value and gradient and not soft
        if axis == x.ndim - 1 and library.is_contiguous(x):
            g = x if in_place else library.empty(x.shape, x.dtype, x) if gradient else None
            plan = _contiguous(x.shape, soft)
        else:
            x, g, plan = _laid_out(library, x, axis, kind, soft, gradient, in_place)
        items = work.arrays[0].shape[:axis] + work.arrays[0].shape[axis + 1 :] if dense else y.shape
        if dense:
            y = _classes_last(library, y, axis)
        elif target_kind not in LABELS:
            y, target_kind = library.xp.astype(y, library.xp.int64), "int64"
        y = y if library.is_contiguous(y) else library.contiguous(y)
        c = c if c is None else operand(work, c[(0,) * (c.ndim - 1)], (plan.classes,), work.dtype)
        w = work.weights if work.weights is None else operand(work, work.weights, items, work.dtype)
        keep = work.keep if work.keep is None else operand(work, work.keep, items)
        mask, mask_step = (None, 0) if mask is None else _class_mask(work, mask, items, plan.classes)
        left, items_at, sums_at = space(work, items, plan.blocks) if value else (None, 0, 0)
        if residuals == ():
            residuals = tuple(library.empty((plan.rows,), work.dtype, x) for _ in range(2))
        top, others = residuals or (None, None)
        at = library.address
        parameters = _pack(
            at(x),
            0 if dense else at(y),
            at(y) if dense else 0,
            0 if c is None else at(c),
            0 if mask is None else at(mask),
            0 if w is None else at(w),
            0 if keep is None else at(keep),
            items_at,
            sums_at,
            0 if top is None else at(top),
            0 if others is None else at(others),
            0 if g is None else at(g),
            mask_step,
            1 - e,
            e,
            primitive.z_loss,
            work.factor,
        )
        kernel = _kernel(work, plan, target_kind, value, gradient)
        bad = run(library, kernel, parameters + plan.layout, plan.blocks, plan.rows * plan.classes)
        if bad and not work.poison:
            raise InvalidTarget
        if g is not None and x is not work.arrays[0]:  # a copy with the classes last
            g = _classes_back(library, g, axis)
        return value_of(work, left), (g, None, None, None), residuals or ()


def _kernel(work: Work, plan: Plan, target_kind: str, value: bool, gradient: bool) -> compiled.Kernel:
    """The kernel of that plan; ``target_kind``: of the targets as it reads them."""
    primitive, kind = work.primitive, work.stored[0]
    weighted, masked = (a is not None for a in work.arrays[2:])
    if target_kind in FLOATS or masked or primitive.label_smoothing:
        return compiled.kernel("soft", kind, target_kind, masked, weighted, value, gradient)
    if plan.form == "rows":
        return compiled.kernel("rows", kind, target_kind, value, gradient)
    plain = not weighted and work.weights is work.keep is None and not primitive.z_loss
    return compiled.kernel("lanes", kind, target_kind, plain, value, gradient)


def _laid_out(
    library: Library, x: Array, axis: int, kind: str, soft: bool, gradient: bool, in_place: bool
) -> tuple[Array, Array | None, Plan]:
    """Predictions that a kernel walks along as they are, or a copy with the classes last; an array for the gradient."""
    classes, rows = x.shape[axis], math.prod(x.shape) // x.shape[axis]
    steps = rows_of(x.shape, library.strides(x), axis)
    if steps is not None:
        g = x if in_place else library.xp.empty_like(x) if gradient else None
        g_steps = steps if g is None else rows_of(x.shape, library.strides(g), axis)
        if g_steps is not None and g_steps[3] == steps[3]:
            if steps[2] == g_steps[2] == 1 and (soft or classes > FEW):
                return x, g, _planned("rows", classes, rows, steps, g_steps)
            side_by_side = steps[1] == g_steps[1] == 1 and steps[3] >= LANES // 4 and kind in ("float32", "float64")
            side_by_side = side_by_side and classes <= 1 << 24  # lanes hold labels as floats
            if not soft and (classes <= FEW or side_by_side):
                return x, g, _planned("lanes", classes, rows, steps, g_steps)
    x = library.contiguous(_classes_last(library, x, axis))
    return x, library.empty(x.shape, x.dtype, x) if gradient else None, _contiguous(x.shape, soft)


def _classes_last(library: Library, x: Array, axis: int) -> Array:
    return library.xp.permute_dims(x, (*range(axis), *range(axis + 1, x.ndim), axis))


def _classes_back(library: Library, x: Array, axis: int) -> Array:
    last = x.ndim - 1
    return library.xp.permute_dims(x, (*range(axis), last, *range(axis, last)))


def _repeated(work: Work, c: Array) -> bool:
    """Whether class weights in the shape of the predictions, as the formula takes them, are one row for all."""
    x = work.arrays[0]
    if c.shape != x.shape or work.axis != x.ndim - 1 or 0 in c.shape:
        return False
    return not any(step for n, step in zip(c.shape[:-1], work.library.strides(c)) if n > 1)


def _class_mask(work: Work, mask: Array, items: tuple[int, ...], classes: int) -> tuple[Array, int]:
    """The mask, one row of it where all are the same, and the step from row to row."""
    if not any(step for n, step in zip(items, work.library.strides(mask)) if n > 1):
        return operand(work, mask[(0,) * len(items)], (classes,)), 0
    return operand(work, mask, (*items, classes)), classes
