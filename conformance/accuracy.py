"""Hard cases with their exact answers: every loss and transform over gaps, sizes and dtypes.

A case is made once, from NumPy arrays, and judged on every route (`polyloss.conformance.routes`). What a primitive gets
is what the oracle gets: the logits, the rounded difference of two scores, the distance as computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
from mpmath import mp

import polyloss
from polyloss.conformance import oracle
from polyloss.conformance.budget import Exact, entry_spread, faded, spread, ulps
from polyloss.conformance.routes import from_numpy, to_numpy, wide

__all__ = ["GAPS", "SIZES", "Case", "cases", "jacobian_shares", "share", "transform_shares"]

GAPS = (0.0, 1e-3, 0.5, 3.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)
SIZES = (1, 2, 3, 10, 33, 1000, 128_000)
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Case:
    """A call, its exact items and gradients, and the budget of each in ulp."""

    loss: Callable[..., Any]
    arrays: tuple[Any, ...]
    items: Exact
    gradient: Exact
    item_budget: np.ndarray
    gradient_budget: np.ndarray
    terms: float = 1  # how many terms may underflow, times what they are multiplied by
    larger_item: np.ndarray | None = None
    larger_gradient: np.ndarray | None = None
    options: dict[str, Any] = field(default_factory=dict)
    wrt: int = 0  # the argument to differentiate in


def share(case: Case, library: str, items: np.ndarray, gradient: np.ndarray) -> tuple[float, float]:
    """The largest part of its budget that an item, and an entry of the gradient, has used."""
    floor = case.terms * faded(items.dtype, library)
    used = ulps(items, case.items, case.larger_item, floor=floor) / case.item_budget
    slope = ulps(gradient, case.gradient, case.larger_gradient, floor=floor) / case.gradient_budget
    return float(np.max(used, initial=0.0)), float(np.max(slope, initial=0.0))


# Rows of logits.


def _rows(k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which the label leads by each gap, trails by it, or stands somewhere; near 0 and near 1000."""
    rng = np.random.default_rng(k)
    table = rng.standard_normal(512)  # few distinct values, so that the oracle can be quick
    rows, labels = [], []
    for gap in GAPS if k <= 1000 else (0.0, 20.0, 100.0):
        for lead, offset in ((gap, 0.0), (-gap, 0.0), (gap, 1000.0)) if k <= 1000 else ((gap, 0.0),):
            x, y = rng.choice(table, k), int(rng.integers(k))
            if k > 1:
                x[y] = (np.max(np.delete(x, y)) if lead >= 0 else np.min(np.delete(x, y))) + lead
            rows.append(x + offset)
            labels.append(y)
    return np.array(rows).astype(dtype), np.array(labels)


def _soft(k: int, n: int, dtype: str) -> Any:
    """Target rows, some of them one-hot, many entries zero."""
    rng = np.random.default_rng(k + 1)
    t = rng.random((n, k)) * (rng.random((n, k)) < 0.5) + np.eye(k)[rng.integers(k, size=n)]
    return (t / t.sum(axis=-1, keepdims=True)).astype(dtype)


def _plain(x: np.ndarray) -> Any:
    return x.astype(np.float64).tolist()


@cache
def _softmax_case(k: int, dtype: str, variant: str, axis: int) -> Case:
    x, labels = _rows(k, dtype)
    n = len(x)
    rng = np.random.default_rng(k + 2)
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if variant == "smooth":
        options["label_smoothing"] = extra["label_smoothing"] = 0.1
    elif variant == "z":
        options["z_loss"] = extra["z_loss"] = 0.01
    elif variant == "class weights":
        options["class_weights"] = (rng.random(k) + 0.5).astype(dtype)
        extra["class_weights"] = options["class_weights"].astype(np.float64).tolist()
    soft = variant == "soft"
    t = _soft(k, n, dtype) if soft else labels
    given = _plain(t) if soft else labels.tolist()
    value, slope = oracle.FORMULAS["softmax_cross_entropy"]
    pairs = list(zip(_plain(x), given))
    items = Exact([value(row, y, **extra) for row, y in pairs])
    gradient = Exact([slope(row, y, **extra) for row, y in pairs])
    larger_item, larger_gradient = _larger_terms(x, t, soft, extra)
    log_k = np.log2(k)
    case_axis = {"axis": axis} if axis != -1 else {}
    return Case(
        polyloss.softmax_cross_entropy,
        (np.moveaxis(x, -1, axis), np.moveaxis(t, -1, axis) if soft else t),
        items,
        gradient.moved(-1, axis),
        6 + spread(x) + log_k,
        np.moveaxis(6 + entry_spread(x) + log_k, -1, axis),
        k * max(options.get("class_weights", [1.0])),
        larger_item,
        None if larger_gradient is None else np.moveaxis(larger_gradient, -1, axis),
        options | case_axis,
    )


def _larger_terms(
    x: np.ndarray, t: np.ndarray, soft: bool, extra: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The terms that the formula itself subtracts; None where it need not subtract."""
    if not (soft or "label_smoothing" in extra or "z_loss" in extra):
        return None, None
    x64 = x.astype(np.float64)
    top = np.max(x64, axis=-1, keepdims=True)
    p = np.exp(x64 - top)
    total = p.sum(axis=-1, keepdims=True)
    p, lse = p / total, top + np.log(total)
    k, e, z = x.shape[-1], extra.get("label_smoothing", 0.0), extra.get("z_loss", 0.0)
    q = (t.astype(np.float64) if soft else np.eye(k)[t]) * (1 - e) + e / k
    reach = np.maximum(np.abs(lse), np.abs(top))
    larger_gradient = np.maximum(np.maximum(q.sum(axis=-1, keepdims=True) * p, q), 2 * z * reach * p)
    return (z * reach**2)[..., 0] if z else None, larger_gradient


# One number per item.


def _signed_gaps(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    x = np.concatenate([GAPS, rng.standard_normal(50), rng.uniform(0, 100, 50), [1e-30, 1e-7, 300.0, 700.0]])
    return np.concatenate([x, -x]).astype(dtype)


@cache
def _sigmoid_case(dtype: str, variant: str) -> Case:
    x = _signed_gaps(dtype)
    rng = np.random.default_rng(8)
    t = (rng.random(x.shape) if variant in ("soft", "smooth") else rng.integers(2, size=x.shape)).astype(dtype)
    options: dict[str, Any] = {"label_smoothing": 0.1} if variant == "smooth" else {}
    p = np.full_like(x, 3.3) if variant == "pos_weight" else np.ones_like(x)
    if variant == "pos_weight":
        options["pos_weight"] = p
    e = options.get("label_smoothing", 0.0)
    value, slope = oracle.FORMULAS["sigmoid_cross_entropy"]
    rows = list(zip(x.tolist(), t.tolist(), p.tolist()))
    smooth = t.astype(np.float64) * (1 - e) + e / 2
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    return Case(
        polyloss.sigmoid_cross_entropy,
        (x, t),
        Exact([value(*row, e) for row in rows]),
        Exact([slope(*row, e) for row in rows]),
        np.full(x.shape, 6.0),
        np.full(x.shape, 6.0),
        terms=float(p.max()),
        larger_gradient=np.maximum((1 - smooth) * s, p * smooth * (1 - s)) if variant in ("soft", "smooth") else None,
        options=options,
    )


@cache
def _pair_case(dtype: str, loss: str) -> Case:
    rng = np.random.default_rng(9)
    lead = _signed_gaps(dtype)
    negative = rng.standard_normal(lead.shape).astype(dtype)
    positive = lead + negative
    difference = positive - negative
    argument = difference if loss == "bpr" else np.asarray(1.0, dtype) - difference
    value, slope = oracle.FORMULAS[loss]
    six = np.full(lead.shape, 6.0)
    numbers = argument.tolist()
    return Case(
        getattr(polyloss, loss),
        (positive, negative),
        Exact([value(v) for v in numbers]),
        Exact([slope(v) for v in numbers]),
        six,
        six,
    )


@cache
def _distance_case(dtype: str, loss: str) -> Case:
    rng = np.random.default_rng(10)
    d = np.abs(_signed_gaps(dtype))
    similar = np.where(rng.random(d.shape) < 0.5, rng.integers(2, size=d.shape), rng.random(d.shape)).astype(dtype)
    short = np.asarray(5.0, dtype) - d
    value, slope = oracle.FORMULAS["contrastive_from_distance"]
    rows = list(zip(d.tolist(), short.tolist(), similar.tolist()))
    gradient = [slope(*row) for row in rows]
    s = similar.astype(np.float64)
    larger = 2 * np.maximum(s * d, (1 - s) * np.maximum(short, 0))
    arrays: tuple[np.ndarray, ...] = (d, similar)
    if loss == "contrastive":  # one feature: the distance is |first - second|, exactly
        sign = np.where(rng.random(d.shape) < 0.5, -1, 1).astype(dtype)
        arrays = ((sign * d)[:, None], np.zeros_like(d)[:, None], similar)
        gradient = [[g * int(w) if x else mp.mpf(0)] for g, w, x in zip(gradient, sign, d)]
        larger = larger[:, None]
    six = np.full(d.shape, 6.0)
    options = {"margin": 5.0}
    items = Exact([value(*row) for row in rows])
    return Case(
        getattr(polyloss, loss),
        arrays,
        items,
        Exact(gradient),
        six,
        np.full(larger.shape, 6.0),
        1,
        None,
        larger,
        options,
    )


@cache
def _info_nce_case(k: int, dtype: str) -> Case:
    """One feature and the dot product with queries of 1, so that the similarities are the logits, exactly."""
    x, _ = _rows(k, dtype)
    value, slope = oracle.FORMULAS["softmax_cross_entropy"]
    rows = _plain(x)
    gradient = Exact([[slope(row, 0)[0]] for row in rows])
    queries = np.ones((len(x), 1), dtype)
    return Case(
        polyloss.info_nce,
        (queries, x[:, :1], x[:, 1:, None]),
        Exact([value(row, 0) for row in rows]),
        gradient,
        6 + spread(x) + np.log2(k),
        (6 + entry_spread(x) + np.log2(k))[:, :1],
        k,
        options={"temperature": 1.0, "similarity": "dot", "in_batch": False},
        wrt=1,
    )


@cache
def _log_loss_case(k: int, dtype: str) -> Case:
    rng = np.random.default_rng(11)
    x, labels = _rows(k, dtype)
    p = np.exp(x.astype(np.float64) - np.max(x, axis=-1, keepdims=True)) + 1e-30
    p = (p / p.sum(axis=-1, keepdims=True)).astype(dtype)
    if k == 1:
        options = {"where": None}
        value, slope = oracle.FORMULAS["binary_log_loss"]
        p = np.concatenate([rng.random(50), 10.0 ** -rng.uniform(0, 30, 50), 1 - 10.0 ** -rng.uniform(0, 6, 50)])
        p = np.minimum(p.astype(dtype), np.nextafter(np.asarray(1, dtype), np.asarray(0, dtype)))
        t = np.where(rng.random(p.shape) < 0.7, rng.integers(2, size=p.shape), rng.random(p.shape)).astype(dtype)
        rows = list(zip(p.tolist(), t.tolist()))
        larger = np.maximum((1 - t) / (1 - p.astype(np.float64)), t / p.astype(np.float64))
        six = np.full(p.shape, 6.0)
        items, gradient = Exact([value(*r) for r in rows]), Exact([slope(*r) for r in rows])
        return Case(polyloss.binary_log_loss, (p, t), items, gradient, six, six, 1, None, larger, options)
    value, slope = oracle.FORMULAS["log_loss"]
    pairs = list(zip(_plain(p), labels.tolist()))
    items = Exact([value(*r) for r in pairs])
    six = np.full(p.shape[:-1], 6.0)
    return Case(polyloss.log_loss, (p, labels), items, Exact([slope(*r) for r in pairs]), six, six[:, None])


def _table() -> Iterator[tuple[str, Callable[[], Case]]]:
    for dtype in DTYPES:
        for k in SIZES:
            for variant in ("hard", "soft", "smooth", "class weights", "z"):
                if variant != "hard" and k in (1, 3, 128_000):
                    continue
                yield (
                    f"softmax_cross_entropy-{variant}-{k}-{dtype}",
                    partial(_softmax_case, k, dtype, variant, -1),
                )
            yield f"softmax_cross_entropy-axis0-{k}-{dtype}", partial(_softmax_case, k, dtype, "hard", 0)
        for variant in ("hard", "soft", "smooth", "pos_weight"):
            yield f"sigmoid_cross_entropy-{variant}-{dtype}", partial(_sigmoid_case, dtype, variant)
        for loss in ("bpr", "pairwise_hinge"):
            yield f"{loss}-{dtype}", partial(_pair_case, dtype, loss)
        for loss in ("contrastive_from_distance", "contrastive"):
            yield f"{loss}-{dtype}", partial(_distance_case, dtype, loss)
        for k in (2, 10, 1000):
            yield f"info_nce-{k}-{dtype}", partial(_info_nce_case, k, dtype)
        yield f"binary_log_loss-{dtype}", partial(_log_loss_case, 1, dtype)
        yield f"log_loss-10-{dtype}", partial(_log_loss_case, 10, dtype)


cases: dict[str, Callable[[], Case]] = dict(_table())


# Transforms.


def jacobian_shares(library: str, dtype: str) -> dict[str, float]:
    """The largest share of its budget that an entry of a transform's Jacobian has used, by the library's autodiff.

    An entry is a product of two probabilities, or a probability: each factor has the budget of an entry.
    """
    used = {}
    floor = faded(np.dtype(dtype), library)
    with wide(library, dtype):
        x = _signed_gaps(dtype)
        for name in ("sigmoid", "softplus", "log_sigmoid"):
            got = _pulled(library, getattr(polyloss, name), x, np.ones_like(x))
            exact = Exact([oracle.FORMULAS[name][1](v) for v in x.tolist()])
            used[name] = float(np.max(ulps(got, exact, floor=2 * floor))) / 12
        rows, _ = _rows(10, dtype)
        budget = 2 * (6 + entry_spread(rows) + np.log2(10))
        exact = Exact([oracle.FORMULAS["logsumexp"][1](row) for row in _plain(rows)])
        got = _pulled(library, polyloss.logsumexp, rows, np.ones(len(rows), dtype))
        used["logsumexp"] = float(np.max(ulps(got, exact, floor=10 * floor) / budget))
        for name in ("softmax", "log_softmax"):
            slopes = Exact([oracle.FORMULAS[name][1](row) for row in _plain(rows)])
            for i in range(10):  # the i-th row of every Jacobian
                cotangent = np.zeros_like(rows)
                cotangent[:, i] = 1
                got = _pulled(library, getattr(polyloss, name), rows, cotangent)
                own = 2 * (6 + np.maximum(entry_spread(rows), entry_spread(rows)[:, i : i + 1]) + np.log2(10))
                error = ulps(got, slopes.at(i), floor=10 * floor) / own
                used[name] = max(used.get(name, 0.0), float(np.max(error)))
        # A flat row of many classes: at the top, -p is small and must not be formed as (1 - p) - 1.
        flat = (np.random.default_rng(12).standard_normal((1, 1000)) / 100).astype(dtype)
        cotangent, lowest = np.zeros_like(flat), int(np.argmin(flat))
        cotangent[0, lowest] = 1
        exact = Exact([[(k == lowest) - p for k, p in enumerate(oracle.softmax(_plain(flat)[0]))]])
        got = _pulled(library, polyloss.log_softmax, flat, cotangent)
        used["log_softmax of many"] = float(np.max(ulps(got, exact) / (6 + entry_spread(flat) + np.log2(1000))))
    return used


def _pulled(library: str, function: Callable[..., Any], x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    given, ct = from_numpy(library, x), from_numpy(library, cotangent)
    if library == "torch":
        given.requires_grad_()
        function(given).backward(ct)
        return to_numpy(given.grad)
    import jax

    return to_numpy(jax.vjp(function, given)[1](ct)[0])


def transform_shares(library: str, dtype: str) -> dict[str, float]:
    """The largest share of its budget that each transform has used in that library, in values."""
    used = {}
    floor = faded(np.dtype(dtype), library)
    with wide(library, dtype):
        x = _signed_gaps(dtype)
        for name in ("sigmoid", "softplus", "log_sigmoid"):
            got = to_numpy(getattr(polyloss, name)(from_numpy(library, x)))
            exact = Exact([oracle.FORMULAS[name][0](v) for v in x.tolist()])
            used[name] = float(np.max(ulps(got, exact, floor=floor))) / 6
        for k in (2, 10, 1000):
            rows, _ = _rows(k, dtype)
            top = np.max(rows, axis=-1)
            larger = {"softmax": None, "log_softmax": None, "logsumexp": top}
            s = {"softmax": entry_spread(rows), "log_softmax": spread(rows)[:, None], "logsumexp": spread(rows)}
            for name in larger:
                got = to_numpy(getattr(polyloss, name)(from_numpy(library, rows)))
                exact = Exact([oracle.FORMULAS[name][0](row) for row in _plain(rows)])
                error = ulps(got, exact, larger[name], floor=k * floor) / (6 + s[name] + np.log2(k))
                used[f"{name} {k}"] = float(np.max(error))
    return used
