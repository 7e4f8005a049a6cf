"""The two hot primitives: value and vjp, written against the array API alone.

A loss of this family is ``Q Phi(s) - <q, s>``, with Phi = softplus (one logit) or Phi = log-sum-exp (a row of them).
The target comes along because only the fused form can be computed without subtracting two numbers that nearly cancel,
and that is what keeps every digit that the input determines.

These formulas are the definition, the generic path, and what a kernel is measured against. They know nothing of
weights, masks of items or reductions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyloss.backends import Array, Gradients, Library, Residuals, Wanted

__all__ = ["Formula", "LseCrossEntropy", "Row", "SoftplusCrossEntropy", "minus_abs", "one_hot", "over_limit", "row"]


class Formula(ABC):
    """A primitive whose forward pass is its plain formula, and that keeps no residuals."""

    rows = False

    @abstractmethod
    def differentiable(self, library: Library, *arrays: Any) -> Array:
        """The items; see `polyloss.backends.Primitive`."""

    def forward(self, library: Library, *arrays: Array | None) -> tuple[Array, tuple[Array, ...]]:
        return self.differentiable(library, *arrays), ()

    @abstractmethod
    def vjp(self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, *arrays: Any) -> Gradients:
        """The gradients; see `polyloss.backends.Implementation`."""


def minus_abs(library: Library, x: Array) -> Array:
    """-|x|, whose derivative at 0 is -1 in every library (that of ``abs`` is 0, or an average)."""
    return library.xp.where(x >= 0, -x, x)


def over_limit(library: Library, weight: Array, x: Array) -> Array:
    """``x``, but 0 where it is infinite and ``weight`` is 0: the convention 0 * inf = 0, also in the derivative."""
    xp = library.xp
    return xp.where((weight == 0) & (x == math.inf), xp.zeros_like(x), x)


@dataclass(frozen=True)
class SoftplusCrossEntropy(Formula):
    """``a softplus(-x) + b softplus(x)`` per element, for logits x, targets t and positive weights p.

    With label smoothing e, ``a = p (t (1 - e) + e/2)`` and ``b = (1 - t)(1 - e) + e/2``. Smoothing belongs here because
    ``1 - t'`` of a smoothed target t' has lost digits. Targets None stand for 1 everywhere, which leaves softplus(-x).
    """

    label_smoothing: float = 0.0

    def _coefficients(self, library: Library, x: Array, t: Array | None, p: Array | None) -> tuple[Array, Array]:
        if t is None:
            return library.xp.ones_like(x), library.xp.zeros_like(x)
        e = self.label_smoothing
        a, b = (t * (1 - e) + e / 2, (1 - t) * (1 - e) + e / 2) if e else (t, 1 - t)
        return (a if p is None else p * a), b

    def differentiable(self, library: Library, x: Array, t: Array | None = None, p: Array | None = None) -> Array:
        xp = library.xp
        a, b = self._coefficients(library, x, t, p)
        n = minus_abs(library, x)
        c = xp.where(x >= 0, b, a)
        # c |x| + (a + b) log1p(exp(-|x|)): neither term is negative.
        return c * over_limit(library, c, -n) + (a + b) * xp.log1p(xp.exp(n))

    def vjp(
        self,
        library: Library,
        cotangent: Array,
        wanted: Wanted,
        residuals: Residuals,
        x: Array,
        t: Array | None = None,
        p: Array | None = None,
    ) -> Gradients:
        xp = library.xp
        a, b = self._coefficients(library, x, t, p)
        up = x >= 0
        e = xp.exp(minus_abs(library, x))
        near, far = 1 / (1 + e), e / (1 + e)  # sigmoid(|x|), sigmoid(-|x|)
        zero = xp.zeros_like(x)
        gx = cotangent * (b * xp.where(up, near, far) - a * xp.where(up, far, near)) if wanted[0] else None
        gt = gp = None
        keep = 1 - self.label_smoothing
        if t is not None and wanted[1]:
            if p is None:  # softplus(-x) - softplus(x) = -x
                gt = cotangent * -(keep * x)
            else:
                tail = xp.log1p(e)
                gt = cotangent * keep * (p * (xp.where(up, zero, -x) + tail) - (xp.where(up, x, zero) + tail))
        if p is not None and wanted[2]:
            smooth = self._coefficients(library, x, t, None)[0]
            gp = cotangent * smooth * over_limit(library, smooth, xp.where(up, zero, -x) + xp.log1p(e))
        return gx, gt, gp


def one_hot(library: Library, x: Array, labels: Array) -> Array:
    """Class indices as rows of the shape and dtype of ``x``; NaN for an index out of range."""
    xp = library.xp
    label = xp.expand_dims(labels, axis=-1)
    hot = xp.where(label == library.positions(x), xp.ones_like(x), xp.zeros_like(x))
    return xp.where((label < 0) | (label >= x.shape[-1]), library.undefined(hot), hot)


class Row(NamedTuple):
    """A row of logits, seen from its maximum. Every array keeps the class axis (size 1 where it is reduced)."""

    is_top: Array  # one index at which the maximum is reached
    top: Array  # the maximum
    gap: Array  # top - x, never negative; exactly 0 at the top
    exps: Array  # exp(-gap)
    others: Array  # the sum of exps without the top: lse(x) = top + log1p(others)


def row(library: Library, x: Array, *, constant_top: bool = False, others: Array | None = None) -> Row:
    """`Row` of the last axis of ``x``.

    ``others`` leaves out one index at which the maximum is reached, so that ``log1p(others)`` keeps its digits when the
    row is confident. Two infinite logits, no finite one, or a NaN make ``others`` NaN, and with it all that follows.

    What autodiff makes of it differs at the top, where a derivative ``T p - t`` must be formed one way or the other
    (see `LseCrossEntropy`): by default the derivative flows through ``top`` (a gather, hence to one index), and the
    gradient at the top is minus the sum of the others'. With ``constant_top`` it flows through the top's own ``gap``
    and exponential instead, and the gradient at the top is computed there alone.
    """
    xp = library.xp
    is_top = xp.expand_dims(xp.argmax(x, axis=-1), axis=-1) == library.positions(x)
    zero = xp.zeros_like(x)
    top = xp.sum(xp.where(is_top, x, zero), axis=-1, keepdims=True)
    fixed = is_top
    if constant_top:
        top = library.stop_gradient(top)
        fixed = is_top & (top == math.inf)
    gap = xp.where(fixed, zero, library.spread(top, x) - x)
    exps = xp.exp(-gap)
    if others is None:
        others = xp.expand_dims(library.sum(xp.where(is_top, zero, exps)), axis=-1)
        if constant_top:  # adds exactly 0, with the derivative of the top's own exponential
            others = others + (xp.sum(xp.where(is_top, exps, zero), axis=-1, keepdims=True) - 1)
        others = xp.where((top == -math.inf) | (top != top), library.undefined(others), others)
    return Row(is_top, top, gap, exps, others)


@dataclass(frozen=True)
class LseCrossEntropy:
    """``sum_k q_k (lse(x) - x_k) + z lse(x)^2`` per row of logits x, with weighted target rows ``q = c t``.

    Targets are class indices without the class axis (an index out of range makes its item NaN) or rows t of
    probabilities. With label smoothing e over the n classes that the mask keeps, t becomes ``t (1 - e) + e/n``. Class
    weights c and the mask have the logits' shape.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    rows = True

    def _targets(self, library: Library, x: Array, targets: Array, mask: Array | None) -> Array:
        """The rows t, smoothed; NaN for an invalid label."""
        xp = library.xp
        t = targets if targets.ndim == x.ndim else one_hot(library, x, targets)
        if e := self.label_smoothing:
            if mask is None:
                t = t * (1 - e) + e / x.shape[-1]
            else:
                kept = xp.astype(mask, x.dtype)
                n = xp.expand_dims(library.sum(kept), axis=-1)
                t = t * (1 - e) + kept * (e / xp.where(n > 0, n, xp.ones_like(n)))
        return t

    def _masked(self, library: Library, x: Array, mask: Array | None) -> Array:
        return x if mask is None else library.xp.where(mask, x, library.xp.full_like(x, -math.inf))

    def _items(self, library: Library, r: Row, q: Array) -> Array:
        linear = library.sum(q * over_limit(library, q, r.gap))
        return linear + library.sum(q) * library.xp.log1p(r.others[..., 0])

    def forward(
        self, library: Library, x: Array, targets: Array, c: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        t = self._targets(library, x, targets, mask)
        r = row(library, self._masked(library, x, mask))
        items = self._items(library, r, t if c is None else c * t)
        if self.z_loss:
            items = items + self.z_loss * (r.top + library.xp.log1p(r.others))[..., 0] ** 2
        return items, (r.others,)

    def differentiable(
        self, library: Library, x: Array, targets: Array, c: Array | None = None, mask: Array | None = None
    ) -> Array:
        xp = library.xp
        t = self._targets(library, x, targets, mask)
        q = t if c is None else c * t
        x = self._masked(library, x, mask)
        through, around = row(library, x), row(library, x, constant_top=True)
        # The same number twice, with the derivative at the top computed from either side; see `vjp`.
        at_top = xp.sum(xp.where(through.is_top, q, xp.zeros_like(q)), axis=-1)
        choose = (at_top > library.sum(q) / 2) | (through.top[..., 0] == math.inf)
        items = xp.where(choose, self._items(library, through, q), self._items(library, around, q))
        if self.z_loss:
            best = xp.where(through.top == math.inf, through.top, around.top)
            items = items + self.z_loss * (best + xp.log1p(around.others))[..., 0] ** 2
        return items

    def vjp(
        self,
        library: Library,
        cotangent: Array,
        wanted: Wanted,
        residuals: Residuals,
        x: Array,
        targets: Array,
        c: Array | None = None,
        mask: Array | None = None,
    ) -> Gradients:
        xp = library.xp
        cotangent = xp.expand_dims(cotangent, axis=-1)
        t = self._targets(library, x, targets, mask)
        q = t if c is None else c * t
        r = row(library, self._masked(library, x, mask), others=None if residuals is None else residuals[0])
        gx = gt = gc = None
        if wanted[0]:
            gx = cotangent * self._slope(library, r, q)
            if mask is not None:
                gx = xp.where(mask, gx, xp.zeros_like(gx))
        if wanted[1] or (c is not None and wanted[2]):
            lead = over_limit(library, q, r.gap) + xp.log1p(r.others)  # lse(x) - x_k
            if wanted[1]:
                gt = cotangent * (1 - self.label_smoothing) * (lead if c is None else c * lead)
            if c is not None and wanted[2]:
                gc = cotangent * t * lead
        return gx, gt, gc, None

    def _slope(self, library: Library, r: Row, q: Array) -> Array:
        """``(Q + 2 z lse) p - q``, with Q the sum of q.

        At the top, ``Q p - q`` cancels. Where more than half of Q lies there it is formed as ``rest - Q s/(1 + s)``
        (rest the sum of the other q, s that of the other exponentials), elsewhere as ``Q/(1 + s) - q``: each is inexact
        only where the other is exact.
        """
        xp = library.xp
        zero = xp.zeros_like(q)
        total = xp.expand_dims(library.sum(q), axis=-1)
        rest = xp.expand_dims(library.sum(xp.where(r.is_top, zero, q)), axis=-1)
        at_top = xp.sum(xp.where(r.is_top, q, zero), axis=-1, keepdims=True)
        norm = 1 + r.others
        top = xp.where(at_top > total / 2, rest - total * (r.others / norm), total / norm - at_top)
        slope = xp.where(r.is_top, top, total * (r.exps / norm) - q)
        if self.z_loss:
            p = r.exps / norm
            slope = slope + 2 * self.z_loss * over_limit(library, p, r.top + xp.log1p(r.others)) * p
        return slope
