"""The table of equivalents: each call of another library, the polyloss call that equals it, and where theirs errs.

Every row of the table draws one random case of both calls; values and gradients are compared over many cases. Then
comes one test for each fault of theirs that polyloss does not share, with both answers: where the first half of such a
test fails, the peer has mended its fault.

Whether polyloss is right to the last digit is the business of `polyloss.conformance`. Here the two agree to the
accuracy that the other one has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import polyloss

CASES, REDUCTIONS = 30, ("mean", "sum", "none")

# Theirs subtracts numbers of size `scale`, rounded to eps / 2 each (lse - x_y, p - 1, 1 - similarity), takes
# exponentials of them, and sums up to 200 terms: at worst 9.6 eps times the scale over 300 cases a row. The limit is
# 7e-15 of the scale in float64 and 4e-6 in float32, while a mistake in a formula shows in the first digits.
ROUNDINGS = 32

Array = Any


@dataclass(frozen=True)
class Draw:
    """A source of random inputs; `to` makes a NumPy array one of the library under test."""

    rng: np.random.Generator
    dtype: str
    to: Callable[[np.ndarray], Array]

    def one_of(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Small, ordinary or large numbers."""
        return np.asarray(self.rng.standard_normal(shape) * self.one_of(0.01, 1.0, 20.0), self.dtype)

    def uniform(self, shape: tuple[int, ...], low: float = 0.5, high: float = 2.0) -> np.ndarray:
        return np.asarray(self.rng.uniform(low, high, shape), self.dtype)

    def fractions(self, shape: tuple[int, ...]) -> np.ndarray:
        """Targets in [0, 1], both ends included."""
        return np.clip(self.uniform(shape, -0.5, 1.5), 0, 1)

    def maybe(self, x: np.ndarray) -> Array | None:
        return self.one_of(None, self.to(x))


@dataclass(frozen=True)
class Pair:
    """Two calls whose values agree, and their gradients in `inputs`."""

    inputs: dict[str, np.ndarray]  # by our parameter names, in the order of theirs
    theirs: Callable[..., Array]
    ours: Callable[..., Array]
    scale: float  # the largest number that theirs adds or subtracts
    factor: float = 1.0  # theirs is this times ours

    def ours_in_order(self, *arrays: Array) -> Array:
        return self.factor * self.ours(**dict(zip(self.inputs, arrays, strict=True)))


# The table, one function a row.


def cross_entropy_of_labels(draw: Draw, torch: Any) -> Pair:
    k = draw.one_of(2, 3, 10, 200)
    items = (draw.one_of(1, 2, 5), *draw.one_of((), (3,), (2, 2)))
    x, c = draw.normal((items[0], k, *items[1:])), draw.uniform((k,))
    c[0] = draw.one_of(0, 1)
    ignored = draw.one_of(-100, -1, 0)
    y = np.where(draw.rng.random(items) < 0.3, ignored, draw.rng.integers(k, size=items))
    y.flat[0] = k - 1  # never ignored, never of weight 0
    weight, reduction = draw.maybe(c), draw.one_of(*REDUCTIONS)
    options = {"label_smoothing": draw.one_of(0.0, 0.1, 1.0), "ignore_index": ignored, "reduction": reduction}
    total = np.sum(c[y[y != ignored]]) if weight is not None else np.sum(y != ignored)
    scale = 2 * (1 + np.ptp(x)) * {"mean": y.size / total, "sum": y.size, "none": 1}[reduction]
    theirs = partial(torch.nn.functional.cross_entropy, target=draw.to(y), weight=weight, **options)
    ours = partial(polyloss.softmax_cross_entropy, targets=draw.to(y), axis=1, class_weights=weight, **options)
    return Pair({"logits": x}, theirs, ours, scale)


def cross_entropy_of_soft_targets(draw: Draw, torch: Any) -> Pair:
    k = draw.one_of(1, 2, 3, 10, 200)
    shape = (draw.one_of(1, 2, 5), k, *draw.one_of((), (3,), (2, 2)))
    x, t, weight = draw.normal(shape), draw.fractions(shape), draw.maybe(draw.uniform((k,)))
    options = {"label_smoothing": draw.one_of(0.0, 0.1), "reduction": draw.one_of(*REDUCTIONS)}
    rows = {"denominator": x.size / k} if options["reduction"] == "mean" else {}
    theirs = partial(torch.nn.functional.cross_entropy, weight=weight, **options)
    ours = partial(polyloss.softmax_cross_entropy, axis=1, class_weights=weight, **options, **rows)
    scale = 2 * (1 + np.ptp(x)) * (1 + t.sum(axis=1).max()) * (x.size / k if options["reduction"] == "sum" else 1)
    return Pair({"logits": x, "targets": t}, theirs, ours, scale)


def binary_cross_entropy_with_logits(draw: Draw, torch: Any) -> Pair:
    shape = draw.one_of((), (7,), (4, 3), (2, 3, 5))
    x, t, p = draw.normal(shape), draw.fractions(shape), draw.maybe(draw.uniform(shape[-1:]))
    w = draw.maybe(draw.uniform(draw.one_of(shape, (*shape[:1], *[1] * len(shape[1:]))), 0.0))
    options = {"pos_weight": p, "reduction": draw.one_of(*REDUCTIONS)}
    every = {"denominator": x.size} if options["reduction"] == "mean" else {}
    theirs = partial(torch.nn.functional.binary_cross_entropy_with_logits, weight=w, **options)
    ours = partial(polyloss.sigmoid_cross_entropy, weights=w, **options, **every)
    scale = 4 * (1 + np.max(np.abs(x))) * (x.size if options["reduction"] == "sum" else 1)  # either weight is at most 2
    return Pair({"logits": x, "targets": t}, theirs, ours, scale)


def margin_ranking_loss(draw: Draw, torch: Any) -> Pair:
    shape = draw.one_of((), (6,), (4, 3))
    a, b = draw.normal(shape), draw.normal(shape)
    options = {"margin": draw.one_of(0.0, 0.3, 1.0, 10.0), "reduction": draw.one_of(*REDUCTIONS)}
    theirs = partial(torch.nn.functional.margin_ranking_loss, target=draw.to(np.ones_like(a)), **options)
    ours = partial(polyloss.pairwise_hinge, **options)
    scale = a.size * (options["margin"] + np.max(np.abs(a)) + np.max(np.abs(b)))
    return Pair({"positive_scores": a, "negative_scores": b}, theirs, ours, scale)


def multiple_negatives_ranking_loss(draw: Draw, torch: Any) -> Pair:
    """sentence-transformers, losses/MultipleNegativesRankingLoss.py: cross entropy of scale * cos_sim(a, [p; n])."""
    n, m, d = draw.one_of(2, 3, 8), draw.one_of(0, 1, 8), draw.one_of(2, 5, 32)
    inputs = {"queries": draw.normal((n, d)), "positives": draw.normal((n, d)), "negatives": draw.normal((m, d))}
    if not m:
        del inputs["negatives"]
    ours = partial(polyloss.info_nce, temperature=1 / 20, in_batch=True)
    return Pair(inputs, lambda a, *b: _ranking_of_cosines(torch, a, torch.cat(b)), ours, _scale_of_cosines(inputs, 20))


def _ranking_of_cosines(torch: Any, anchors: Array, candidates: Array) -> Array:
    normalize, cross_entropy = torch.nn.functional.normalize, torch.nn.functional.cross_entropy
    return cross_entropy(20 * normalize(anchors, dim=-1) @ normalize(candidates, dim=-1).T, torch.arange(len(anchors)))


def clip_loss(draw: Draw, torch: Any) -> Pair:
    n, d, t = draw.one_of(2, 3, 8), draw.one_of(2, 5, 32), draw.uniform((), 0.05, 1.0)
    inputs = {"queries": draw.normal((n, d)), "positives": draw.normal((n, d)), "temperature": t}
    ours = partial(polyloss.info_nce, symmetric=True)
    return Pair(inputs, partial(_clip, torch), ours, _scale_of_cosines(inputs, 1 / float(t)))


def _clip(torch: Any, images: Array, texts: Array, temperature: Array) -> Array:
    """open_clip, loss.py: ClipLoss, with features normalized as in model.py; its logit_scale is 1 / temperature."""
    images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    logits, labels = images @ texts.T / temperature, torch.arange(len(images))
    cross_entropy = torch.nn.CrossEntropyLoss()
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def _scale_of_cosines(inputs: dict[str, np.ndarray], scale: float) -> float:
    """Of scores, and of their derivatives in an embedding (one over its norm) and in a temperature (scale^2)."""
    return max(scale, scale**2) * max(1.0, *(1 / np.linalg.norm(x, axis=-1).min() for x in inputs.values() if x.ndim))


def hadsell(draw: Draw, torch: Any) -> Pair:
    """Hadsell, Chopra & LeCun 2006, eq. 4; their Y is 1 for a dissimilar pair."""
    shape, m, reduction = (
        draw.one_of((3,), (4, 2), (5, 16), (2, 3, 4)),
        draw.one_of(0.5, 1.0, 8.0),
        draw.one_of(*REDUCTIONS),
    )
    a, b, y = draw.normal(shape), draw.normal(shape), draw.rng.integers(2, size=shape[:-1])

    def theirs(a: Array, b: Array) -> Array:
        d, dissimilar = (a - b).square().sum(-1).sqrt(), draw.to(y)
        items = (1 - dissimilar) * d**2 / 2 + dissimilar * (m - d).clamp_min(0) ** 2 / 2
        return items if reduction == "none" else getattr(items, reduction)()

    ours = partial(polyloss.contrastive, similar=draw.to(1 - y), margin=m, reduction=reduction)
    scale = m + np.size(y) * m**2 + np.sum((a - b) ** 2)
    return Pair({"first": a, "second": b}, theirs, ours, scale, factor=0.5)


def optax_labels(draw: Draw, optax: Any) -> Pair:
    shape, axis, masked = draw.one_of(((4, 200), -1, False), ((2, 5, 3), 1, True))  # few: JAX compiles for each shape
    x, y = draw.normal(shape), draw.rng.integers(shape[axis], size=np.delete(shape, axis))
    is_label = np.moveaxis(np.arange(shape[axis]) == y[..., None], -1, axis)
    where = draw.to(is_label | (draw.rng.random(shape) < 0.6)) if masked else None
    theirs = partial(optax.softmax_cross_entropy_with_integer_labels, labels=draw.to(y), axis=axis, where=where)
    ours = partial(polyloss.softmax_cross_entropy, targets=draw.to(y), axis=axis, class_mask=where, reduction="none")
    return Pair({"logits": x}, theirs, ours, scale=1 + 2 * np.max(np.abs(x)))


def optax_binary(draw: Draw, optax: Any) -> Pair:
    shape = draw.one_of((), (4, 3))
    inputs = {"logits": draw.normal(shape), "targets": draw.fractions(shape)}
    ours = partial(polyloss.sigmoid_cross_entropy, reduction="none")
    return Pair(inputs, optax.sigmoid_binary_cross_entropy, ours, scale=1 + np.max(np.abs(inputs["logits"])))


OF_LOGITS = (cross_entropy_of_labels, cross_entropy_of_soft_targets, binary_cross_entropy_with_logits)
OF_EMBEDDINGS = (multiple_negatives_ranking_loss, clip_loss, hadsell)
ROWS = {"torch": (*OF_LOGITS, margin_ranking_loss, *OF_EMBEDDINGS), "optax": (optax_labels, optax_binary)}


def modules(*names: str) -> Any:
    return [pytest.importorskip(name) for name in names]


def agree(theirs: Any, ours: Any, scale: float, what: str) -> None:
    expected, found = np.asarray(theirs), np.asarray(ours)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    error, limit = np.max(np.abs(expected - found)), ROUNDINGS * np.finfo(found.dtype).eps * scale
    assert error <= limit, f"{what}: {expected}, ours {found}; off by {error} where {limit} is allowed"


def by_torch(loss: Callable[..., Any], arrays: dict[str, Array]) -> tuple[Array, list[Array]]:
    """The value, and by backward() half the gradients: a cotangent of 1 would not show that it is multiplied by."""
    leaves = [x.clone().requires_grad_() for x in arrays.values()]
    value = loss(*leaves)
    value.sum().mul(0.5).backward()
    return value.detach(), [x.grad for x in leaves]


def by_jax(loss: Callable[..., Any], arrays: dict[str, Array]) -> tuple[Array, list[Array]]:
    """Likewise by jax.grad."""
    (jax,) = modules("jax")
    gradients = jax.grad(lambda *xs: 0.5 * loss(*xs).sum(), tuple(range(len(arrays))))(*arrays.values())
    return loss(*arrays.values()), gradients


def by_formula(pair: Pair, arrays: dict[str, Array]) -> tuple[Array, list[Array]]:
    value, gradients = polyloss.value_and_grad(pair.ours, wrt=tuple(arrays))(**arrays)
    return pair.factor * value, [0.5 * pair.factor * g for g in gradients]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", ROWS["torch"], ids=lambda row: row.__name__)
def test_value_and_gradients_equal_those_in_torch(row: Callable[..., Pair], dtype: str) -> None:
    (torch,) = modules("torch")
    _check(row, torch, dtype, torch.asarray, by_torch)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", ROWS["optax"], ids=lambda row: row.__name__)
def test_value_and_gradients_equal_those_of_optax(row: Callable[..., Pair], dtype: str) -> None:
    optax, jax = modules("optax", "jax")
    with jax.enable_x64(dtype == "float64"):  # without it JAX turns float64 into float32
        _check(row, optax, dtype, jax.numpy.asarray, by_jax)


def _check(row: Callable[..., Pair], peer: Any, dtype: str, to: Callable[[Any], Array], autodiff: Any) -> None:
    for case in range(CASES):
        pair = row(Draw(np.random.default_rng(case), dtype, to), peer)
        numpys = row(Draw(np.random.default_rng(case), dtype, np.asarray), peer)  # the same numbers
        arrays = {name: to(x) for name, x in pair.inputs.items()}
        value, gradients = autodiff(pair.theirs, arrays)
        assert str(value.dtype).endswith(dtype)
        routes = {
            "autodiff": autodiff(pair.ours_in_order, arrays),
            "value_and_grad": by_formula(pair, arrays),
            "value_and_grad on NumPy": by_formula(numpys, numpys.inputs),
        }
        for route, (found, slopes) in routes.items():
            agree(value, found, pair.scale, f"case {case}, value by {route}")
            for name, gradient, slope in zip(arrays, gradients, slopes, strict=True):
                agree(gradient, slope, pair.scale, f"case {case}, gradient in {name} by {route}")


def test_micro_batches_with_a_common_denominator_add_up_to_the_token_mean() -> None:
    """Liger's mean, and transformers' fixed_cross_entropy with num_items_in_batch, over one batch that is not split."""
    (torch,) = modules("torch")
    for case in range(CASES):
        draw = Draw(np.random.default_rng(case), "float64", torch.asarray)
        x, y = torch.asarray(draw.normal((12, 200))), torch.asarray(draw.rng.integers(200, size=12))
        y[torch.asarray(draw.rng.random(12) < 0.3)] = -100
        y[:3], y[-1] = -100, 7  # the first micro-batch has nothing to average
        ours = partial(polyloss.softmax_cross_entropy, ignore_index=-100, denominator=int((y != -100).sum()))
        value, (gradient,) = by_torch(partial(torch.nn.functional.cross_entropy, target=y), {"x": x})
        batches = zip(x.split((3, 2, 7)), y.split((3, 2, 7)), strict=True)
        values, slopes = zip(*(by_torch(partial(ours, targets=t), {"x": b}) for b, t in batches), strict=True)
        agree(value, sum(values), 1 + np.ptp(x.numpy()), f"case {case}, value")
        agree(gradient, torch.cat([g for (g,) in slopes]), 1.0, f"case {case}, gradient")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_log_losses_equal_that_of_scikit_learn(dtype: str) -> None:
    (metrics,) = modules("sklearn.metrics")
    for case in range(CASES):
        draw, eps = Draw(np.random.default_rng(case), dtype, np.asarray), float(np.finfo(dtype).eps)
        n, k = draw.one_of(1, 5, 40), draw.one_of(2, 3, 10)
        y, w, p = draw.rng.integers(k, size=n), draw.maybe(draw.uniform((n,))), draw.uniform((n, k), 0.0)
        p /= p.sum(axis=1, keepdims=True)
        p[0] = np.arange(k) == 0  # clipped from both sides
        theirs, ours = metrics.log_loss(y, p, sample_weight=w, labels=range(k)), polyloss.log_loss
        agree(np.asarray(theirs, dtype), ours(p, y, weights=w, eps=eps), -math.log(eps), f"case {case}")
        y, p = y % 2, draw.fractions((n,))
        theirs, ours = metrics.log_loss(y, p, sample_weight=w, labels=(0, 1)), polyloss.binary_log_loss
        agree(np.asarray(theirs, dtype), ours(p, y, weights=w, eps=eps), -math.log(eps), f"case {case}, 1-D")
    sure = np.eye(2, dtype=dtype)  # eps from the clipping, too little to show among other items
    assert polyloss.log_loss(sure, [0, 1], eps=eps) == pytest.approx(metrics.log_loss([0, 1], sure), rel=1e-6, abs=0)
    assert polyloss.binary_log_loss(sure[0], [1, 0], eps=eps) == pytest.approx(eps, rel=1e-6, abs=0)


# Faults of theirs.

ACCURATE = 2.0**-23 * 50  # of SPEC 6, for logits that lead by 40: 6 + 40 + log2(2) ulp
INF = math.inf


@pytest.mark.parametrize(("lead", "loss"), [(20, 2.061153620314381e-9), (40, 4.248354255291589e-18)])
def test_a_confident_item_keeps_its_loss_where_theirs_is_0(lead: float, loss: float) -> None:
    torch, optax, jnp, sklearn = modules("torch", "optax", "jax.numpy", "sklearn._loss")
    x, y = np.array([[0, lead]], np.float32), np.array([1])
    assert torch.nn.functional.cross_entropy(torch.asarray(x), torch.asarray(y)) == 0
    assert optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(x), jnp.asarray(y)) == 0
    assert sklearn.HalfMultinomialLoss(n_classes=2).loss(y.astype(np.float32), x) == 0
    z, t = -x[:, 1], np.zeros(1, np.float32)
    assert torch.nn.functional.binary_cross_entropy_with_logits(torch.asarray(z), torch.asarray(t)) == 0
    for to in (np.asarray, torch.asarray, jnp.asarray):
        assert float(polyloss.softmax_cross_entropy(to(x), to(y))) == pytest.approx(loss, rel=ACCURATE, abs=0)
        assert float(polyloss.sigmoid_cross_entropy(to(z), to(t))) == pytest.approx(loss, rel=ACCURATE, abs=0)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", ACCURATE), ("bfloat16", 2.0**-7 * 1.5)])
def test_the_gradient_at_a_confident_label_is_not_lost_in_p_minus_1(dtype: str, rounding: float) -> None:
    (torch,) = modules("torch")
    x, y, p = torch.tensor([[0, 20]], dtype=getattr(torch, dtype)), torch.tensor([1]), 1 / (1 + math.exp(20))
    ours = partial(polyloss.softmax_cross_entropy, targets=y)
    _, (theirs,) = by_torch(partial(torch.nn.functional.cross_entropy, target=y), {"logits": x})
    assert theirs[0, 1] == 0
    for slope in (2 * by_torch(ours, {"logits": x})[1][0], polyloss.grad(ours)(x)):
        assert slope.dtype == x.dtype
        assert slope.tolist()[0] == pytest.approx([p, -p], rel=rounding, abs=0)


def test_an_ignored_row_of_minus_inf_has_gradient_0_where_torch_has_nan() -> None:
    (torch,) = modules("torch")  # pytorch/pytorch#11551
    x, y = torch.tensor([[-INF, -INF], [0.0, 1.0]]), torch.tensor([-100, 1])
    _, (theirs,) = by_torch(partial(torch.nn.functional.cross_entropy, target=y), {"logits": x})
    ours = partial(polyloss.softmax_cross_entropy, targets=y, ignore_index=-100)
    value, (slope,) = by_torch(ours, {"logits": x})
    assert theirs[0].isnan().all()
    assert slope[0].tolist() == [0, 0] and slope[1].isfinite().all() and value.isfinite()
    items = polyloss.softmax_cross_entropy(x, torch.tensor([0, 1]), reduction="none")
    assert items.isnan().tolist() == [True, False]  # not ignored, it is as undefined as it is in torch


def test_logsumexp_of_a_row_of_minus_inf_has_gradient_0_where_torch_and_jax_have_nan() -> None:
    torch, jax = modules("torch", "jax")
    x = np.full((1, 2), -INF, np.float32)
    in_torch, in_jax = {"x": torch.asarray(x)}, {"x": jax.numpy.asarray(x)}
    assert by_torch(partial(torch.logsumexp, dim=-1), in_torch)[1][0].isnan().all()
    assert np.isnan(by_jax(partial(jax.nn.logsumexp, axis=-1), in_jax)[1][0]).all()
    for value, (slope,) in (by_torch(polyloss.logsumexp, in_torch), by_jax(polyloss.logsumexp, in_jax)):
        assert (value.tolist(), slope.tolist()) == ([-INF], [[0, 0]])


def test_a_soft_target_of_0_on_a_logit_of_minus_inf_costs_nothing_where_torch_and_optax_have_nan() -> None:
    torch, optax, jnp = modules("torch", "optax", "jax.numpy")
    x, t = np.array([[-INF, 1, 2]], np.float32), np.array([[0, 0.5, 0.5]], np.float32)
    assert torch.nn.functional.cross_entropy(torch.asarray(x), torch.asarray(t)).isnan()
    assert jnp.isnan(optax.softmax_cross_entropy(jnp.asarray(x), jnp.asarray(t))).all()
    p = 1 / (1 + math.e)  # of the middle class
    for to in (np.asarray, torch.asarray, jnp.asarray):
        value, slope = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(to(x), to(t))
        assert float(value) == pytest.approx(0.5 + math.log1p(1 / math.e), rel=ACCURATE)
        assert slope.tolist()[0] == pytest.approx([0, p - 0.5, 0.5 - p], rel=ACCURATE, abs=0)


def test_all_rows_ignored_is_nan_as_in_torch_with_gradient_0() -> None:
    (torch,) = modules("torch")
    x, y = torch.tensor([[0.0, 1.0], [INF, math.nan]]), torch.tensor([-100, -100])
    ours = partial(polyloss.softmax_cross_entropy, targets=y, ignore_index=-100)
    assert torch.nn.functional.cross_entropy(x, y).isnan() and ours(x).isnan()
    for slope in (polyloss.grad(ours)(x), by_torch(ours, {"logits": x})[1][0]):
        assert slope.tolist() == [[0, 0], [0, 0]]


def test_a_mean_of_weight_0_is_nan_as_in_torch_with_gradient_0_where_torch_has_nan() -> None:
    (torch,) = modules("torch")
    x, y, c = {"logits": torch.zeros(1, 2)}, torch.tensor([0]), torch.tensor([0.0, 1.0])
    value, (theirs,) = by_torch(partial(torch.nn.functional.cross_entropy, target=y, weight=c), x)
    ours = partial(polyloss.softmax_cross_entropy, targets=y, class_weights=c)
    found, (slope,) = by_torch(ours, x)
    assert value.isnan() and found.isnan() and theirs.isnan().all()
    assert slope.tolist() == polyloss.grad(ours)(**x).tolist() == [[0, 0]]


def test_minus_100_is_ignored_with_200_classes_where_optax_counts_it_from_the_end() -> None:
    optax, jnp = modules("optax", "jax.numpy")
    x, y = np.arange(400, dtype=np.float32).reshape(2, 200) / 50, np.array([-100, 3])
    theirs, ours = optax.softmax_cross_entropy_with_integer_labels, polyloss.softmax_cross_entropy
    assert theirs(jnp.asarray(x), jnp.asarray(y))[0] == theirs(jnp.asarray(x), jnp.array([100, 3]))[0]
    for to in (np.asarray, jnp.asarray):
        value, slope = polyloss.value_and_grad(ours)(to(x), to(y), ignore_index=-100)
        assert float(value) == pytest.approx(float(ours(to(x[1:]), to(y[1:]))), rel=ACCURATE)
        assert not slope[0].any() and slope[1].any()
        with pytest.raises(ValueError, match="-100"):
            ours(to(x), to(y))


def test_a_label_that_is_masked_out_costs_infinity_where_it_costs_less_than_nothing_in_optax() -> None:
    optax, jnp = modules("optax", "jax.numpy")
    x, y, mask = jnp.array([[3.0, 1.0, 1.0]]), jnp.array([0]), jnp.array([[False, True, True]])
    assert optax.softmax_cross_entropy_with_integer_labels(x, y, where=mask) < 0
    assert polyloss.softmax_cross_entropy(x, y, class_mask=mask) == INF


def test_a_zero_embedding_has_gradient_0_where_theirs_is_nan_or_divided_by_eps() -> None:
    (torch,) = modules("torch")
    pairs = {"queries": torch.tensor([[0.0, 0.0], [1.0, 2.0]]), "positives": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    value, slopes = by_torch(partial(_ranking_of_cosines, torch), pairs)
    assert slopes[0].abs().max() > 1e9 and _clip(torch, *pairs.values(), 0.05).isnan()
    for symmetric in (False, True):
        found, slopes = by_torch(partial(polyloss.info_nce, temperature=1 / 20, symmetric=symmetric), pairs)
        assert symmetric or float(found) == pytest.approx(float(value), rel=1e-5)
        assert found.isfinite() and slopes[0][0].tolist() == [0, 0] and all(g.isfinite().all() for g in slopes)


def test_the_derivative_at_the_kink_of_a_hinge_is_0_where_it_is_minus_1_in_torch() -> None:
    (torch,) = modules("torch")
    scores = {"positive_scores": torch.tensor([3.0, 0.5]), "negative_scores": torch.tensor([2.0, 0.0])}  # kink, slope
    options = {"margin": 1.0, "reduction": "sum"}
    theirs = partial(torch.nn.functional.margin_ranking_loss, target=torch.ones(2), **options)
    ours = partial(polyloss.pairwise_hinge, **options)
    assert by_torch(theirs, scores)[1][0].tolist() == [-0.5, -0.5]
    assert by_torch(ours, scores)[1][0].tolist() == [0, -0.5] and polyloss.grad(ours)(**scores).tolist() == [0, -1]


def test_a_column_against_a_row_is_an_error_where_optax_makes_a_square() -> None:
    optax, jnp = modules("optax", "jax.numpy")
    column, row = jnp.zeros((3, 1)), jnp.zeros(3)
    assert optax.sigmoid_binary_cross_entropy(column, row).shape == (3, 3)
    for loss in (polyloss.sigmoid_cross_entropy, polyloss.binary_log_loss, polyloss.bpr, polyloss.pairwise_hinge):
        with pytest.raises(ValueError, match=r"\(3, 1\), .*got \(3,\)"):
            loss(column, row)
