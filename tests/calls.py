"""A call of each function that succeeds, and the same with another argument, in another library, or under `jit`.

An array that is not NumPy's is made when its test runs, so that a library that is not installed skips its own tests
alone.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import gradients

NAN, INF, WIDE = math.nan, math.inf, 2**32 + 1
STRICT, DEVICES = "array_api_strict", ("CPU_DEVICE", "device1")
HOST = ("numpy", "torch", "jax.numpy", STRICT)  # where values are checked
NAMESPACES = (*HOST, "dask.array")

X = np.array([[0.5, -1.0, 2.0, 0.0], [0.0, 3.0, -0.5, 1.0], [1.5, 0.5, 0.25, -2.0]])  # logits, scores, embeddings
T = np.array([[1.0, 0.0, 0.5, 0.25], [0.25, 0.5, 1.0, 0.0], [0.0, 0.75, 0.25, 1.0]])  # targets of each element
P = np.array([[0.5, 0.25, 0.125, 0.125], [0.125, 0.75, 0.0625, 0.0625], [0.25, 0.25, 0.25, 0.25]])  # rows that sum to 1
V, S, Y = np.array([0.5, 1.5, 0.25]), np.array([1.0, 0.0, 0.5]), np.array([2, 0, 3])  # scores, similar, labels
HOT = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
NEGATIVES = np.ones((5, 4))

CALLS: dict[str, dict[str, Any]] = {  # a call of each function that succeeds
    "sigmoid_cross_entropy": {"logits": X, "targets": T},
    "softmax_cross_entropy": {"logits": X, "targets": Y},
    "binary_log_loss": {"probabilities": P, "targets": T},
    "log_loss": {"probabilities": P, "targets": Y},
    "pairwise_hinge": {"positive_scores": V, "negative_scores": V},
    "bpr": {"positive_scores": V, "negative_scores": V},
    "contrastive": {"first": X, "second": X, "similar": S},
    "contrastive_from_distance": {"distances": V, "similar": S},
    "info_nce": {"queries": X, "positives": X},
    **{name: {"x": X} for name in ("sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp")},
}
LOSSES = [name for name in CALLS if "x" not in CALLS[name]]
# Where a double is all there is, NumPy calls that a longdouble too.
LONGDOUBLE = [str(np.dtype(np.longdouble))] if np.dtype(np.longdouble).itemsize > 8 else []


class Series:
    """What pandas passes: it has a dtype, a shape and values, and is no array."""

    dtype, shape, ndim, values = np.dtype(float), (3, 4), 2, X

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return X


def forget_calls() -> None:
    """As in a new process: no call is known that could be replayed."""
    gradients._with_gradients.cache_clear()
    for loss in gradients._FORMULAS:
        inspect.getclosurevars(loss).nonlocals["replays"].clear()


@dataclass(frozen=True)
class In:
    """An array of another library, made when the test runs."""

    library: str
    numbers: Any
    dtype: str = ""
    device: str = ""

    def array(self) -> Any:
        xp, options = namespace(self.library), {}
        if self.dtype:
            types = namespace("ml_dtypes") if self.library == "numpy" else xp
            options["dtype"] = getattr(types, self.dtype)
        if self.device:
            options["device"] = xp.Device(self.device) if hasattr(xp, "Device") else self.device
        return xp.asarray(np.array(self.numbers), **options)


elsewhere = partial(In, STRICT, device=DEVICES[1])


def namespace(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


def made(x: Any) -> Any:
    return x.array() if isinstance(x, In) else [made(y) for y in x] if isinstance(x, list) else x


def in_(library: str, call: partial[Any], **more: Any) -> partial[Any]:
    """The same call with its NumPy arrays in another library, and more arguments as they are."""
    arrays = {name: In(library, x) for name, x in call.keywords.items() if isinstance(x, np.ndarray)}
    return partial(call, **arrays | more)


def given(function: str, **changes: Any) -> partial[Any]:
    return partial(getattr(polyloss, function), **CALLS[function] | changes)


def gradient(function: str, wrt: Any = None, **changes: Any) -> partial[Any]:
    return partial(polyloss.grad(getattr(polyloss, function), wrt), **CALLS[function] | changes)


def jitted(function: str, **changes: Any) -> partial[Any]:
    def compiled(**arguments: Any) -> Any:
        return namespace("jax").jit(getattr(polyloss, function))(**arguments)

    return partial(compiled, **CALLS[function] | changes)


def put(x: np.ndarray, index: Any, value: Any) -> np.ndarray:
    x = x.copy()
    x[index] = value
    return x


sce, bce = partial(given, "softmax_cross_entropy"), partial(given, "sigmoid_cross_entropy")
nce, bpr, pair = partial(given, "info_nce"), partial(given, "bpr"), partial(given, "contrastive")
