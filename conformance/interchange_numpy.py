"""What NumPy's users do with a loss: there is no autodiff, and `value_and_grad` takes its place."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.interchange import Found, registry
from polyloss.dispatch import generic

__all__ = ["TRANSFORMATIONS"]

TRANSFORMATIONS, transformation = registry("float64")


@transformation("call")
def call(loss: Any, x: Any, rest: Any) -> Found:
    """value and items"""
    yield "value", loss(x, **rest)
    yield "items", loss(x, **rest, reduction="none")


@transformation("value_and_grad")
def value_and_grad(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    value, gradient = polyloss.value_and_grad(loss)(x, **rest)
    yield "value", value
    yield "gradient", gradient


@transformation("grad")
def grad(loss: Any, x: Any, rest: Any) -> Found:
    """gradient"""
    yield "gradient", polyloss.grad(loss)(x, **rest)


@transformation("float32", dtype="float32")
def single(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from value_and_grad(loss, x, rest)


@transformation("dispatch.generic")
def without_kernels(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, without a kernel"""
    with generic():
        yield from value_and_grad(loss, x, rest)


@transformation("pickled functools.partial")
def pickled(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    loss = pickle.loads(pickle.dumps(functools.partial(loss, weights=rest.pop("weights"))))
    yield from value_and_grad(copy.deepcopy(loss), x, rest)


@transformation("read-only and strided arrays")
def layouts(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    wide = np.repeat(x, 2, axis=0)
    wide.flags.writeable = False
    yield from value_and_grad(
        loss, wide[::2], {key: np.asfortranarray(a[::-1].copy()[::-1]) for key, a in rest.items()}
    )


@transformation("threads")
def threads(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, in four threads at once"""
    found: list[tuple[str, Any]] = []
    workers = [threading.Thread(target=lambda: found.extend(value_and_grad(loss, x, rest))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    yield from found
