"""Losses of pairs of embeddings: similar ones together, dissimilar ones apart. `retrieval` has info_nce."""

from __future__ import annotations

from dataclasses import dataclass

from polyloss.backends import Array, Gradients, Library, Residuals, Wanted
from polyloss.gradients import differentiable
from polyloss.inputs import Call, differ, number
from polyloss.primitives import Formula
from polyloss.reduction import Loss, Reduction
from polyloss.vectors import has_features, norm

__all__ = ["contrastive", "contrastive_from_distance"]


@differentiable("first", "second", "similar")
def contrastive(
    first: Array,
    second: Array,
    similar: Array,
    *,
    margin: float = 1.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Contrastive loss of pairs of embeddings: similar ones together, others apart by a margin.

    Per pair, with ``d = ||first - second||`` and s = ``similar``::

        l = s d^2 + (1 - s) max(0, margin - d)^2

    Some libraries and papers call y = 0 similar; here the name says it: ``similar`` is 1 where the pair belongs
    together.

    Parameters
    ----------
    first, second : array [..., D]
        Real floating embeddings of the same shape.
    similar : array [...]
        Boolean, integer or floating, in [0, 1]: one value per pair.
    margin : float, default 1
        The distance from which on a dissimilar pair has no loss.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``similar`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    Where both embeddings coincide, or are infinitely apart, the gradient is 0, never NaN. It is differentiable in
    ``first``, ``second`` and floating ``similar``.

    References
    ----------
    R. Hadsell, S. Chopra, Y. LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006 (with the
    opposite label and a factor of 1/2).

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> first, second = np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([[0.3, 0.4], [0.3, 0.4]])
    >>> print(polyloss.contrastive(first, second, np.array([True, False]), reduction="none"))
    [0.25 0.25]
    """
    call = Call(first=first, second=second, similar=similar, weights=weights, where=where, denominator=denominator)
    primitive = MarginDistance(number("margin", margin))
    a, b = call.floating(first=first, second=second)
    b = call.same_shape("second", b, "first", a)
    has_features("first", a)
    reduce = Reduction(call, a, weights, where, reduction, denominator, axis=a.ndim - 1)
    s = _similar(call, similar, reduce)
    d, to_difference = norm(call, reduce.clean(a, rows=True) - reduce.clean(b, rows=True))

    def pull(gradient: Array, gs: Array | None) -> dict[str, Array | None]:
        g = to_difference(gradient)
        return {"first": g, "second": -g, "similar": gs}

    return reduce.of(reduce.apply(primitive, d, s), pull, target="similar")


@differentiable("distances", "similar")
def contrastive_from_distance(
    distances: Array,
    similar: Array,
    *,
    margin: float = 1.0,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """Contrastive loss of pairs whose distance is known.

    Per pair, with d the distance and s = ``similar``::

        l = s d^2 + (1 - s) max(0, margin - d)^2

    Parameters
    ----------
    distances : array, any shape
        Real floating, at least 0.
    similar : array, the shape of ``distances``
        Boolean, integer or floating, in [0, 1]: 1 where the pair belongs together.
    margin : float, default 1
        The distance from which on a dissimilar pair has no loss.
    {reduce}

    Returns
    -------
    array
        0-d, or the shape of ``distances`` with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    It is differentiable in ``distances`` and floating ``similar``.

    References
    ----------
    R. Hadsell, S. Chopra, Y. LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> print(polyloss.contrastive_from_distance(np.array([0.5, 0.25]), np.array([1, 0]), reduction="none"))
    [0.25   0.5625]
    """
    call = Call(distances=distances, similar=similar, weights=weights, where=where, denominator=denominator)
    primitive = MarginDistance(number("margin", margin))
    (d,) = call.floating(distances=distances)
    reduce = Reduction(call, d, weights, where, reduction, denominator)
    s = _similar(call, similar, reduce)
    d = reduce.clean(d)
    d = call.valid("distances", d, d < 0, "at least 0")
    return reduce.of(reduce.apply(primitive, d, s), lambda gd, gs: {"distances": gd, "similar": gs}, target="similar")


def _similar(call: Call, similar: Array, reduce: Reduction) -> Array:
    s = call.real("similar", similar)
    if differ(s.shape, reduce.shape):
        raise ValueError(f"similar must have shape {reduce.shape}, one value per pair, got {tuple(s.shape)}")
    s = reduce.each(s, "similar")
    return call.unit_interval("similar", reduce.clean(s))


@dataclass(frozen=True)
class MarginDistance(Formula):
    """``s d^2 + (1 - s) max(0, margin - d)^2`` per pair, for distances d and similarity s in [0, 1]."""

    margin: float = 1.0

    def _parts(self, library: Library, d: Array, s: Array) -> tuple[Array, Array]:
        """The distance where it counts, and how much is missing to the margin."""
        xp = library.xp
        short = self.margin - d
        largest = float(xp.finfo(d.dtype).max) ** 0.5  # beyond it the square is infinite, and 0 * inf = 0
        near = xp.where((s == 0) & (d > largest), xp.zeros_like(d), d)
        return near, xp.where(short <= 0, xp.zeros_like(short), short)

    def differentiable(self, library: Library, d: Array, s: Array) -> Array:
        near, short = self._parts(library, d, s)
        return (s * near) * near + ((1 - s) * short) * short  # 0 times a square that overflows would be NaN

    def vjp(
        self, library: Library, cotangent: Array, wanted: Wanted, residuals: Residuals, d: Array, s: Array
    ) -> Gradients:
        near, short = self._parts(library, d, s)
        gd = cotangent * 2 * (s * near - (1 - s) * short) if wanted[0] else None
        gs = cotangent * ((near - short) * (near + short)) if wanted[1] else None  # their squares may overflow
        return gd, gs
