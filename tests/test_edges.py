"""Edge cases by hand arithmetic: infinities, ties, zero vectors, nothing kept; and every bug that was found there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.routes import from_numpy, installed, to_numpy

INF, NAN = math.inf, math.nan
every_library = pytest.mark.parametrize("library", installed())

# Loss, arguments, options, items, gradient in the first argument (None: not stated).
EDGES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], list[float], Any]] = {
    "an infinite logit takes its limit": (
        polyloss.sigmoid_cross_entropy,
        ([INF, -INF, INF, -INF, NAN], [1.0, 0.0, 0.0, 1.0, 1.0]),
        {},
        [0, 0, INF, INF, NAN],
        [0, 0, 1, -1, NAN],
    ),
    "a class at -inf has probability 0": (
        polyloss.softmax_cross_entropy,
        ([[-INF, 0.0, 0.0], [-INF, 0.0, 0.0]], [1, 0]),
        {},
        [math.log(2), INF],
        [[0, -0.5, 0.5], [-1, 0.5, 0.5]],
    ),
    "0 times inf is 0 in soft targets": (
        polyloss.softmax_cross_entropy,
        ([[-INF, 0.0, 0.0]], [[0.0, 0.5, 0.5]]),
        {},
        [math.log(2)],
        [[0, 0, 0]],
    ),
    "one logit of +inf takes its limit, two or none finite are nan": (
        polyloss.softmax_cross_entropy,
        ([[INF, 0.0], [INF, 0.0], [INF, INF], [-INF, -INF]], [0, 1, 0, 0]),
        {},
        [0, INF, NAN, NAN],
        [[0, 0], [1, -1], [NAN, NAN], [NAN, NAN]],
    ),
    "z_loss of an infinite logit leaves the others alone": (
        polyloss.softmax_cross_entropy,
        ([[0.0, INF, 1.0]], [1]),
        {"z_loss": 0.1},
        [INF],
        [[0, INF, 0]],
    ),
    "one class is certain": (polyloss.softmax_cross_entropy, ([[3.0], [NAN]], [0, 0]), {}, [0, NAN], [[0], [NAN]]),
    "a masked class is not read": (
        polyloss.softmax_cross_entropy,
        ([[NAN, 0.0, 0.0], [INF, 0.0, 0.0]], [1, 0]),
        {"class_mask": [False, True, True]},
        [math.log(2), INF],
        [[0, -0.5, 0.5], [0, 0.5, 0.5]],
    ),
    "ties are no kink": (polyloss.softmax_cross_entropy, ([[1.0, 1.0]], [0]), {}, [math.log(2)], [[-0.5, 0.5]]),
    "confidence keeps its digits": (
        polyloss.softmax_cross_entropy,
        ([[0.0, 40.0], [0.0, 80.0]], [1, 1]),
        {},
        [4.248354255291589e-18, 1.8048513878454153e-35],
        [[4.248354255291589e-18, -4.248354255291589e-18], [1.8048513878454153e-35, -1.8048513878454153e-35]],
    ),
    "the hinge is flat at its kink": (
        polyloss.pairwise_hinge,
        ([1.0, 0.5, NAN], [0.0, 0.0, 0.0]),
        {},
        [0, 0.5, NAN],
        [0, -1, -1],
    ),
    "bpr of a hopeless pair does not overflow": (polyloss.bpr, ([-1e4], [1e4]), {}, [2e4], [-1]),
    "coinciding embeddings have gradient 0": (
        polyloss.contrastive,
        ([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], [1.0, 0.0]),
        {},
        [0, 1],
        [[0, 0], [0, 0]],
    ),
    "a far dissimilar pair has no loss, whatever its square": (
        polyloss.contrastive_from_distance,
        ([1e25, INF], [0.0, 0.0]),
        {},
        [0, 0],
        [0, 0],
    ),
    "tiny and huge embeddings have a distance": (
        polyloss.contrastive,
        ([[3e-30, 4e-30], [3e18, 4e18]], [[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0]),
        {"margin": 1e-29},
        [(1e-29 - 5e-30) ** 2, 2.5e37],
        None,
    ),
    "a zero vector is similar to nothing": (
        polyloss.info_nce,
        ([[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]),
        {"temperature": 1.0},
        [math.log(2), math.log(2)],
        [[0, 0], [0, 0]],
    ),
    "a certain and wrong probability is infinitely bad": (
        polyloss.binary_log_loss,
        ([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]),
        {},
        [INF, INF, 0, 0],
        None,
    ),
    "a clipped probability is flat": (
        polyloss.binary_log_loss,
        ([0.0, 0.5], [1.0, 1.0]),
        {"eps": 0.25},
        [math.log(4), math.log(2)],
        [0, -2],
    ),
}


@every_library
@pytest.mark.parametrize("name", EDGES)
def test_edge(name: str, library: str) -> None:
    loss, arguments, options, items, gradient = EDGES[name]
    given = [_array(library, a) for a in arguments]
    options = {key: _array(library, a) if isinstance(a, list) else a for key, a in options.items()}
    got, slope = polyloss.value_and_grad(loss)(*given, reduction="none", **options)
    tiny = {"rtol": 5e-6, "atol": 1e-37}
    np.testing.assert_allclose(to_numpy(got), items, **tiny)
    if gradient is not None:
        np.testing.assert_allclose(to_numpy(slope), gradient, **tiny)


@pytest.mark.parametrize("name", EDGES)
def test_autodiff_has_the_same_edges(name: str) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    loss, arguments, options, _, gradient = EDGES[name]
    if gradient is None:
        return
    tiny = {"rtol": 5e-6, "atol": 1e-37}
    first, *rest = [_array("torch", a) for a in arguments]
    kept = {key: _array("torch", a) if isinstance(a, list) else a for key, a in options.items()}
    first.requires_grad_()
    loss(first, *rest, reduction="sum", **kept).backward()
    np.testing.assert_allclose(first.grad, gradient, **tiny)
    if not ("none finite" in name or "z_loss" in name):  # which plain code differentiates to NaN in other places
        plain = torch.func.grad(lambda x: loss(x, *rest, reduction="sum", **kept))(first.detach())
        np.testing.assert_allclose(plain, gradient, **tiny)
    first, *rest = [_array("jax", a) for a in arguments]
    kept = {key: _array("jax", a) if isinstance(a, list) else a for key, a in options.items()}
    np.testing.assert_allclose(jax.grad(lambda x: loss(x, *rest, reduction="sum", **kept))(first), gradient, **tiny)


def _array(library: str, numbers: Any) -> Any:
    x = np.asarray(numbers)
    return from_numpy(library, x.astype(np.float32) if x.dtype.kind == "f" else x)


# Dask computes inf - inf in its own tasks, where NumPy warns as it does of any Dask expression.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@every_library
def test_transforms_at_their_limits(library: str) -> None:
    x = _array(library, [[0.0, -INF, 0.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]])
    half, e = 0.5, math.log(2)
    close = {"rtol": 1e-6}
    np.testing.assert_allclose(to_numpy(polyloss.softmax(x)), [[half, 0, half], [1, 0, 0], [NAN] * 3], **close)
    np.testing.assert_allclose(to_numpy(polyloss.log_softmax(x)), [[-e, -INF, -e], [0, -INF, -INF], [NAN] * 3], **close)
    np.testing.assert_allclose(to_numpy(polyloss.logsumexp(x)), [e, INF, -INF], **close)
    np.testing.assert_array_equal(to_numpy(polyloss.logsumexp(_array(library, [INF, INF, 0.0]))), INF)
    ends = _array(library, [-INF, INF, NAN])
    np.testing.assert_array_equal(to_numpy(polyloss.sigmoid(ends)), [0, 1, NAN])
    np.testing.assert_array_equal(to_numpy(polyloss.softplus(ends)), [0, INF, NAN])
    np.testing.assert_array_equal(to_numpy(polyloss.log_sigmoid(ends)), [-INF, 0, NAN])
    keep = _array(library, [True, True, False])
    kept = _array(library, [0.0, 0.0, NAN])
    np.testing.assert_allclose(to_numpy(polyloss.softmax(kept, where=keep)), [half, half, 0])
    np.testing.assert_allclose(to_numpy(polyloss.log_softmax(kept, where=keep)), [-e, -e, -INF], **close)
    np.testing.assert_allclose(to_numpy(polyloss.logsumexp(kept, where=keep, keepdims=True)), [e], **close)
    assert np.isneginf(to_numpy(polyloss.logsumexp(_array(library, np.zeros((2, 0)))))).all()


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_transforms_are_differentiable_at_their_limits(library: str) -> None:
    pytest.importorskip(library)
    keep = _array(library, [True, False, True])
    for function, x, cotangent, expected in (
        (polyloss.logsumexp, [-INF, -INF], 1.0, [0, 0]),
        (polyloss.logsumexp, [INF, 0.0], 1.0, [1, 0]),
        (lambda x: polyloss.logsumexp(x, where=keep & ~keep), [1.0, 2.0, 3.0], 1.0, [0, 0, 0]),
        (lambda x: polyloss.softmax(x, where=keep), [0.0, NAN, 0.0], [1.0, 9.0, 0.0], [0.25, 0, -0.25]),
        (lambda x: polyloss.log_softmax(x, where=keep), [0.0, 1.0, 2.0], [0.0, 1.0, 0.0], [0, 0, 0]),
        (polyloss.log_softmax, [0.0, INF, 1.0], [0.3, 0.7, -0.2], [0.3, -0.1, -0.2]),
        (polyloss.sigmoid, [0.0, INF, -INF], [1.0, 1.0, 1.0], [0.25, 0, 0]),
        (polyloss.softplus, [0.0, INF, -INF], [1.0, 1.0, 1.0], [0.5, 1, 0]),
    ):
        np.testing.assert_allclose(_pulled(library, function, x, cotangent), expected, rtol=1e-5, atol=1e-7)


def _pulled(library: str, function: Any, x: Any, cotangent: Any) -> Any:
    given = _array(library, x)
    if library == "torch":
        given.requires_grad_()
        function(given).backward(_array("torch", cotangent))
        return given.grad
    import jax

    return jax.vjp(function, given)[1](_array("jax", cotangent))[0]


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
    first = np.full((1, 1), gap, np.float32)
    other, similar = np.zeros_like(first), np.ones(1, bool)
    x = torch.from_numpy(first).requires_grad_()
    polyloss.contrastive(x, torch.from_numpy(other), torch.from_numpy(similar)).backward()
    slope = jax.grad(lambda x: polyloss.contrastive(x, other, similar))(jax.numpy.asarray(first))
    for found in (x.grad, slope):
        np.testing.assert_allclose(np.asarray(found), 2 * first, rtol=1e-6)
