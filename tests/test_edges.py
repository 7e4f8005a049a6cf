"""Edge cases by hand arithmetic: infinities, ties, zero vectors, nothing kept; and every bug that was found there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.routes import from_numpy, installed

INF, NAN = math.inf, math.nan
every_library = pytest.mark.parametrize("library", installed())


def _array(library: str, numbers: Any) -> Any:
    x = np.asarray(numbers)
    return from_numpy(library, x.astype(np.float32) if x.dtype.kind == "f" else x)


def test_autocast_does_not_lower_a_backward_pass_that_it_surrounds() -> None:
    torch = pytest.importorskip("torch")
    q, p = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    q.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        polyloss.info_nce(q, p).backward()
    torch.testing.assert_close(q.grad, polyloss.grad(polyloss.info_nce)(q, p), rtol=1e-5, atol=1e-7)


def test_torch_compile_takes_numbers_that_change() -> None:
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    x = torch.linspace(-1, 1, 6).reshape(3, 2)

    def loss(x: Any, margin: float) -> Any:
        n = x.shape[0]
        return polyloss.pairwise_hinge(x[:, 0], x[:, 1], margin=margin, denominator=n) + polyloss.softmax_cross_entropy(
            x, torch.zeros(n, dtype=torch.int64), weights=2.0
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for margin in (0.5, 0.7, 0.9):
        torch.testing.assert_close(compiled(x, margin), loss(x, margin))


def test_numpy_results_are_scalars_like_numpys_own() -> None:
    x, t = np.zeros(3), np.ones(3)
    for result in (
        polyloss.sigmoid_cross_entropy(x, t),
        polyloss.sigmoid_cross_entropy(x, t, denominator=3),
        polyloss.sigmoid_cross_entropy(x, t, weights=t, reduction="sum"),
        polyloss.logsumexp(x),
        polyloss.sigmoid(np.float64(0)),
    ):
        assert isinstance(result, np.float64)


def test_a_mean_with_class_weights_depends_on_soft_targets_through_its_denominator_too() -> None:
    logits, targets, c = np.zeros((2, 2)), np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1.0, 3.0])
    gradient = polyloss.grad(polyloss.softmax_cross_entropy, "targets")(logits, targets, class_weights=c)
    np.testing.assert_allclose(gradient, np.zeros((2, 2)), atol=1e-15)  # the weighted mean of log 2 is log 2


@pytest.mark.parametrize("gap", [1e-15, 1e-18, 1e-20, 1e-30, 1e-36])
def test_a_small_distance_keeps_its_derivative_in_autodiff(gap: float) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    first = np.full((1, 3), gap, np.float32)
    other, similar = np.zeros_like(first), np.ones(1, bool)
    x = torch.from_numpy(first).requires_grad_()
    polyloss.contrastive(x, torch.from_numpy(other), torch.from_numpy(similar)).backward()
    slope = jax.grad(lambda x: polyloss.contrastive(x, other, similar))(jax.numpy.asarray(first))
    for found in (x.grad, slope):
        np.testing.assert_allclose(np.asarray(found), 2 * first, rtol=1e-6)


@every_library
def test_a_probability_of_minus_0_has_the_slope_of_0(library: str) -> None:
    t = _array(library, [1.0, 1.0])
    gradient = np.asarray(polyloss.grad(polyloss.binary_log_loss)(_array(library, [0.0, -0.0]), t, reduction="sum"))
    assert gradient[0] == gradient[1] == -np.finfo(np.float32).max
    p, labels = _array(library, [[-0.0, 1.0]]), _array(library, [0])
    gradient = np.asarray(polyloss.grad(polyloss.log_loss)(p, labels))
    assert gradient[0, 0] == -np.finfo(np.float32).max
