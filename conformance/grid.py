"""Hard inputs by construction, and a strategy that draws more of them.

Gaps between the label and the others, huge offsets, ties, one class and 128,000, one row, subnormal and largest finite
numbers, signed zeros, soft targets with zeros, duplicates. What has no finite answer is in `limits`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from polyloss.conformance.budget import HALF
from polyloss.conformance.exact import LINES, ROWS, Case, exact_case
from polyloss.conformance.routes import rounded

__all__ = ["GAPS", "SIZES", "VARIANTS", "case", "drawn", "grid"]

GAPS = (0.0, 1e-3, 0.5, 3.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)

Call = tuple[tuple[np.ndarray, ...], dict[str, Any]]


SIZES = {
    "quick": (1, 2, 10),
    "standard": (1, 2, 3, 10, 33, 1000),
    "thorough": (1, 2, 3, 10, 32, 33, 257, 1000, 4097, 128_000),
}
"""How many classes the rows of each level have."""

TEMPERATURES = {"one feature": 0.25, "cold": 2.0**-12, "hot": 2.0**12}
"""Of info_nce: powers of two."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "softmax_cross_entropy": ("hard", "soft", "smooth", "soft and smooth", "class weights", "z", "axis 0", "batch"),
    "sigmoid_cross_entropy": ("hard", "soft", "smooth", "pos_weight"),
    "pairwise_hinge": ("pairs",),
    "bpr": ("pairs",),
    "contrastive": ("one feature",),
    "contrastive_from_distance": ("distances",),
    "info_nce": tuple(TEMPERATURES),
    "binary_log_loss": ("hard", "soft"),
    "log_loss": ("rows",),
    **dict.fromkeys(LINES, ("line",)),
    **dict.fromkeys(ROWS, ("rows",)),
}


# Numbers.


def extremes(dtype: str) -> np.ndarray:
    """Zero of both signs, the smallest and the largest numbers of that dtype, and its resolution."""
    if dtype in HALF:
        bits, tiny, largest = HALF[dtype]
        numbers = [0.0, tiny * 2.0**-bits, tiny / 2, tiny, 2.0**-bits, largest]
    else:
        info = np.finfo(dtype)
        numbers = [0.0, float(info.smallest_subnormal), float(info.tiny) / 2, float(info.tiny), float(info.eps)]
        numbers += [float(info.max)]
    return np.array([sign * x for x in numbers for sign in (1, -1)])


def line(dtype: str, largest: bool = True) -> np.ndarray:
    """Numbers on both sides of 0, of every size."""
    rng = np.random.default_rng(7)
    x = np.concatenate([GAPS, rng.standard_normal(50), rng.uniform(0, 100, 50), [1e-30, 1e-7, 300.0, 700.0]])
    found = np.concatenate([x, -x, extremes(dtype)])
    return rounded(found if largest else found[np.abs(found) < 1e3], _stored(dtype)).astype(_stored(dtype))


def _stored(dtype: str) -> str:
    return "float32" if dtype in HALF else dtype


def rows(k: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which the label leads by each gap, trails by it, or stands somewhere; near 0 and far away."""
    rng = np.random.default_rng(k)
    table = rng.standard_normal(512)  # few distinct values, so that the oracle can be quick
    found, labels = [], []
    for gap in GAPS if k <= 1000 else (0.0, 20.0, 100.0):
        for lead, offset in ((gap, 0.0), (-gap, 0.0), (gap, 1000.0)) if k <= 1000 else ((gap, 0.0),):
            x, y = rng.choice(table, k), int(rng.integers(k))
            if k > 1:
                x[y] = (np.max(np.delete(x, y)) if lead >= 0 else np.min(np.delete(x, y))) + lead
            found.append(x + offset)
            labels.append(y)
    if k <= 1000:
        largest = float(np.max(extremes(dtype)))
        special = [np.zeros(k), np.full(k, -0.0), np.full(k, largest), np.arange(k) * extremes(dtype)[2]]
        special += [np.where(np.arange(k) == 0, 0.0, -0.9 * largest), np.where(np.arange(k) == k - 1, 0.0, -88.5)]
        special += [np.where(np.arange(k) % 2 == 0, 5.0, rng.choice(table, k))]
        found += special
        labels += [int(rng.integers(k)) for _ in special]
    return np.array(found), np.array(labels)


def soft(k: int, n: int, seed: int = 1) -> np.ndarray:
    """Target rows, some of them nearly one-hot, many entries zero."""
    rng = np.random.default_rng(k + seed)
    t = rng.random((n, k)) * (rng.random((n, k)) < 0.5) + np.eye(k)[rng.integers(k, size=n)]
    return np.asarray(t / t.sum(axis=-1, keepdims=True))


# Calls.


def softmax_call(variant: str, x: np.ndarray, labels: np.ndarray) -> Call:
    n, k = x.shape
    options: dict[str, Any] = {}
    t = soft(k, n) if variant.startswith("soft") else labels
    if variant.endswith("smooth"):
        options["label_smoothing"] = 0.125
    elif variant == "z":
        options["z_loss"] = 0.0078125
    elif variant == "class weights":
        options["class_weights"] = np.random.default_rng(k + 2).random(k) + 0.5
    elif variant == "axis 0":
        return (x.T.copy(), labels), {"axis": 0}
    return (x, t), options


def sigmoid_call(variant: str, x: np.ndarray) -> Call:
    rng = np.random.default_rng(8)
    t = rng.random(x.shape) if variant == "soft" else rng.integers(2, size=x.shape).astype(np.float64)
    options: dict[str, Any] = {"label_smoothing": 0.001} if variant == "smooth" else {}  # its half keeps its digits
    if variant == "pos_weight":
        options["pos_weight"] = 3 * rng.random(x.shape) + 0.3
    return (x, t), options


def distance_call(function: str, d: np.ndarray) -> Call:
    rng = np.random.default_rng(10)
    d = np.abs(d)
    similar = np.where(rng.random(d.shape) < 0.5, rng.integers(2, size=d.shape), rng.random(d.shape))
    if function == "contrastive_from_distance":
        return (d, similar), {"margin": 5.0}
    sign = np.where(rng.random(d.shape) < 0.5, -1, 1)
    return ((sign * d)[:, None], np.zeros_like(d)[:, None], similar), {"margin": 5.0}


def info_nce_call(variant: str, dtype: str, x: np.ndarray) -> Call:
    """With the rows as logits, as far as their similarities are numbers of that dtype."""
    temperature, largest = TEMPERATURES[variant], np.max(extremes(dtype))
    x = np.clip(x * temperature, -largest, largest)
    given = (np.ones((len(x), 1)), x[:, :1], x[:, 1:, None])
    return given, {"temperature": temperature, "similarity": "dot", "in_batch": False}


def probabilities(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(11)
    lost = 10.0 ** -rng.uniform(0, 6, 50)
    p = np.concatenate([rng.random(50), 10.0 ** -rng.uniform(0, 30, 50), 1 - lost])
    top = 1 - (2.0 ** -(HALF[dtype][0] + 1) if dtype in HALF else float(np.finfo(dtype).epsneg))
    return np.asarray(np.clip(p, 2.0**-14 if dtype == "float16" else 0.0, top))


def distributions(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rows of probabilities in that dtype that sum to 1, closely enough, and are not 0."""
    p = np.exp(x - np.max(x, axis=-1, keepdims=True)) + (2.0**-20 if dtype == "float16" else 1e-30)
    p = rounded(p / p.sum(axis=-1, keepdims=True), dtype).astype(np.float64)
    p[np.arange(len(p)), np.argmax(p, axis=-1)] += 1 - p.sum(axis=-1)  # what the rounding took
    return p


def calls(function: str, dtype: str, sizes: tuple[int, ...]) -> Iterator[tuple[str, Call]]:
    """The hard calls of a function, by name; their numbers are not rounded yet."""
    for variant in VARIANTS[function]:
        if function == "softmax_cross_entropy":
            for k in (
                *sizes,
                *((65,) if variant in ("hard", "soft") and max(sizes) <= 10 else ()),
            ):  # a loop's remainder
                if variant not in ("hard", "axis 0") and (k == 1 or k > 1000):
                    continue
                if variant == "batch":  # enough rows for several threads, few enough for the oracle
                    if k == 10:
                        x, y = rows(k, dtype)
                        times = 1 + 40_000 // len(x)
                        yield variant, softmax_call("hard", np.tile(x, (times, 1)), np.tile(y, times))
                    continue
                x, y = rows(k, dtype)
                kept = np.max(np.abs(x), axis=-1) < (1e15 if variant == "z" else np.inf)  # its square is a number
                yield f"{variant} of {k}", softmax_call(variant, x[kept], y[kept])
        elif function == "sigmoid_cross_entropy":
            yield variant, sigmoid_call(variant, line(dtype, largest=False).astype(np.float64))
        elif variant == "pairs":
            lead = line(dtype, largest=False).astype(np.float64)
            negative = np.random.default_rng(9).standard_normal(lead.shape)
            yield variant, ((lead + negative, negative), {})
        elif function in ("contrastive", "contrastive_from_distance"):
            yield variant, distance_call(function, line(dtype, largest=False).astype(np.float64))
        elif function == "info_nce":
            for k in sizes:
                if 1 < k <= 1000:
                    yield f"{variant}, {k} candidates", info_nce_call(variant, dtype, rows(k, dtype)[0][:30])
        elif function == "binary_log_loss":
            p = probabilities(dtype)
            rng = np.random.default_rng(12)
            t = rng.integers(2, size=p.shape).astype(np.float64) if variant == "hard" else rng.random(p.shape)
            yield variant, ((p, t), {})
        elif function == "log_loss":
            x, labels = rows(10, dtype)
            yield variant, ((distributions(x[:30], dtype), labels[:30]), {})
        elif function in LINES:
            yield variant, ((line(dtype).astype(np.float64),), {})
        else:
            for k in sizes:
                if k <= 1000:
                    x, _ = rows(k, dtype)
                    yield f"rows of {k}", ((x,), {"entry": k // 3})
            if function == "logsumexp":
                continue
            flat = np.random.default_rng(12).standard_normal((1, 1000)) / 100
            # At the top, -p is small and must not be formed as (1 - p) - 1.
            yield "a flat row of 1000", ((flat,), {"entry": int(np.argmin(flat))})


def case(function: str, dtype: str, call: Call) -> Case:
    """The call with its numbers in that dtype, and its exact answer."""
    arrays, options = call
    stored = _stored(dtype)
    given = tuple(rounded(x, dtype).astype(stored) if x.dtype.kind == "f" else x for x in arrays)
    kept = {
        name: rounded(x, dtype).astype(stored) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
        for name, x in options.items()
    }
    return exact_case(function, given, dtype, kept)


@functools.cache
def grid(function: str, dtype: str, level: str) -> dict[str, Case]:
    """The hard cases of a function, by name."""
    return {name: case(function, dtype, call) for name, call in calls(function, dtype, SIZES[level])}


# Drawn numbers: of a fixed shape, so that a compiler compiles once.


def _number(dtype: str) -> st.SearchStrategy[float]:
    width = {"float64": 64, "float16": 16}.get(dtype, 32)
    bound = 1e4 if dtype == "float16" else 1e6
    return st.one_of(
        st.integers(-20, 20).map(float),
        st.floats(-100, 100, width=width),
        st.floats(-bound, bound, width=width),
        st.sampled_from([g * s for g in GAPS for s in (1, -1)]),
        st.sampled_from([float(v) for v in extremes(dtype) if abs(v) < 1]),
    )


def _array(dtype: str, *shape: int) -> st.SearchStrategy[np.ndarray]:
    count = int(np.prod(shape))
    return st.lists(_number(dtype), min_size=count, max_size=count).map(lambda v: np.array(v).reshape(shape))


def drawn(function: str, dtype: str, variant: str, n: int = 2, k: int = 3) -> st.SearchStrategy[Call]:
    """Calls like those of the grid, of n items of k classes."""
    wide = _array(dtype, n, k)
    labels = st.lists(st.integers(0, k - 1), min_size=n, max_size=n).map(np.array)
    if function == "softmax_cross_entropy":
        return st.builds(functools.partial(softmax_call, variant), wide, labels)
    if function == "sigmoid_cross_entropy":
        return _array(dtype, n).map(functools.partial(sigmoid_call, variant))
    if function in ("pairwise_hinge", "bpr"):
        return st.tuples(_array(dtype, n), _array(dtype, n)).map(lambda pair: (pair, {}))
    if function in ("contrastive", "contrastive_from_distance"):
        return _array(dtype, n).map(functools.partial(distance_call, function))
    if function == "info_nce":
        return wide.map(functools.partial(info_nce_call, variant, dtype))
    if function == "binary_log_loss":
        p = st.floats(2.0**-14, 1 - 2.0**-7)
        t = st.sampled_from([0.0, 1.0]) if variant == "hard" else st.sampled_from([0.0, 0.25, 0.5, 1.0])
        return st.lists(st.tuples(p, t), min_size=n, max_size=n).map(
            lambda pairs: (tuple(np.array(column) for column in zip(*pairs)), {})
        )
    if function == "log_loss":
        return st.tuples(_array(dtype, n, k), labels).map(lambda pair: ((distributions(pair[0], dtype), pair[1]), {}))
    if function in LINES:
        return _array(dtype, n).map(lambda x: ((x,), {}))
    return st.tuples(wide, st.integers(0, k - 1)).map(lambda pair: ((pair[0],), {"entry": pair[1]}))
