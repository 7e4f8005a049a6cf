"""Laws of torch alone: its threads, and what its autograd multiplies a gradient with."""

from __future__ import annotations

from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.compare import compare, same
from polyloss.conformance.laws import law, only
from polyloss.conformance.routes import Route, rounded, to_numpy
from polyloss.conformance.subject import Draw, Subject

__all__: list[str] = []

LARGE = 70_001


@law("threads", only("torch", path="kernel", dtypes=("float32",), device="cpu"), once=True)
def threads(subject: Subject, draw: Draw) -> None:
    """The number of threads changes no bit."""
    import torch

    n = 64 if subject.row.loss is polyloss.info_nce else LARGE  # whose matrix product is torch's own
    arguments = subject.draw(draw, n)
    before = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            value, gradients = subject.value_and_gradients(arguments)
        finally:
            torch.set_num_threads(before)
        found.append([to_numpy(value), *(to_numpy(g) for g in gradients.values())])
    for one, two in zip(*found):
        same(two, one, "the result of two threads")


def leaf(subject: Subject, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments as tensors, of which the first, by its name, needs a gradient."""
    given = subject.given(arguments, {})
    first = subject.row.floating(arguments)[0]
    given[first].requires_grad_()
    return given, first


@law("large backward", only("torch", path="kernel", dtypes=("float32",), but="info_nce"), once=True)
def large_backward(subject: Subject, draw: Draw) -> None:
    """The gradient of a large batch is multiplied by what comes from above."""
    arguments = subject.draw(draw, LARGE)
    given, first = leaf(subject, arguments)
    (3 * subject.row.loss(**given)).backward()
    _, slopes = subject.value_and_gradients(arguments)
    subject.close(given[first].grad / 3, slopes[first], f"the gradient in {first}", factor=10)


@law("curved", only("torch", dtypes=("float64",)), once=True)
def curved(subject: Subject, draw: Draw) -> None:
    """The second derivative of the square of a loss is that of the chain rule."""
    import torch

    given, first = leaf(subject, subject.draw(draw, 4))
    x = given[first]
    v = subject.route.array(draw.rng.standard_normal(tuple(x.shape)))

    def twice(value: Any) -> tuple[Any, Any]:
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        if not gradient.requires_grad:
            return gradient, torch.zeros_like(x)
        (along,) = torch.autograd.grad(torch.sum(gradient * v), x, allow_unused=True, materialize_grads=True)
        return gradient, along

    value = subject.row.loss(**given)
    gradient, along = twice(value)
    _, got = twice(subject.row.loss(**given) ** 2)
    expected = 2 * value * along + 2 * torch.sum(gradient * v) * gradient
    subject.close(got, expected, "the second derivative of the square", factor=100)


def _narrow(route: Route, dtype: str, function: str) -> str:
    asked = route.library == "torch" and route.path == "kernel" and dtype in ("float16", "bfloat16")
    return "" if asked else "it is asked of the kernel path of torch in 16 bits alone"


@law("loss scale", _narrow, once=True, functions=("softmax_cross_entropy", "sigmoid_cross_entropy", "bpr"))
def loss_scale(subject: Subject, draw: Draw) -> None:
    """A gradient too small for 16 bits comes back whole, times a large number from above."""
    scale = 2.0**14
    x = {"softmax_cross_entropy": [[14.0, 0.0]], "sigmoid_cross_entropy": [14.0], "bpr": [14.0]}[
        subject.row.loss.__name__
    ]
    target = {"softmax_cross_entropy": np.array([0]), "sigmoid_cross_entropy": np.array([1.0]), "bpr": np.array([0.0])}
    given = subject.route.array(rounded(np.array(x), subject.dtype), subject.dtype).requires_grad_()
    other = subject.route.array(target[subject.row.loss.__name__], subject.dtype)
    (scale * subject.row.loss(given, other)).backward()
    small = 1 / (1 + np.exp(14.0))  # the probability of what is wrong
    expected = scale * small * (np.array([[-1.0, 1.0]]) if given.ndim == 2 else np.array([-1.0]))
    resolution = 2.0 ** (-10 if subject.dtype == "float16" else -7)
    compare(given.grad, expected, "the gradient, scaled", subject.dtype, resolution * np.abs(expected))
