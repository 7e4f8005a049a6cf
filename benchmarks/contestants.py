"""Who takes part: polyloss itself, the table of peers and limits, and what is not installed.

The peers' own code stands in ``peers_numpy``, ``peers_torch`` and ``peers_jax``. Each prepares its inputs and returns
the call to be timed, which allocates its outputs; the first call compiles.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.workloads import TEMPERATURE, Workload

__all__ = ["CONTESTANTS", "OURS", "Contestant", "NotRun", "Run"]

Run = Callable[[], Any]
"""Computes the value, and the gradients after it, nested as the library likes; a limit's result is not looked at."""

Prepare = Callable[[Workload, np.ndarray, np.ndarray, int], Run | None]
"""From the workload, its inputs and the number of threads; None where the contestant has no such loss."""


class NotRun(Exception):
    """Why a contestant does not take part."""


@dataclass(frozen=True)
class Contestant:
    """``entry`` names its `Prepare` as ``module:function``, to be imported when it is installed and asked for."""

    name: str
    packages: tuple[str, ...]  # as they are imported
    entry: str
    limit: bool = False  # no loss, but a bound on the speed of one

    def prepare(self, workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
        """The call to be timed. Raises `NotRun` where there is none."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise NotRun(f"{' and '.join(missing)} not installed")
        module, _, function = self.entry.partition(":")
        prepare: Prepare = getattr(importlib.import_module(module), function)
        run = prepare(workload, x, y, threads)
        if run is None:
            raise NotRun("not for this loss")
        return run


def polyloss_on_numpy(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    import polyloss

    loss = getattr(polyloss, workload.loss)
    if workload.loss == "info_nce":
        both = polyloss.value_and_grad(loss, ("queries", "positives"))
        return lambda: both(x, y, temperature=TEMPERATURE)
    if not workload.gradient:
        return lambda: loss(x, y)
    value_and_grad = polyloss.value_and_grad(loss)
    return lambda: value_and_grad(x, y)


def copy(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run | None:
    """Reads the logits and writes as many bytes; beside a value alone, which writes nothing, a copy all the same."""
    return None if workload.loss == "info_nce" else x.copy


OURS = Contestant("polyloss, NumPy", ("polyloss",), "benchmarks.contestants:polyloss_on_numpy")

CONTESTANTS = (
    OURS,
    Contestant("polyloss, torch", ("polyloss", "torch"), "benchmarks.peers_torch:polyloss_on_torch"),
    Contestant("polyloss, torch.compile", ("polyloss", "torch"), "benchmarks.peers_torch:compiled_polyloss"),
    Contestant("polyloss, JAX jit", ("polyloss", "jax", "optax"), "benchmarks.peers_jax:polyloss_on_jax"),
    Contestant("torch", ("torch",), "benchmarks.peers_torch:eager"),
    Contestant("torch.compile", ("torch",), "benchmarks.peers_torch:compiled"),
    Contestant("JAX jit", ("jax", "optax"), "benchmarks.peers_jax:jit"),
    Contestant("scikit-learn", ("sklearn",), "benchmarks.peers_numpy:scikit_learn"),
    Contestant("SciPy", ("scipy",), "benchmarks.peers_numpy:scipy_special"),
    Contestant("NumPy", ("numpy",), "benchmarks.peers_numpy:plain"),
    Contestant("copy", ("numpy",), "benchmarks.contestants:copy", limit=True),
    Contestant("matrix products", ("torch",), "benchmarks.peers_torch:matrix_products", limit=True),
)
