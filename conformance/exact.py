"""What the exact answer of a call is, and how much of its budget a result has used.

A primitive is judged by what it gets: the logits, the rounded difference of two scores, the distance or the similarity
as computed. So pair losses and losses of embeddings are judged on arguments of which these are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp

import polyloss
from polyloss.conformance import oracle
from polyloss.conformance.budget import FLUSHING, HALF, Exact, entry_spread, faded, spread, ulps

__all__ = ["JUDGES", "Case", "Share", "exact_case", "shares"]

LINES = ("sigmoid", "softplus", "log_sigmoid")
ROWS = ("softmax", "log_softmax", "logsumexp")


@dataclass(frozen=True)
class Case:
    """A call, its exact items and gradients, and the budget of each in ulp."""

    function: str
    arrays: tuple[np.ndarray, ...]
    dtype: str
    options: dict[str, Any]
    items: Exact
    gradient: Exact
    item_budget: np.ndarray
    gradient_budget: np.ndarray
    terms: float = 1  # how many terms may underflow, times what they are multiplied by
    larger_item: np.ndarray | None = None  # where the formula itself subtracts: the larger term
    larger_gradient: np.ndarray | None = None
    wrt: int = 0  # the argument to differentiate in
    cotangent: np.ndarray | None = None  # of a transform; None: ones
    fading: np.ndarray | None = None  # entries of the gradient that are others where subnormal inputs are taken for 0

    @property
    def loss(self) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(polyloss, self.function)
        return found


@dataclass(frozen=True)
class Share:
    """The part of its budget that a result has used, and where."""

    used: float
    at: tuple[int, ...] = ()
    expected: float = 0.0
    got: float = 0.0
    ulps: float = 0.0
    budget: float = 0.0
    of: str = "value"


def shares(
    case: Case, library: str, items: np.ndarray, gradient: np.ndarray | None, roundings: int = 1
) -> tuple[Share, ...]:
    """The largest part of its budget that an item, and an entry of the gradient, has used.

    The items of a 16-bit loss are float32. What comes back in 16 bits is such a number, rounded once, to the nearest;
    with two ``roundings``, so is what it is compared with.
    """
    half = case.dtype in HALF
    compute = "float32" if half else case.dtype
    transform = case.function in (*LINES, *ROWS)
    floor = case.terms * faded(compute, library)
    item_dtype = case.dtype if transform else compute
    narrow = half and transform
    error = ulps(items, case.items, case.larger_item, item_dtype, floor + (faded(item_dtype, "") if narrow else 0))
    error = _before_rounding(error, case.dtype, roundings) if narrow else error
    found = [_share(items, case.items, case.item_budget, error, "value")]
    if gradient is not None:
        floor += faded(case.dtype, "") if half else 0
        larger = case.larger_gradient
        if half and larger is not None:  # what the float32 formula may lose, before it is rounded
            floor = floor + larger * np.max(case.gradient_budget) * 2.0**-23
        error = ulps(gradient, case.gradient, None if half else larger, case.dtype, floor)
        error = _before_rounding(error, case.dtype, roundings) if half else error
        if case.fading is not None and library in FLUSHING:
            error = np.where(case.fading & np.isfinite(gradient), 0.0, error)
        found.append(_share(gradient, case.gradient, case.gradient_budget, error, "gradient"))
    return tuple(found)


def _before_rounding(error: np.ndarray, dtype: str, roundings: int) -> np.ndarray:
    """In ulp of float32, what is more than the half ulp of 16 bits that each rounding to these may take."""
    return np.asarray(np.maximum(error - 0.5 * roundings, 0.0) * 2.0 ** (23 - HALF[dtype][0]))


def _share(got: np.ndarray, exact: Exact, budget: np.ndarray, error: np.ndarray, of: str) -> Share:
    if got.shape != exact.high.shape:
        return Share(np.inf, of=f"{of} (of shape {got.shape}, not {exact.high.shape})")
    error = np.where(np.isnan(error), np.inf, error)  # NaN where a number should be, or the reverse
    used = error / budget
    if used.size == 0:
        return Share(0.0)
    at = np.unravel_index(int(np.argmax(used)), used.shape)
    where = tuple(int(i) for i in at)
    budgets = np.broadcast_to(budget, used.shape)
    return Share(
        float(used[at]), where, float(exact.high[at]), float(got[at]), float(error[at]), float(budgets[at]), of
    )


def exact_case(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    """The exact answer of ``function(*arrays, **options)``; the arrays hold numbers of that dtype."""
    return JUDGES[function](function, arrays, dtype, options)


def plain(x: np.ndarray) -> Any:
    return x.astype(np.float64).tolist()


def _once(function: str, calls: Iterable[tuple[Any, ...]], extra: dict[str, Any]) -> tuple[Exact, Exact]:
    """The exact values and derivatives of these calls, computed once for equal ones."""
    value, slope = oracle.FORMULAS[function]
    calls = list(calls)
    place = {call: i for i, call in enumerate(dict.fromkeys(calls))}
    at = [place[call] for call in calls]
    return Exact([value(*call, **extra) for call in place])[at], Exact([slope(*call, **extra) for call in place])[at]


# Rows of logits.


def _softmax(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    axis = options.get("axis", -1)
    soft = arrays[1].ndim == arrays[0].ndim
    x = np.moveaxis(arrays[0], axis, -1)
    t = np.moveaxis(arrays[1], axis, -1) if soft else arrays[1]
    k = x.shape[-1]
    extra = {name: option for name, option in options.items() if name != "axis"}
    if "class_weights" in extra:
        extra["class_weights"] = plain(extra["class_weights"])
    items, gradient = _once(
        "softmax_cross_entropy", zip(map(tuple, plain(x)), map(tuple, plain(t)) if soft else t.tolist()), extra
    )
    larger_item, larger_gradient = _larger_terms(x, t, soft, options)
    return Case(
        function,
        arrays,
        dtype,
        options,
        items,
        gradient.moved(-1, axis),
        6 + spread(x) + np.log2(k),
        np.moveaxis(6 + entry_spread(x) + np.log2(k), -1, axis),
        k * float(np.max(options.get("class_weights", 1.0))),
        larger_item,
        None if larger_gradient is None else np.moveaxis(larger_gradient, -1, axis),
    )


def _larger_terms(
    x: np.ndarray, t: np.ndarray, soft: bool, options: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The terms that the formula itself subtracts; None where it need not subtract."""
    e, z = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
    if not (soft or e or z):
        return None, None
    x64 = x.astype(np.float64)
    top = np.max(x64, axis=-1, keepdims=True)
    p = np.exp(x64 - top)
    total = p.sum(axis=-1, keepdims=True)
    p, lse = p / total, top + np.log(total)
    k = x.shape[-1]
    q = (t.astype(np.float64) if soft else np.eye(k)[t]) * (1 - e) + e / k
    q *= options.get("class_weights", np.ones(k))
    reach = np.maximum(np.abs(lse), np.abs(top))
    larger_gradient = np.maximum(np.maximum(q.sum(axis=-1, keepdims=True) * p, q), 2 * z * reach * p)
    return (z * reach**2)[..., 0] if z else None, larger_gradient


def _info_nce(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    """One feature and the dot product with queries of 1, and a temperature that is a power of two.

    So the logits are the similarities over it, exactly.
    """
    _, positives, negatives = arrays
    temperature = options["temperature"]
    x = np.concatenate([positives, negatives[..., 0]], axis=-1).astype(np.float64) / temperature
    k = x.shape[-1]
    value, slope = oracle.FORMULAS["softmax_cross_entropy"]
    rows = plain(x)
    return Case(
        function,
        arrays,
        dtype,
        options,
        Exact([value(row, 0) for row in rows]),
        Exact([[slope(row, 0)[0] / temperature] for row in rows]),
        6 + spread(x) + np.log2(k),
        (6 + entry_spread(x) + np.log2(k))[:, :1],
        k * max(1.0, 1 / temperature),
        wrt=1,
    )


# One number for each item.


def _sigmoid(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    x, t = arrays
    p, e = options.get("pos_weight", np.asarray(1.0)), options.get("label_smoothing", 0.0)
    value, slope = oracle.FORMULAS["sigmoid_cross_entropy"]
    rows = list(zip(plain(x), plain(t), plain(np.broadcast_to(p, x.shape))))
    smooth = t.astype(np.float64) * (1 - e) + e / 2
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-x.astype(np.float64)))
    fractions = bool(e) or bool(np.any((t != 0) & (t != 1)))
    return Case(
        function,
        arrays,
        dtype,
        options,
        Exact([value(*row, e) for row in rows]),
        Exact([slope(*row, e) for row in rows]),
        np.full(x.shape, 6.0),
        np.full(x.shape, 6.0),
        max(1.0, float(np.max(p))),
        larger_gradient=np.maximum((1 - smooth) * s, p * smooth * (1 - s)) if fractions else None,
    )


def _pairs(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    positive, negative = arrays
    compute = np.dtype("float32" if dtype in HALF else dtype).type
    difference = positive.astype(compute) - negative.astype(compute)
    argument = difference if function == "bpr" else compute(options.get("margin", 1.0)) - difference
    value, slope = oracle.FORMULAS[function]
    six = np.full(positive.shape, 6.0)
    numbers = plain(argument)
    return Case(
        function,
        arrays,
        dtype,
        options,
        Exact([value(v) for v in numbers]),
        Exact([slope(v) for v in numbers]),
        six,
        six,
    )


def _distances(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    """One feature, so that the distance is ``|first - second|``, exactly."""
    embeddings = function == "contrastive"
    first, similar = arrays[0], arrays[-1]
    compute = np.dtype("float32" if dtype in HALF else dtype).type
    d = np.abs(first[..., 0] - arrays[1][..., 0]) if embeddings else first
    short = compute(options.get("margin", 1.0)) - d.astype(compute)
    value, slope = oracle.FORMULAS["contrastive_from_distance"]
    rows = list(zip(plain(d), plain(short), plain(similar)))
    gradient: list[Any] = [slope(*row) for row in rows]
    s = similar.astype(np.float64)
    larger = 2 * np.maximum(s * d, (1 - s) * np.maximum(short, 0))
    fading = None
    if embeddings:
        fading = ((d > 0) & (d < np.finfo(compute).tiny))[:, None]  # a kink: at 0 the gradient is 0
        signs = np.sign(first[..., 0] - arrays[1][..., 0])
        gradient = [[g * int(sign) if sign else mp.mpf(0)] for g, sign in zip(gradient, signs)]
        larger = larger[:, None]
    return Case(
        function,
        arrays,
        dtype,
        options,
        Exact([value(*row) for row in rows]),
        Exact(gradient),
        np.full(d.shape, 6.0),
        np.full(larger.shape, 6.0),
        larger_gradient=larger,
        fading=fading,
    )


def _probabilities(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    p, t = arrays
    value, slope = oracle.FORMULAS[function]
    pairs = list(zip(plain(p), plain(t) if t.dtype.kind == "f" else t.tolist()))
    items, gradient = Exact([value(*pair) for pair in pairs]), Exact([slope(*pair) for pair in pairs])
    six = np.full(p.shape, 6.0)
    if function == "log_loss":
        return Case(function, arrays, dtype, options, items, gradient, six[:, 0], six)
    larger = np.maximum((1 - t) / (1 - p.astype(np.float64)), t / p.astype(np.float64))
    return Case(function, arrays, dtype, options, items, gradient, six, six, larger_gradient=larger)


# Transforms. An entry of a Jacobian is a product of two probabilities, or a probability: each factor has the budget of
# an entry. The cotangent chooses one row of it.


def _line(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    (x,) = arrays
    value, slope = oracle.FORMULAS[function]
    items, gradient = Exact([value(v) for v in plain(x)]), Exact([slope(v) for v in plain(x)])
    return Case(
        function, arrays, dtype, options, items, gradient, np.full(x.shape, 6.0), np.full(x.shape, 12.0), terms=2
    )


def _row(function: str, arrays: tuple[np.ndarray, ...], dtype: str, options: dict[str, Any]) -> Case:
    """``options["entry"]``: the entry of the result whose derivatives are judged."""
    (x,) = arrays
    entry = options.get("entry", 0)
    k = x.shape[-1]
    value, slope = oracle.FORMULAS[function]
    cotangent, whole = None, function == "logsumexp"
    if not whole:
        cotangent = np.zeros(x.shape)
        cotangent[:, entry] = 1
    own = entry_spread(x)
    reach = own if whole else np.maximum(own, own[:, entry : entry + 1])
    item_spread = {"softmax": own, "log_softmax": spread(x)[:, None], "logsumexp": spread(x)}[function]
    return Case(
        function,
        arrays,
        dtype,
        {},
        Exact([value(row) for row in plain(x)]),
        Exact([slope(row) if whole else slope(row, entry) for row in plain(x)]),
        np.broadcast_to(6 + item_spread + np.log2(k), x.shape[:1] if whole else x.shape),
        2 * (6 + reach + np.log2(k)),
        terms=k,
        larger_item=np.max(x, axis=-1).astype(np.float64) if whole else None,
        cotangent=cotangent,
    )


JUDGES: dict[str, Callable[..., Case]] = {
    "sigmoid_cross_entropy": _sigmoid,
    "softmax_cross_entropy": _softmax,
    "pairwise_hinge": _pairs,
    "bpr": _pairs,
    "contrastive": _distances,
    "contrastive_from_distance": _distances,
    "info_nce": _info_nce,
    "binary_log_loss": _probabilities,
    "log_loss": _probabilities,
    **dict.fromkeys(LINES, _line),
    **dict.fromkeys(ROWS, _row),
}
