"""Dask: nothing is computed before it is asked for, however the blocks lie."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
from dask.callbacks import Callback

import polyloss
from polyloss.conformance.interchange import Found, registry

__all__ = ["TRANSFORMATIONS"]

TRANSFORMATIONS, transformation = registry("float64")


@contextmanager
def nothing_is_computed() -> Iterator[None]:
    def fail(graph: object) -> None:
        raise AssertionError("computed before it was asked for")

    with Callback(start=fail):
        yield


def both(loss: Any, x: Any, rest: Any) -> tuple[Any, Any]:
    with nothing_is_computed():
        value, gradient = polyloss.value_and_grad(loss)(x, **rest)
    assert isinstance(value, da.Array) and isinstance(gradient, da.Array)
    return value, gradient


@transformation("compute")
def compute(loss: Any, x: Any, rest: Any) -> Found:
    """value, items and gradient; lazy until then"""
    value, gradient = both(loss, x, rest)
    with nothing_is_computed():
        items = loss(x, **rest, reduction="none")
    yield from zip(("value", "gradient", "items"), dask.compute(value, gradient, items))


@transformation("float32", once=True, dtype="float32")
def single(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from zip(("value", "gradient"), dask.compute(*both(loss, x, rest)))


def rechunked(loss: Any, x: Any, rest: Any, size: int) -> Found:
    x, rest = x.rechunk(size), {key: a.rechunk(size) for key, a in rest.items()}
    yield from zip(("value", "gradient"), dask.compute(*both(loss, x, rest)))


@transformation("one chunk", once=True)
def one_chunk(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from rechunked(loss, x, rest, -1)


@transformation("chunks of one number", once=True)
def smallest_chunks(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, the classes split too"""
    yield from rechunked(loss, x, rest, 1)


@transformation("chunks that differ", once=True)
def different_chunks(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, the arrays in unlike chunks"""
    rest = {key: a.rechunk(1 + i) for i, (key, a) in enumerate(rest.items())}
    yield from zip(("value", "gradient"), dask.compute(*both(loss, x.rechunk(3), rest)))


@transformation("persist", once=True)
def persist(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from zip(("value", "gradient"), dask.persist(*both(loss, x, rest)))


@transformation("synchronous scheduler", once=True)
def synchronous(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    value, gradient = both(loss, x, rest)
    yield from zip(("value", "gradient"), dask.compute(value, gradient, scheduler="synchronous"))


@transformation("optimize", once=True)
def optimized(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of the fused graph"""
    yield from zip(("value", "gradient"), dask.compute(*dask.optimize(*both(loss, x, rest))))


@transformation("graph sent to a worker", once=True)
def sent(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of the pickled graph"""
    import cloudpickle

    found = pickle.loads(cloudpickle.dumps(both(functools.partial(loss), x, rest)))
    yield from zip(("value", "gradient"), dask.compute(*found))


@transformation("delayed", once=True)
def delayed(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of NumPy blocks"""
    task = dask.delayed(lambda x, rest: polyloss.value_and_grad(loss)(x, **rest))
    yield from zip(("value", "gradient"), task(x, rest).compute())
