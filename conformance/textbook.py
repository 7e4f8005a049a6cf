"""The items of a call in `polyloss.conformance.losses`, as the oracle gives them, and their weighted mean.

Here the arrays of a call are taken apart into items: classes that are masked are left out, candidates are gathered. The
mathematics itself is the oracle's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polyloss.conformance import oracle
from polyloss.conformance.losses import Row

__all__ = ["items", "mean"]

Arguments = dict[str, np.ndarray]


def items(row: Row, arguments: Arguments) -> np.ndarray:
    """The items of the call, in float64."""
    found = {
        "sigmoid_cross_entropy": _sigmoid,
        "softmax_cross_entropy": _softmax,
        "pairwise_hinge": _pairs,
        "bpr": _pairs,
        "contrastive": _contrastive,
        "contrastive_from_distance": _distances,
        "info_nce": _info_nce,
        "binary_log_loss": _binary_log_loss,
        "log_loss": _log_loss,
    }[row.loss.__name__](row, {name: _wide(x) for name, x in arguments.items()})
    return np.array(found, dtype=object).astype(np.float64)


def mean(row: Row, arguments: Arguments, weights: np.ndarray) -> float:
    """The weighted mean, with a weight for each item."""
    plain = items(row, arguments)
    total = _spread(weights, plain.ndim) * np.ones(plain.shape)
    denominator = total
    if "class_weights" in arguments:  # with the target that is not smoothed
        c, t = arguments["class_weights"], arguments["targets"]
        axis = row.options.get("axis", -1)
        denominator = total * (c[t] if t.dtype.kind != "f" else np.sum(c * np.moveaxis(t, axis, -1), axis=-1))
    return float(np.sum(total * plain) / np.sum(denominator))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _spread(weights: np.ndarray, ndim: int) -> np.ndarray:
    return weights.reshape(weights.shape + (1,) * (ndim - weights.ndim))


def _each(function: Any, *arrays: np.ndarray) -> Any:
    arrays = np.broadcast_arrays(*arrays)
    found = [function(*numbers) for numbers in zip(*(x.ravel().tolist() for x in arrays))]
    return np.array(found, dtype=object).reshape(arrays[0].shape)


def _sigmoid(row: Row, a: Arguments) -> Any:
    p, e = a.get("pos_weight", np.asarray(row.options.get("pos_weight", 1.0))), row.options.get("label_smoothing", 0.0)
    return _each(lambda x, t, p: oracle.sigmoid_cross_entropy(x, t, p, e), a["logits"], a["targets"], p)


def _softmax(row: Row, a: Arguments) -> Any:
    axis = row.options.get("axis", -1)
    x = np.moveaxis(a["logits"], axis, -1)
    t = a["targets"]
    t = np.moveaxis(t, axis, -1) if t.dtype.kind == "f" else t
    extra = {name: value for name, value in row.options.items() if name != "axis"}
    mask = a.get("class_mask", np.ones(x.shape, bool))
    c = a.get("class_weights")
    found = []
    for index in np.ndindex(x.shape[:-1]):
        keep = mask[index]
        target = t[index][keep].tolist() if t.dtype.kind == "f" else int(np.sum(keep[: t[index]]))
        weights = {} if c is None else {"class_weights": c[keep].tolist()}
        found.append(oracle.softmax_cross_entropy(x[index][keep].tolist(), target, **weights, **extra))
    return np.array(found, dtype=object).reshape(x.shape[:-1])


def _pairs(row: Row, a: Arguments) -> Any:
    positive, negative = a["positive_scores"], a["negative_scores"]
    positive = positive.reshape(positive.shape + (1,) * (negative.ndim - positive.ndim))
    if row.loss.__name__ == "bpr":
        return _each(lambda p, n: oracle.bpr(p - n), positive, negative)
    margin = row.options.get("margin", 1.0)
    return _each(lambda p, n: oracle.pairwise_hinge(margin - (p - n)), positive, negative)


def _contrastive(row: Row, a: Arguments) -> Any:
    margin = row.options.get("margin", 1.0)
    shape, d = a["similar"].shape, a["first"].shape[-1]
    rows = zip(a["first"].reshape(-1, d).tolist(), a["second"].reshape(-1, d).tolist(), a["similar"].ravel().tolist())
    found = [oracle.contrastive(first, second, similar, margin) for first, second, similar in rows]
    return np.array(found, dtype=object).reshape(shape)


def _distances(row: Row, a: Arguments) -> Any:
    margin = row.options.get("margin", 1.0)
    return _each(lambda d, s: oracle.contrastive_from_distance(d, margin - d, s), a["distances"], a["similar"])


def _info_nce(row: Row, a: Arguments) -> Any:
    queries, positives, negatives = a["queries"], a["positives"], a.get("negatives")
    temperature, cosine = row.options["temperature"], row.options.get("similarity", "cosine") == "cosine"
    in_batch = row.options.get("in_batch", negatives is None)

    def one_way(queries: np.ndarray, positives: np.ndarray) -> list[Any]:
        found = []
        for i, query in enumerate(queries):
            candidates = [positives[i]]
            candidates += [p for j, p in enumerate(positives) if j != i] if in_batch else []
            candidates += [] if negatives is None else list(negatives[i] if negatives.ndim == 3 else negatives)
            found.append(oracle.info_nce(query.tolist(), [x.tolist() for x in candidates], temperature, cosine))
        return found

    forward = one_way(queries, positives)
    if not row.options.get("symmetric"):
        return forward
    return [(one + other) / 2 for one, other in zip(forward, one_way(positives, queries))]


def _binary_log_loss(row: Row, a: Arguments) -> Any:
    eps = row.options.get("eps", 0.0)
    return _each(oracle.binary_log_loss, np.clip(a["probabilities"], eps, 1 - eps), a["targets"])


def _log_loss(row: Row, a: Arguments) -> Any:
    axis, eps = row.options.get("axis", -1), row.options.get("eps", 0.0)
    p, t = np.moveaxis(np.clip(a["probabilities"], eps, 1 - eps), axis, -1), a["targets"]
    if t.dtype.kind != "f":
        return [oracle.log_loss(row, label) for row, label in zip(p.tolist(), t.tolist())]
    return np.sum(_each(lambda p, t: t * oracle.binary_log_loss(p, 1.0), p, np.moveaxis(t, axis, -1)), axis=-1)
