"""The demo's tasks: real data, a linear model, a loss of polyloss, and what is measured on held-out data.

Data and initial parameters are NumPy arrays; which library trains the model is not known here. The models use the `@`
and `.T` of the array API standard and nothing else, so they run in every library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.class_weight import compute_sample_weight

import polyloss
from polyloss.backends import Array

__all__ = ["Arrays", "Objective", "Task", "all_tasks"]

Arrays = dict[str, Array]
Objective = Callable[..., tuple[Array, Arrays]]
"""Takes the parameters, and a batch as keyword arguments; returns the loss and the parameters' gradients."""

SEED = 0
HELD_OUT = 0.25


@dataclass(frozen=True)
class Task:
    """One model to train."""

    name: str
    loss: str
    objective: Objective
    initial: Arrays
    batches: Sequence[Arrays]
    """All of one shape, because JAX compiles anew for every shape."""
    rate: float
    epochs: int
    metric: str
    score: Callable[[Arrays], float]
    """The metric of the held-out data, from the parameters."""


def all_tasks(quick: bool = False) -> list[Task]:
    """Every task; ``quick`` trains each for an eighth of its epochs."""
    tasks = [_digits(), _tumours(), *_ranked_tumours(), _digit_embedding(), _digit_halves()]
    return [replace(task, epochs=task.epochs // 8) for task in tasks] if quick else tasks


# The models, with the chain rule written out.


def one_input(loss: Callable[..., Array]) -> Objective:
    """``loss(x W)``."""
    value_and_grad = polyloss.value_and_grad(loss)

    def objective(parameters: Arrays, x: Array, **arguments: Array) -> tuple[Array, Arrays]:
        value, gradient = value_and_grad(x @ parameters["W"], **arguments)
        return value, {"W": x.T @ gradient}

    return objective


def two_inputs(loss: Callable[..., Array], wrt: tuple[str, str]) -> Objective:
    """``loss(x W, y W)``: one model scores or embeds both inputs."""
    value_and_grad = polyloss.value_and_grad(loss, wrt)

    def objective(parameters: Arrays, x: Array, y: Array, **arguments: Array) -> tuple[Array, Arrays]:
        w = parameters["W"]
        value, (to_x, to_y) = value_and_grad(x @ w, y @ w, **arguments)
        return value, {"W": x.T @ to_x + y.T @ to_y}

    return objective


def two_towers(loss: Callable[..., Array], wrt: tuple[str, str]) -> Objective:
    """``loss(x V, y W)``: each input has a model of its own."""
    value_and_grad = polyloss.value_and_grad(loss, wrt)

    def objective(parameters: Arrays, x: Array, y: Array, **arguments: Array) -> tuple[Array, Arrays]:
        value, (to_x, to_y) = value_and_grad(x @ parameters["V"], y @ parameters["W"], **arguments)
        return value, {"V": x.T @ to_x, "W": y.T @ to_y}

    return objective


# The tasks. Convex ones start at zero, where the losses are the textbook's log 10, log 2 and margin.


def _digits() -> Task:
    """Which of ten digits an image of 8 x 8 pixels shows."""
    x, x_new, y, y_new = _digit_images()
    return Task(
        name="digits",
        loss="softmax_cross_entropy",
        objective=one_input(polyloss.softmax_cross_entropy),
        initial={"W": np.zeros((65, 10), np.float32)},
        batches=[{"x": _with_bias(x), "targets": y}],
        rate=0.5,
        epochs=200,
        metric="accuracy",
        score=lambda p: accuracy_score(y_new, (_with_bias(x_new) @ p["W"]).argmax(axis=1)),
    )


def _tumours() -> Task:
    """Whether a tumour is malignant, by 30 measurements of its cells; the rarer class weighs as much as the other."""
    x, x_new, y, y_new = _tumour_cells()
    weights = compute_sample_weight("balanced", y).astype(np.float32)
    return Task(
        name="tumours",
        loss="sigmoid_cross_entropy",
        objective=one_input(polyloss.sigmoid_cross_entropy),
        initial={"W": np.zeros(31, np.float32)},
        batches=[{"x": _with_bias(x), "targets": y, "weights": weights}],
        rate=0.1,
        epochs=100,
        metric="balanced accuracy",
        score=lambda p: balanced_accuracy_score(y_new, _with_bias(x_new) @ p["W"] > 0),
    )


def _ranked_tumours() -> Iterator[Task]:
    """Malignant tumours before benign ones, from sampled pairs."""
    x, x_new, y, y_new = _tumour_cells()
    random = np.random.default_rng(SEED)
    malignant, benign = (x[y == label][random.integers(0, np.sum(y == label), (8, 512))] for label in (1, 0))
    for loss, name in ((polyloss.bpr, "bpr"), (polyloss.pairwise_hinge, "pairwise_hinge")):
        yield Task(
            name="ranked tumours",
            loss=name,
            objective=two_inputs(loss, wrt=("positive_scores", "negative_scores")),
            initial={"W": np.zeros(30, np.float32)},
            batches=[{"x": m, "y": b} for m, b in zip(malignant, benign, strict=True)],
            rate=0.004,
            epochs=40,
            metric="ROC AUC",
            score=lambda p: roc_auc_score(y_new, x_new @ p["W"]),
        )


def _digit_embedding() -> Task:
    """Images of one digit near each other in eight dimensions, from pairs of which half show the same digit."""
    x, x_new, y, y_new = _digit_images()
    random = np.random.default_rng(SEED)
    batches = []
    for _ in range(8):
        similar = np.arange(512) % 2 == 0
        i = random.integers(0, len(x), 512)
        partners = [np.flatnonzero((y == y[k]) == same) for k, same in zip(i, similar, strict=True)]
        batches.append({"x": x[i], "y": x[[random.choice(p) for p in partners]], "similar": similar})

    def score(p: Arrays) -> float:
        neighbours = KNeighborsClassifier(n_neighbors=1).fit(x @ p["W"], y)
        return float(accuracy_score(y_new, neighbours.predict(x_new @ p["W"])))

    return Task(
        name="digit embedding",
        loss="contrastive",
        objective=two_inputs(polyloss.contrastive, wrt=("first", "second")),
        initial={"W": _random_projection(random, 64, 8)},
        batches=batches,
        rate=0.05,
        epochs=40,
        metric="1-NN accuracy",
        score=score,
    )


def _digit_halves() -> Task:
    """The lower half of an image by its upper half: a tower for each half, the others of the batch as negatives."""
    x, x_new, *_ = _digit_images()
    random = np.random.default_rng(SEED)
    mean = x.mean(axis=0)
    upper, lower = np.split(x - mean, 2, axis=1)
    upper_new, lower_new = np.split(x_new - mean, 2, axis=1)
    rows = random.permutation(len(x))[: len(x) // 224 * 224].reshape(-1, 224)

    def score(p: Arrays) -> float:
        queries, candidates = upper_new @ p["V"], lower_new @ p["W"]
        candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
        return float(np.mean((queries @ candidates.T).argmax(axis=1) == np.arange(len(queries))))

    return Task(
        name="digit halves",
        loss="info_nce",
        objective=two_towers(
            functools.partial(polyloss.info_nce, temperature=0.1, symmetric=True), wrt=("queries", "positives")
        ),
        initial={"V": _random_projection(random, 32, 16), "W": _random_projection(random, 32, 16)},
        batches=[{"x": upper[r], "y": lower[r]} for r in rows],
        rate=0.5,
        epochs=40,
        metric=f"recall@1, chance {1 / len(x_new):.3f}",
        score=score,
    )


# The data.


def _digit_images() -> list[Any]:
    """Training and held-out images with pixels in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return _split(x / 16, y)


def _tumour_cells() -> list[Any]:
    """Training and held-out measurements, standardised by the training data, and 1 for malignant, 0 for benign."""
    x, y = load_breast_cancer(return_X_y=True)
    x, x_new, y, y_new = _split(x, 1 - y)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    return [(x - mean) / deviation, (x_new - mean) / deviation, y, y_new]


def _split(x: Array, y: Array) -> list[Any]:
    x, y = x.astype(np.float32), y.astype(np.int32)
    return list(train_test_split(x, y, test_size=HELD_OUT, random_state=SEED, stratify=y))


def _with_bias(x: Array) -> Array:
    """``x`` with a column of ones, whose weight is the bias."""
    return np.concatenate([x, np.ones_like(x[:, :1])], axis=1)


def _random_projection(random: np.random.Generator, inputs: int, outputs: int) -> Array:
    return (random.standard_normal((inputs, outputs)) / inputs**0.5).astype(np.float32)
