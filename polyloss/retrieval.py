"""The loss that finds each query's positive among its candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyloss.application import Application, Linear
from polyloss.backends import Array, Gradients, Wanted
from polyloss.dispatch import is_number_like
from polyloss.gradients import differentiable
from polyloss.inputs import Call, choice, differ, known_size, number
from polyloss.primitives import LseCrossEntropy
from polyloss.reduction import Loss, Reduction
from polyloss.vectors import has_features, unit

__all__ = ["info_nce"]

SIMILARITIES = ("cosine", "dot")


@differentiable("queries", "positives", "negatives", "temperature")
def info_nce(
    queries: Array,
    positives: Array,
    negatives: Array | None = None,
    *,
    temperature: Array | float = 0.07,
    similarity: str = "cosine",
    in_batch: bool | None = None,
    symmetric: bool = False,
    candidate_mask: Array | None = None,
    weights: Array | None = None,
    where: Array | None = None,
    reduction: str = "mean",
    denominator: Array | float | None = None,
) -> Loss:
    """InfoNCE: find each query's positive among its candidates.

    Per query, with s the similarities to its candidates divided by the temperature::

        l = logsumexp(s) - s_positive

    The candidates are its positive, the positives of the other rows when ``in_batch``, and ``negatives``. So it is
    `softmax_cross_entropy` over similarities, and more negatives make it harder.

    Parameters
    ----------
    queries, positives : array [N, D], or [D] for one query
        Real floating embeddings of the same shape.
    negatives : array, optional
        [M, D] shared by all queries, or [N, M, D] for each its own.
    temperature : float or 0-d array, default 0.07
        Positive. Low values sharpen the softmax and weigh hard negatives more. An array is differentiable.
    similarity : {"cosine", "dot"}, default "cosine"
        A zero vector has cosine similarity 0, and gradient 0.
    in_batch : bool, optional
        Whether other rows' positives are candidates. Default: when there are no ``negatives``.
    symmetric : bool, default False
        Half the loss of finding the positive by the query plus half that of finding the query by the positive. In-batch
        candidates alone.
    candidate_mask : boolean array, optional
        Broadcasts to [N, candidates]: the N positives when ``in_batch``, else the query's own; then the negatives.
        False drops a false negative. A query's own positive is never dropped. With ``symmetric`` it drops the pair both
        ways. The embeddings of what is dropped must be finite, or the gradient of the queries is NaN.
    {reduce}

    Returns
    -------
    array
        0-d, or [N] with ``reduction="none"``.

    Raises
    ------
    {raises}

    Notes
    -----
    A row that ``where`` masks is no candidate of the others either, as if it were not there. It is differentiable in
    the embeddings and in a ``temperature`` that is an array.

    References
    ----------
    A. van den Oord, Y. Li, O. Vinyals, "Representation learning with contrastive predictive coding" (2018); M.
    Henderson et al., "Efficient natural language response suggestion" (2017), for in-batch negatives; A. Radford et
    al., "Learning transferable visual models from natural language supervision" (2021), for the symmetric form.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(polyloss.info_nce(queries, queries, temperature=0.5).round(6))
    0.126928
    """
    call = Call(
        queries=queries,
        positives=positives,
        negatives=negatives,
        temperature=temperature,
        candidate_mask=candidate_mask,
        weights=weights,
        where=where,
        denominator=denominator,
    )
    choice("similarity", similarity, SIMILARITIES)
    xp = call.xp
    embeddings = {"queries": queries, "positives": positives} | ({} if negatives is None else {"negatives": negatives})
    q, p, *explicit = call.floating(**embeddings)
    n = explicit[0] if explicit else None
    q, p = _alike(call, q, p, n)
    in_batch = _layout(q, n, in_batch, symmetric)
    single = q.ndim == 1
    if q.shape[0] == 0:  # no rows, and so no others: each would have its own positive alone
        in_batch = symmetric = False
    reduce = Reduction(call, q, weights, where, reduction, denominator, axis=q.ndim - 1)
    q, p = reduce.clean(q, rows=True), reduce.clean(p, rows=True)
    if single:
        q, p = xp.expand_dims(q, axis=0), xp.expand_dims(p, axis=0)
    if n is not None and n.ndim == 3 and reduce.keep is not None:
        n = xp.where(reduce.keep[:, None, None], n, xp.zeros_like(n))
    similarities, to_embeddings = _similarities(call, q, p, n, in_batch, similarity)
    t = _temperature(call, temperature)
    scores = call.library.divided(similarities, t)
    labels, mask = _candidates(call, scores, in_batch, candidate_mask, reduce)
    items: Any
    if symmetric:
        turned = None if mask is None else xp.matrix_transpose(mask)
        items = _BothWays(
            reduce.apply(LseCrossEntropy(), scores, labels, None, mask),
            reduce.apply(LseCrossEntropy(), xp.matrix_transpose(scores), labels, None, turned, disposable=True),
        )
    elif single:
        items = reduce.apply(LseCrossEntropy(), scores[0, :], labels[0], None, None if mask is None else mask[0, :])
    else:
        items = reduce.apply(LseCrossEntropy(), scores, labels, None, mask, disposable=True)

    def pull(gradient: Array, *_: None) -> dict[str, Callable[[], Array]]:
        return to_embeddings(xp.expand_dims(gradient, axis=0) if single else gradient, t, single)

    return reduce.of(items, pull)


def _alike(call: Call, q: Array, p: Array, n: Array | None) -> tuple[Array, Array]:
    """Queries and positives; the shapes of all embeddings must agree."""
    if q.ndim not in (1, 2):
        raise ValueError(f"queries must have shape [N, D], or [D] for one query, got {tuple(q.shape)}")
    p = call.same_shape("positives", p, "queries", q)
    has_features("queries", q)
    if n is None:
        return q, p
    *count, d = q.shape
    own = bool(count) and n.ndim == 3
    if n.ndim != 2 + own or differ((*n.shape[:-2], n.shape[-1]), (*count, d) if own else (d,)):
        each = f" or ({count[0]}, M, {d}) for each query its own" if count else ""
        raise ValueError(f"negatives must have shape (M, {d}){each}, got {tuple(n.shape)}")
    return call.library.broadcast(q, n, 1, ("queries", "negatives")) if own else q, p


def _layout(q: Array, n: Array | None, in_batch: bool | None, symmetric: bool) -> bool:
    """Whether other rows' positives are candidates. What says how many there are must be known."""
    for name, flag in (("symmetric", symmetric), ("in_batch", in_batch)):
        if not isinstance(flag, bool) and not (name == "in_batch" and flag is None):
            raise TypeError(f"{name} must be True or False, got {flag!r}")
    in_batch = n is None if in_batch is None else in_batch
    if symmetric and (n is not None or not in_batch):
        raise ValueError("symmetric=True takes in-batch candidates alone: no negatives, and in_batch not False")
    count = known_size("queries", q, 0) if in_batch and q.ndim == 2 else 1
    candidates = count + (0 if n is None else known_size("negatives", n, n.ndim - 2))
    if candidates == 1:
        raise ValueError(
            "the only candidate of a query is its positive, so the loss is constant: "
            "pass negatives, or several queries with in_batch=True"
        )
    return in_batch


def _similarities(
    call: Call, q: Array, p: Array, n: Array | None, in_batch: bool, similarity: str
) -> tuple[Array, Callable[[Array, Any, bool], dict[str, Callable[[], Array]]]]:
    """Similarity of each query to its candidates [N, C].

    And the pullback: from the gradient in the scores, the similarities over a temperature, to embeddings and
    temperature. What is large is divided by nothing there: the temperature divides the results.
    """
    xp, library = call.xp, call.library
    backs: list[Callable[[Array], Array]] = [lambda g: g] * 3
    if similarity == "cosine":
        q, backs[0] = unit(call, q)
        p, backs[1] = unit(call, p)
        if n is not None:
            n, backs[2] = unit(call, n)
    parts = []
    if in_batch:
        parts.append(library.matmul(q, xp.matrix_transpose(p)))
    else:
        parts.append(xp.expand_dims(library.sum(q * p), axis=-1))
    if n is not None and n.ndim == 2:
        parts.append(library.matmul(q, xp.matrix_transpose(n)))
    elif n is not None:
        parts.append(library.matmul(n, xp.expand_dims(q, axis=-1))[..., 0])
    width = parts[0].shape[-1]

    def to_q(gp: Array, gn: Array) -> Array:
        g = library.matmul(gp, p) if in_batch else gp * p
        if n is not None and n.ndim == 2:
            g = g + library.matmul(gn, n)
        elif n is not None:
            g = g + library.matmul(xp.expand_dims(gn, axis=-2), n)[:, 0, :]
        return g

    def to_p(gp: Array) -> Array:
        return library.matmul(xp.matrix_transpose(gp), q) if in_batch else gp * q

    def to_n(gn: Array) -> Array:
        if n.ndim == 2:  # type: ignore[union-attr]
            return library.matmul(xp.matrix_transpose(gn), q)
        return xp.expand_dims(gn, axis=-1) * xp.expand_dims(q, axis=-2)

    def pull(g: Array, t: Any, single: bool) -> dict[str, Callable[[], Array]]:
        gp, gn = g[:, :width], g[:, width:]
        one = (0, slice(None)) if single else ...
        return {
            "queries": lambda: backs[0](to_q(gp, gn) / t)[one],
            "positives": lambda: backs[1](to_p(gp) / t)[one],
            "negatives": lambda: backs[2](to_n(gn) / t),
            # sum(g * scores) = sum(q * to_q) / t
            "temperature": lambda: -library.total(q * to_q(gp, gn)) / t / t,
        }

    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1), pull


def _temperature(call: Call, temperature: Any) -> Any:
    """The temperature: a number, or a 0-d array and then differentiable."""
    if is_number_like(temperature):
        return number("temperature", temperature, 0, above=True)
    if not call.is_floating("temperature", temperature):
        raise TypeError(f"temperature must be a positive number or a 0-d floating array, got {temperature.dtype}")
    if temperature.ndim:
        raise ValueError(
            f"temperature must be a positive number or a 0-d floating array, got shape {tuple(temperature.shape)}"
        )
    t = call.real("temperature", temperature)
    return call.valid("temperature", t, t <= 0, "positive")


def _candidates(
    call: Call, scores: Array, in_batch: bool, candidate_mask: Array | None, reduce: Reduction
) -> tuple[Array, Array | None]:
    """The column of each query's positive, and which candidates are kept [N, C] (None: all)."""
    xp, library = call.xp, call.library
    count = scores.shape[0] if in_batch else 1
    own = library.positions(scores[:, :count])
    labels = own if in_batch else library.broadcast(own, scores, 1)
    column = library.positions(scores)
    mask = None
    if candidate_mask is not None:
        mask = call.trailing("candidate_mask", call.boolean("candidate_mask", candidate_mask), scores, "[N, C]")
    if in_batch and reduce.keep is not None and reduce.keep.ndim:
        # A masked row's positive is no candidate of the others, as if the row were not there.
        others = xp.ones_like(column, dtype=xp.bool)
        kept = xp.concat([reduce.keep, others[count:]], axis=0) if scores.shape[-1] > count else reduce.keep
        kept = kept & xp.expand_dims(reduce.keep, axis=-1)
        mask = kept if mask is None else mask & kept
    return labels, None if mask is None else mask | (xp.expand_dims(labels, axis=-1) == column)


@dataclass(frozen=True)
class _BothWays:
    """The mean of the rows' and the columns' losses."""

    rows: Application
    columns: Application

    def value(self) -> Array:
        return (self.rows.value() + self.columns.value()) / 2

    def value_and_vjp(self, cotangent: Array, wanted: Wanted) -> tuple[Array, Gradients]:
        row, (g, *_) = self.rows.value_and_vjp(cotangent / 2, wanted)
        column, (h, *_) = self.columns.value_and_vjp(cotangent / 2, wanted)
        return (row + column) / 2, (g + self.columns.library.xp.matrix_transpose(h),)

    def fused(self, wanted: Wanted | None = None, reduction: Linear | None = None) -> _BothWays | None:
        rows = self.rows.fused(wanted, reduction, 0.5)
        columns = self.columns.fused(wanted, reduction, 0.5)
        return None if rows is None or columns is None else self

    def fused_value(self) -> Array | None:
        row, column = self.rows.fused_value(), self.columns.fused_value()
        return None if row is None or column is None else (row + column) / 2

    def fused_value_and_vjp(self) -> tuple[Array, Gradients] | None:
        row, column = self.rows.fused_value_and_vjp(), self.columns.fused_value_and_vjp()
        if row is None or column is None:
            return None
        (one, (g, *_)), (two, (h, *_)) = row, column
        return (one + two) / 2, (g + self.columns.library.xp.matrix_transpose(h),)
