"""The demo's training loop, written once, and the table of the array libraries that it runs in."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
from threadpoolctl import threadpool_limits

from polyloss.backends import Array
from polyloss.demo.tasks import Arrays, Task

__all__ = ["LIBRARIES", "ArrayLibrary", "Outcome", "choose", "compare"]

MOMENTUM = 0.9
REFERENCE = "numpy"


@dataclass(frozen=True)
class ArrayLibrary:
    """Where to find an array library: its namespace of the array API, and what compiles a function, if that pays."""

    namespace: str
    compiler: str | None = None

    def xp(self) -> ModuleType:
        """The namespace, imported at the first call."""
        return importlib.import_module(self.namespace)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled where the library has something that does it."""
        if self.compiler is None:
            return function
        module, _, name = self.compiler.partition(":")
        compiled: Callable[..., Any] = getattr(importlib.import_module(module), name)(function)
        return compiled

    def problem(self) -> str | None:
        """Why nothing can be computed in this library here; None where it can."""
        try:
            xp = self.xp()
            xp.asarray(np.ones(1, np.float32)) + 1  # CuPy imports without a GPU and fails with its first array
        except ModuleNotFoundError as error:
            return str(error)
        except Exception as error:  # whatever a broken installation or a missing device raises, the others go on
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return None


LIBRARIES = {
    "numpy": ArrayLibrary("array_api_compat.numpy"),
    "torch": ArrayLibrary("array_api_compat.torch"),
    "jax": ArrayLibrary("jax.numpy", compiler="jax:jit"),  # else every operation is compiled and dispatched by itself
    "cupy": ArrayLibrary("array_api_compat.cupy"),
}


def choose(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The libraries to run in, NumPy first, and why others are left out; `ValueError` where a named one cannot run."""
    wanted = list(LIBRARIES) if names is None else [REFERENCE, *names]
    for name in wanted:
        if name not in LIBRARIES:
            raise ValueError(f"does not know the library {name!r}; it knows {', '.join(LIBRARIES)}")
    problems = {name: problem for name in dict.fromkeys(wanted) if (problem := LIBRARIES[name].problem()) is not None}
    if names is not None and problems:
        raise ValueError("; ".join(f"cannot run in {name}: {problem}" for name, problem in problems.items()))
    return [name for name in dict.fromkeys(wanted) if name not in problems], problems


@dataclass(frozen=True)
class Outcome:
    """What became of one task in one library."""

    task: Task
    library: str
    curve: list[float]
    """The mean training loss of every epoch, while its batches were trained on."""
    losses: tuple[float, float]
    """The training loss before and after."""
    scores: tuple[float, float]
    """The metric of the held-out data before and after."""
    parameters: Arrays
    """The final ones, as NumPy arrays."""
    seconds: float
    difference: float = 0.0
    """The largest absolute difference of a parameter from NumPy's."""


def compare(task: Task, names: Sequence[str], advance: Callable[[str], None]) -> list[Outcome]:
    """One task in each library, NumPy first; ``advance`` is called after every epoch."""
    with threadpool_limits(1):  # on matrices so small, threads would spend longer waiting for each other than working
        reference, *others = (train(task, name, advance) for name in names)
    return [reference, *(replace(other, difference=_difference(other, reference)) for other in others)]


def train(task: Task, name: str, advance: Callable[[str], None]) -> Outcome:
    """Gradient descent with momentum, in one library."""
    library = LIBRARIES[name]
    xp = library.xp()

    def convert(arrays: Arrays) -> Arrays:
        return {key: xp.asarray(x) for key, x in arrays.items()}

    @library.compiled
    def step(parameters: Arrays, velocity: Arrays, batch: Arrays) -> tuple[Array, Arrays, Arrays]:
        loss, gradients = task.objective(parameters, **batch)
        velocity = {key: MOMENTUM * v - task.rate * gradients[key] for key, v in velocity.items()}
        return loss, {key: p + velocity[key] for key, p in parameters.items()}, velocity

    def training_loss() -> float:
        return float(np.mean([float(step(parameters, velocity, batch)[0]) for batch in batches]))

    start = time.perf_counter()
    batches = [convert(batch) for batch in task.batches]
    parameters = convert(task.initial)
    velocity = {key: xp.zeros_like(p) for key, p in parameters.items()}
    before, curve = training_loss(), []
    for _ in range(task.epochs):
        losses = []
        for batch in batches:
            loss, parameters, velocity = step(parameters, velocity, batch)
            losses.append(loss)
        curve.append(float(np.mean([float(loss) for loss in losses])))
        advance(f"{task.name}, {name}")
    after = training_loss()
    seconds = time.perf_counter() - start
    final = {key: _to_numpy(p) for key, p in parameters.items()}
    scores = task.score(task.initial), task.score(final)
    return Outcome(task, name, curve, (before, after), scores, final, seconds)


def _difference(one: Outcome, other: Outcome) -> float:
    return float(np.max([np.max(np.abs(p - other.parameters[key])) for key, p in one.parameters.items()]))


def _to_numpy(x: Array) -> np.ndarray:
    try:
        return np.asarray(x)
    except TypeError:  # the memory of a device is copied on demand only
        return np.asarray(array_api_compat.to_device(x, "cpu"))
