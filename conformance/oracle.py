"""Every function once more, as the textbook writes it: at 60 digits, one item at a time, with no stability trick.

This module imports mpmath and nothing else, so it shares neither code nor rounding with what it judges. The textbook's
forms cancel, so the working precision is so high that 60 digits are left after the worst of it. Derivatives are the
textbook's too, in the first argument. Arguments are numbers or lists of numbers, and lists come back where an item has
one derivative per entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from mpmath import mp, mpf

__all__ = ["DIGITS", "FORMULAS"]

DIGITS = 400  # 330 of them may cancel: e^-750 beside 1

P = ParamSpec("P")
T = TypeVar("T")
Number = Any


def _precisely(function: Callable[P, T]) -> Callable[P, T]:
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with mp.workdps(DIGITS):
            return function(*args, **kwargs)

    return run


@lru_cache(maxsize=4096)
def _exp(x: Number) -> Number:
    return mp.exp(x)


@lru_cache(maxsize=4096)
def _total(x: tuple[float, ...]) -> Number:
    """The sum of the exponentials; equal ones are counted."""
    return mp.fsum(count * _exp(mpf(v)) for v, count in Counter(x).items())


@lru_cache(maxsize=4096)
def _log_total(x: tuple[float, ...]) -> Number:
    return mp.log(_total(x))


@lru_cache(maxsize=4096)
def _sigma(x: Number) -> Number:
    return 1 / (1 + _exp(-x))


@lru_cache(maxsize=4096)
def _log_sigma(x: Number) -> Number:
    return mp.log(_sigma(x))


# Transforms.


@_precisely
def sigmoid(x: float) -> Number:
    return _sigma(mpf(x))


@_precisely
def sigmoid_slope(x: float) -> Number:
    return _sigma(mpf(x)) * _sigma(-mpf(x))


@_precisely
def softplus(x: float) -> Number:
    return mp.log(1 + _exp(mpf(x)))


@_precisely
def log_sigmoid(x: float) -> Number:
    return _log_sigma(mpf(x))


@_precisely
def log_sigmoid_slope(x: float) -> Number:
    return 1 - _sigma(mpf(x))


@_precisely
def softmax(x: Sequence[float]) -> list[Number]:
    total = _total(tuple(x))
    found = {v: _exp(mpf(v)) / total for v in set(x)}
    return [found[v] for v in x]


@_precisely
def softmax_slope(x: Sequence[float], i: int) -> list[Number]:
    """The derivatives of the i-th entry."""
    p = softmax(x)
    return [p[i] * ((i == k) - v) for k, v in enumerate(p)]


@_precisely
def logsumexp(x: Sequence[float]) -> Number:
    return _log_total(tuple(x))


@_precisely
def log_softmax(x: Sequence[float]) -> list[Number]:
    lse = _log_total(tuple(x))
    return [mpf(v) - lse for v in x]


@_precisely
def log_softmax_slope(x: Sequence[float], i: int) -> list[Number]:
    """The derivatives of the i-th entry."""
    return [(i == k) - v for k, v in enumerate(softmax(x))]


# Losses.


@_precisely
def sigmoid_cross_entropy(x: float, t: float, pos_weight: float = 1.0, label_smoothing: float = 0.0) -> Number:
    p, e = mpf(pos_weight), mpf(label_smoothing)
    smooth = mpf(t) * (1 - e) + e / 2
    return -p * smooth * _log_sigma(mpf(x)) - (1 - smooth) * _log_sigma(-mpf(x))  # the other class's probability


@_precisely
def sigmoid_cross_entropy_slope(x: float, t: float, pos_weight: float = 1.0, label_smoothing: float = 0.0) -> Number:
    s, p, e = _sigma(mpf(x)), mpf(pos_weight), mpf(label_smoothing)
    smooth = mpf(t) * (1 - e) + e / 2
    return (1 - smooth) * s - p * smooth * (1 - s)


def _target_row(x: Sequence[float], t: Any, c: Any, e: float) -> list[Number]:
    k = len(x)
    row = [mpf(v) for v in t] if isinstance(t, (list, tuple)) else [mpf(1 if i == t else 0) for i in range(k)]
    row = [v * (1 - mpf(e)) + mpf(e) / k for v in row] if e else row
    return row if c is None else [mpf(w) * v for w, v in zip(c, row)]


@_precisely
def softmax_cross_entropy(
    x: Sequence[float],
    t: Any,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Number:
    q = _target_row(x, t, class_weights, label_smoothing)
    lse = _log_total(tuple(x))
    return mp.fsum(w * (lse - mpf(v)) for w, v in zip(q, x) if w) + mpf(z_loss) * lse**2


@_precisely
def softmax_cross_entropy_slope(
    x: Sequence[float],
    t: Any,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> list[Number]:
    q = _target_row(x, t, class_weights, label_smoothing)
    total = _total(tuple(x))
    mass = mp.fsum(q) + 2 * mpf(z_loss) * _log_total(tuple(x))
    found = {(v, w): mass * _exp(mpf(v)) / total - w for v, w in set(zip(x, q))}
    return [found[pair] for pair in zip(x, q)]


@_precisely
def bpr(lead: float) -> Number:
    return -_log_sigma(mpf(lead))


@_precisely
def bpr_slope(lead: float) -> Number:
    return _sigma(mpf(lead)) - 1


@_precisely
def pairwise_hinge(short: float) -> Number:
    return max(mpf(0), mpf(short))


@_precisely
def pairwise_hinge_slope(short: float) -> Number:
    return mpf(-1 if short > 0 else 0)


@_precisely
def contrastive_from_distance(d: float, short: float, similar: float) -> Number:
    return mpf(similar) * mpf(d) ** 2 + (1 - mpf(similar)) * max(mpf(0), mpf(short)) ** 2


@_precisely
def contrastive_from_distance_slope(d: float, short: float, similar: float) -> Number:
    return 2 * mpf(similar) * mpf(d) - 2 * (1 - mpf(similar)) * max(mpf(0), mpf(short))


@_precisely
def binary_log_loss(p: float, t: float) -> Number:
    parts = [mpf(t) * mp.log(mpf(p))] if t else []
    parts += [(1 - mpf(t)) * mp.log(1 - mpf(p))] if t != 1 else []
    return -mp.fsum(parts)


@_precisely
def binary_log_loss_slope(p: float, t: float) -> Number:
    return (1 - mpf(t)) / (1 - mpf(p)) - mpf(t) / mpf(p)


@_precisely
def log_loss(p: Sequence[float], t: int) -> Number:
    return -mp.log(mpf(p[t]))


@_precisely
def log_loss_slope(p: Sequence[float], t: int) -> list[Number]:
    return [-1 / mpf(v) if i == t else mpf(0) for i, v in enumerate(p)]


# Losses of embeddings, whose similarities and distances are computed here as well.


@_precisely
def distance(first: Sequence[float], second: Sequence[float]) -> Number:
    return mp.sqrt(mp.fsum((mpf(a) - mpf(b)) ** 2 for a, b in zip(first, second)))


@_precisely
def contrastive(first: Sequence[float], second: Sequence[float], similar: float, margin: float) -> Number:
    d = distance(first, second)
    return contrastive_from_distance(d, mpf(margin) - d, similar)


@_precisely
def similarity(a: Sequence[float], b: Sequence[float], cosine: bool) -> Number:
    product = mp.fsum(mpf(x) * mpf(y) for x, y in zip(a, b))
    lengths = distance(a, [0] * len(a)) * distance(b, [0] * len(b)) if cosine else mpf(1)
    return product / lengths if lengths else mpf(0)


@_precisely
def info_nce(query: Sequence[float], candidates: Sequence[Sequence[float]], temperature: float, cosine: bool) -> Number:
    """The first candidate is the positive."""
    s = [similarity(query, candidate, cosine) / mpf(temperature) for candidate in candidates]
    return mp.log(mp.fsum(mp.exp(v) for v in s)) - s[0]


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sigmoid": (sigmoid, sigmoid_slope),
    "softplus": (softplus, sigmoid),
    "log_sigmoid": (log_sigmoid, log_sigmoid_slope),
    "softmax": (softmax, softmax_slope),
    "log_softmax": (log_softmax, log_softmax_slope),
    "logsumexp": (logsumexp, softmax),
    "sigmoid_cross_entropy": (sigmoid_cross_entropy, sigmoid_cross_entropy_slope),
    "softmax_cross_entropy": (softmax_cross_entropy, softmax_cross_entropy_slope),
    "bpr": (bpr, bpr_slope),
    "pairwise_hinge": (pairwise_hinge, pairwise_hinge_slope),
    "contrastive_from_distance": (contrastive_from_distance, contrastive_from_distance_slope),
    "binary_log_loss": (binary_log_loss, binary_log_loss_slope),
    "log_loss": (log_loss, log_loss_slope),
}
"""The value and the derivative of each function, per item."""
