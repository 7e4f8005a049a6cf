"""What runs on torch CPU tensors: torch itself, eager and compiled, polyloss, and the matrix products of `info_nce`.

Each has tensors of its own, allocated by torch. A call leaves no ``.grad`` behind: the next one allocates it anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.contestants import Run
from benchmarks.workloads import TEMPERATURE, Workload

__all__ = ["compiled", "compiled_polyloss", "eager", "matrix_products", "polyloss_on_torch"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def polyloss_on_torch(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _run(_ours(workload), workload, x, y, threads)


def compiled_polyloss(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _compiled(_ours(workload), workload, x, y, threads)


def eager(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _run(LOSSES[workload.loss], workload, x, y, threads)


def compiled(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    return _compiled(LOSSES[workload.loss], workload, x, y, threads)


def _ours(workload: Workload) -> Loss:
    import polyloss

    loss: Callable[..., Any] = getattr(polyloss, workload.loss)
    return functools.partial(loss, temperature=TEMPERATURE) if workload.loss == "info_nce" else loss


def _compiled(loss: Loss, workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    """Compiled for its shapes. What was compiled before is forgotten, or torch would make the sizes variable."""
    torch.compiler.reset()
    compiled_loss = torch.compile(lambda a, b: loss(a, b), dynamic=False, fullgraph=True)
    return _run(compiled_loss, workload, x, y, threads)


def matrix_products(workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run | None:
    """The similarities, and what makes the two gradients of theirs: no softmax, no norms."""
    if workload.loss != "info_nce":
        return None
    torch.set_num_threads(threads)
    q, p = torch.tensor(x), torch.tensor(y)
    g = q @ p.T
    return lambda: (q @ p.T, g @ p, g.T @ q)


def _info_nce(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    similarities = F.normalize(q, dim=1) @ F.normalize(p, dim=1).T / TEMPERATURE
    return F.cross_entropy(similarities, torch.arange(len(q)))


LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": F.cross_entropy,
    "sigmoid_cross_entropy": F.binary_cross_entropy_with_logits,
    "info_nce": _info_nce,
}


def _run(loss: Loss, workload: Workload, x: np.ndarray, y: np.ndarray, threads: int) -> Run:
    torch.set_num_threads(threads)
    first, second = torch.tensor(x), torch.tensor(y)

    def value_only() -> torch.Tensor:
        with torch.no_grad():
            return loss(first, second)

    def one_gradient() -> tuple[Any, ...]:
        value = loss(first, second)
        value.backward()
        gradient, first.grad = first.grad, None
        return value, gradient

    def two_gradients() -> tuple[Any, ...]:
        value = loss(first, second)
        value.backward()
        gradients = first.grad, second.grad
        first.grad = second.grad = None
        return value, gradients

    first.requires_grad_(workload.outputs > 0)
    if workload.outputs == 2:
        second.requires_grad_()
    return (value_only, one_gradient, two_gradients)[workload.outputs]
