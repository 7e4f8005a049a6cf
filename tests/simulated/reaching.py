"""For each kernel for CUDA memory a small call that launches it, with rows and elements that are hard.

Sizes, dtypes, addresses and options are what the dispatch decides by. Only what is long is not as it is on a device:
there rows are never split among blocks unless that is asked for, and shared memory holds one batch of a row, so that a
long row has one batch in registers, one there and one that is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from layouts import binary_terms, dtype_of

import polyloss
from polyloss.backends.cuda import lse
from polyloss.backends.cuda.call import WHOLE, WIDE
from polyloss.backends.cuda.fields import BATCH
from polyloss.backends.cuda.lse import SIZE
from polyloss.conformance.budget import entry_spread, spread

__all__ = ["Call", "call_of", "placed"]

Key = tuple[Any, ...]

BYTES = {  # of a row, by the form of the kernel; not whole vectors
    "block64": 3000,
    "block128": 6000,
    "block256": 12_000,
    "long256": 2 * 256 * BATCH * 16 + 1000,
    "long512": 2 * 512 * BATCH * 16 + 1000,
}
CLASSES = {"few": 9, "few vectors": 24, "warp": 131, "scalar warp": 131, "scalar block": 1201}
SMOOTHING = 0.1


@dataclass
class Call:
    """A call, the kernels that it launches in their order, and what its numbers are judged by."""

    of: Callable[..., Any]
    arrays: tuple[np.ndarray, ...]
    launched: list[Key]
    options: dict[str, Any] = field(default_factory=dict)
    gradient: bool = True
    by_rule: bool = False  # the gradient after the value and apart from it, as an autodiff asks for it
    item_budget: Any = 6.0
    gradient_budget: Any = 6.0
    larger: np.ndarray | None = None  # of the gradient: the larger term, where the formula itself subtracts
    larger_item: np.ndarray | None = None


def placed(x: np.ndarray, shift: int = 0) -> np.ndarray:
    """The numbers so many bytes above an aligned address."""
    base = np.empty(x.nbytes + 256, np.uint8)
    start = -base.__array_interface__["data"][0] % 128 + shift
    view = base[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def call_of(key: Key, patch: pytest.MonkeyPatch) -> Call:
    """The call that launches this kernel."""
    patch.setattr(lse, "room", lambda device, static: (2048 + 2 * 256 * BATCH * 16, 256 * BATCH * 16))
    patch.setattr(lse, "SPLIT", 0)
    return {
        "rows": _rows,
        "split": partial(_split, patch),
        "soft": _soft,
        "elements": _elements,
        "sums": _sums,
        "transforms": _transforms,
    }[key[0]](*key[1:])


# Rows.


def _logits(form: str, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, and which rows are kept.

    A row in which the label leads, ties far from 0, a masked row of NaN; and where rows are not long, an infinite
    logit, a label out of range, and classes of probability 0.
    """
    k = CLASSES.get(form) or BYTES[form] // SIZE[dtype] | 1
    rng, n = np.random.default_rng(k), 6 if k < 1300 else 3
    x, y = 3 * rng.standard_normal((n, k)), rng.integers(1, k - 1, n)
    x[0, y[0]] = 30.0
    x[1] += 1000
    x[1, [0, k // 2, -1]] = 1016  # in 16 bits too
    x[2, ::2] = np.nan
    if n > 3:
        x[3, y[3]] = np.inf
        y[4] = k
        x[5, ::3] = -np.inf
    return placed(x.astype(dtype_of(dtype)), SIZE[dtype] * (form == "scalar block")), y, np.arange(n) != 2


def _tame(x: np.ndarray, kept: np.ndarray | bool = True) -> np.ndarray:
    """The logits that a budget depends on: finite ones that are kept, and the least of these in place of the others."""
    x = x.astype(np.float64)
    fine = np.isfinite(x) & kept
    return np.where(fine, x, np.min(x, axis=-1, keepdims=True, where=fine, initial=2000.0))


def _of_rows(x: np.ndarray, kept: np.ndarray | bool = True) -> dict[str, Any]:
    tame, terms = _tame(x, kept), np.log2(x.shape[-1])
    return {"item_budget": 6 + spread(tame) + terms, "gradient_budget": 6 + entry_spread(tame) + terms}


def _weighted(x: np.ndarray, keep: np.ndarray) -> dict[str, Any]:
    n, k = x.shape
    wide = x.dtype if x.dtype == np.float64 else np.float32
    c = np.linspace(0.5, 1.5, k).astype(wide)
    return {"weights": np.linspace(0.5, 2, n).astype(wide), "where": keep, "class_weights": c}


def _rows(x: str, labels: str, form: str, value: bool, gradient: bool) -> Call:
    own = "rows", x, labels, form, value, gradient
    by_rule = gradient and not value
    # The gradient alone of a long row is that of its pieces; and the value alone has nothing to be aligned with.
    logits, y, keep = _logits("long256" if by_rule and form == "block256" else form, x)
    alone = lse.shape_of(logits.shape[-1], SIZE[x], True, True, 0).form
    before = [("rows", x, labels, alone, True, False)] if by_rule else []
    return Call(
        polyloss.softmax_cross_entropy,
        (logits, y.astype(labels)),
        [*before, own],
        _weighted(logits, keep),
        gradient,
        by_rule,
        **_of_rows(logits),
    )


def _split(patch: pytest.MonkeyPatch, x: str, labels: str, form: str) -> Call:
    logits, y, keep = _logits("block256", x)
    patch.setattr(lse, "SPLIT", 64)
    patch.setattr(lse, "LONG", logits.shape[-1] * SIZE[x] // 3)
    kind = labels or "int64"
    launched: list[Key] = [("split", x, "", "block512"), ("split", x, kind, "")]
    options = _weighted(logits, keep)
    return Call(polyloss.softmax_cross_entropy, (logits, y.astype(kind)), launched, options, False, **_of_rows(logits))


def _soft(x: str, t: str, general: bool, form: str, gradient: bool) -> Call:
    logits, y, keep = _logits(form, x)
    n, k = logits.shape
    hot = np.eye(k)[np.where(y < k, y, 0)]
    mask = (np.random.default_rng(1).random((n, k)) < 0.9) | (hot != 0)
    options: dict[str, Any] = _weighted(logits, keep)
    if general:
        options["class_mask"] = placed(mask)
    else:
        del options["class_weights"]
        mask[...] = True
    if t in WIDE:
        soft = (np.random.default_rng(2).random((n, k)) / k + hot) / 2
        soft[logits == -np.inf] = 0
        targets = placed(soft.astype(dtype_of(t)))
        q = targets.astype(np.float64)
        targets[4:5, -1] = 1.5
    else:
        options["label_smoothing"] = SMOOTHING
        targets = y.astype(t)
        q = hot * (1 - SMOOTHING) + SMOOTHING / np.sum(mask, axis=-1, keepdims=True)
    q = q * options.get("class_weights", 1.0) * mask
    tame = np.where(mask, _tame(logits, mask), -np.inf)
    p = np.exp(tame - np.max(tame, axis=-1, keepdims=True))
    p /= np.sum(p, axis=-1, keepdims=True)
    larger = np.maximum(np.sum(q, axis=-1, keepdims=True) * p, q) * options["weights"][:, None]
    return Call(
        polyloss.softmax_cross_entropy,
        (logits, targets),
        [("soft", x, t, general, form, gradient)],
        options,
        gradient,
        larger=larger,
        **_of_rows(logits, mask),
    )


# Elements.


def _elements(x: str, t: str, form: str, value: bool, gradient: bool) -> Call:
    rng = np.random.default_rng(0)
    shape = (165,) if form == "plain" else (5, 33)
    logits, wide = 10 * rng.standard_normal(shape), np.float64 if x == "float64" else np.float32
    logits.flat[:6] = [np.inf, -np.inf, 0.0, -0.0, 300.0, -300.0]
    targets = rng.integers(0, 2, shape) if t in WHOLE else rng.random(shape)
    logits, targets = logits.astype(dtype_of(x)), targets.astype(dtype_of(t))
    options: dict[str, Any] = {}
    if form != "plain":
        options = {
            "weights": np.linspace(0.5, 2, 5).astype(wide),
            "pos_weight": np.linspace(0.5, 2, 33).astype(wide),
            "where": np.arange(5) != 3,
            "label_smoothing": SMOOTHING,
        }
        logits[3, ::2] = np.nan
    with np.errstate(invalid="ignore"):
        larger = binary_terms(logits, targets, options.get("pos_weight", 1.0), options.get("label_smoothing", 0.0))
    targets.flat[9] = 2  # out of range, unless it is a bool
    by_rule, launched = gradient and not value, ("elements", x, t, form, value, gradient)
    return Call(
        polyloss.sigmoid_cross_entropy,
        (placed(logits, SIZE[x] * (form == "scalars")), placed(targets)),
        [("elements", x, t, form, True, False), launched] if by_rule else [launched],
        options,
        gradient,
        by_rule,
        larger=larger * options["weights"][:, None] if options else larger,
    )


def _sums(wide: str) -> Call:
    x = (10 * np.random.default_rng(0).standard_normal(3000)).astype(wide)
    launched: list[Key] = [("elements", wide, wide, "plain", True, True), ("sums", wide)]
    arrays = placed(x), placed(np.zeros_like(x))
    return Call(polyloss.sigmoid_cross_entropy, arrays, launched, {"reduction": "sum"})


def _transforms(function: str, x: str, form: str) -> Call:
    call = partial(Call, getattr(polyloss, function), launched=[("transforms", function, x, form)], gradient=False)
    if not form:
        numbers = 10 * np.random.default_rng(0).standard_normal(300)
        numbers[:7] = [np.inf, -np.inf, 0.0, -0.0, 300.0, -300.0, np.nan]
        return call((placed(numbers.astype(dtype_of(x))),))
    logits, _, _ = _logits(form, x)
    tame, terms, whole = _tame(logits), np.log2(logits.shape[-1]), function == "logsumexp"
    own = entry_spread(tame) if function == "softmax" else spread(tame) if whole else spread(tame)[:, None]
    budget = np.broadcast_to(6 + own + terms, logits.shape[:1] if whole else logits.shape)
    return call((logits,), item_budget=budget, larger_item=np.max(np.abs(tame), axis=-1) if whole else None)
