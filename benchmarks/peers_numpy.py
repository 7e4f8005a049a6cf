"""The peers that compute on NumPy arrays: plain NumPy as one writes it by hand, SciPy, and scikit-learn's ``_loss``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.contestants import Run
from benchmarks.workloads import TEMPERATURE, Workload

__all__ = ["plain", "scikit_learn", "scipy_special"]

Loss = Callable[[np.ndarray, np.ndarray], Any]


def plain(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _choose(workload, x, y, _softmax, _softmax_value, _sigmoid)


def scipy_special(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _choose(workload, x, y, _scipy_softmax, _scipy_softmax_value, _scipy_sigmoid)


def scikit_learn(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run | None:
    """Its losses are per item and its gradients those of the sum; the division by the mean is included."""
    from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss

    if workload.loss == "info_nce":
        return None
    softmax = workload.loss == "softmax_cross_entropy"
    loss = HalfMultinomialLoss(n_classes=x.shape[1]) if softmax else HalfBinomialLoss()
    targets = y.astype(x.dtype)  # labels too, as it requires

    def value_and_gradient() -> tuple[Any, np.ndarray]:
        losses, gradient = loss.loss_gradient(targets, x, n_threads=threads)
        gradient /= len(x)
        return losses.mean(), gradient

    return value_and_gradient if workload.gradient else lambda: loss.loss(targets, x, n_threads=threads).mean()


def _choose(workload: Workload, x: np.ndarray, y: np.ndarray, softmax: Loss, value: Loss, sigmoid: Loss) -> Run:
    if workload.loss == "info_nce":
        return lambda: _info_nce(softmax, x, y)
    if workload.loss == "sigmoid_cross_entropy":
        return lambda: sigmoid(x, y)
    return (lambda: softmax(x, y)) if workload.gradient else (lambda: value(x, y))


# Plain NumPy.


def _softmax(x: np.ndarray, y: np.ndarray) -> tuple[Any, np.ndarray]:
    i = np.arange(len(x))
    z = x - x.max(axis=1, keepdims=True)
    e = np.exp(z)
    s = e.sum(axis=1, keepdims=True)
    loss = (np.log(s[:, 0]) - z[i, y]).mean()
    g = e / s
    g[i, y] -= 1
    g /= len(x)
    return loss, g


def _softmax_value(x: np.ndarray, y: np.ndarray) -> Any:
    z = x - x.max(axis=1, keepdims=True)
    return (np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(x)), y]).mean()


def _sigmoid(x: np.ndarray, t: np.ndarray) -> tuple[Any, np.ndarray]:
    e = np.exp(-np.abs(x))
    loss = (np.maximum(x, 0) - x * t + np.log1p(e)).mean()
    g = np.where(x >= 0, 1, e) / (1 + e)
    g -= t
    g /= len(x)
    return loss, g


def _info_nce(softmax: Loss, q: np.ndarray, p: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    sizes = [np.linalg.norm(a, axis=1, keepdims=True) for a in (q, p)]
    q, p = q / sizes[0], p / sizes[1]
    similarities = q @ p.T
    similarities /= TEMPERATURE
    loss, g = softmax(similarities, np.arange(len(q)))
    g /= TEMPERATURE
    gq, gp = g @ p, g.T @ q
    gq -= q * (gq * q).sum(axis=1, keepdims=True)
    gp -= p * (gp * p).sum(axis=1, keepdims=True)
    gq /= sizes[0]
    gp /= sizes[1]
    return loss, gq, gp


# SciPy, by the shortest way through its functions: probabilities are the exponentials of what the loss needs anyway.


def _scipy_softmax(x: np.ndarray, y: np.ndarray) -> tuple[Any, np.ndarray]:
    from scipy.special import log_softmax

    i = np.arange(len(x))
    g = log_softmax(x, axis=1)
    loss = -g[i, y].mean()
    np.exp(g, out=g)
    g[i, y] -= 1
    g /= len(x)
    return loss, g


def _scipy_softmax_value(x: np.ndarray, y: np.ndarray) -> Any:
    from scipy.special import log_softmax

    return -log_softmax(x, axis=1)[np.arange(len(x)), y].mean()


def _scipy_sigmoid(x: np.ndarray, t: np.ndarray) -> tuple[Any, np.ndarray]:
    from scipy.special import expit, log_expit

    loss = ((1 - t) * x - log_expit(x)).mean()  # log_expit(-x) is log_expit(x) - x
    g = expit(x)
    g -= t
    g /= len(x)
    return loss, g
