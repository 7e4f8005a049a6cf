"""What other libraries get wrong and polyloss does not, each with both answers.

Where the first half of such a test fails, the peer has mended its fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from peers import by_jax, by_torch, clip, modules, ranking_of_cosines

import polyloss

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
    in_torch, in_jax = {"x": torch.asarray(x)}, (jax.numpy.asarray(x),)
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
    value, slopes = by_torch(partial(ranking_of_cosines, torch), pairs)
    assert slopes[0].abs().max() > 1e9 and clip(torch, *pairs.values(), 0.05).isnan()
    optax, jnp = modules("optax", "jax.numpy")
    (slope,) = by_jax(
        partial(optax.ntxent, labels=jnp.array([0, 0, 1, 1])), (jnp.array(torch.cat([*pairs.values()])),)
    )[1]
    assert jnp.abs(slope[0]).max() > 1e3
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


def test_the_derivative_at_the_kink_of_a_hinge_is_0_where_it_is_minus_a_half_in_optax() -> None:
    optax, jnp = modules("optax", "jax.numpy")
    a, b = jnp.array([3.0, 0.5]), jnp.array([2.0, 0.0])  # kink, slope
    assert by_jax(lambda a: optax.hinge_loss(a - b, jnp.ones(2)), (a,))[1][0].tolist() == [-0.25, -0.5]
    ours = partial(polyloss.pairwise_hinge, reduction="none")
    assert by_jax(ours, (a, b))[1][0].tolist() == [0, -0.5] and polyloss.grad(ours)(a, b).tolist() == [0, -1]


def test_two_equal_embeddings_have_gradient_0_where_the_textbook_distance_has_nan() -> None:
    torch, jnp = modules("torch", "jax.numpy")
    a, similar = np.array([[1, 2], [3, 4]], np.float32), np.array([0, 1])

    for xp in (torch, jnp):
        x, y, autodiff = xp.asarray(a), xp.asarray(similar), _by_either(xp)
        assert np.isnan(autodiff(lambda x, other=x: ((x - other) ** 2).sum(-1) ** 0.5, x)).all()
        for reduction in ("mean", "sum"):
            ours = partial(polyloss.contrastive, second=x, similar=y, reduction=reduction)
            assert not np.any(autodiff(ours, x))
            assert not np.any(np.asarray(polyloss.grad(ours)(x)))


@pytest.mark.parametrize("number", [math.nan, INF])
def test_a_masked_row_adds_nothing_where_what_is_selected_after_the_loss_has_nan(number: float) -> None:
    torch, optax, jnp = modules("torch", "optax", "jax.numpy")
    rows, labels, mask = np.array([[number, 0], [0, 1]], np.float32), np.array([0, 1]), np.array([False, True])
    losses = {
        torch: partial(torch.nn.functional.cross_entropy, reduction="none"),
        jnp: optax.softmax_cross_entropy_with_integer_labels,
    }
    for xp, theirs in losses.items():
        x, y, keep, autodiff = xp.asarray(rows), xp.asarray(labels), xp.asarray(mask), _by_either(xp)
        slope = autodiff(lambda x, xp=xp, loss=theirs, y=y, keep=keep: xp.where(keep, loss(x, y), 0), x)
        assert np.isnan(slope[0]).any() and np.isfinite(slope[1]).all()
        ours = partial(polyloss.softmax_cross_entropy, targets=y, where=keep, reduction="sum")
        for found in (autodiff(ours, x), 0.5 * np.asarray(polyloss.grad(ours)(x))):
            assert found[0].tolist() == [0, 0] and found[1] == pytest.approx(slope[1], rel=1e-6)


def test_nothing_to_average_is_nan_with_gradient_0_where_the_usual_division_has_gradient_nan() -> None:
    torch, optax, jnp = modules("torch", "optax", "jax.numpy")
    rows, labels, mask = np.zeros((2, 3), np.float32), np.array([0, 1]), np.zeros(2, np.float32)
    losses = {
        torch: partial(torch.nn.functional.cross_entropy, reduction="none"),
        jnp: optax.softmax_cross_entropy_with_integer_labels,
    }
    for xp, theirs in losses.items():
        x, y, keep, autodiff = xp.asarray(rows), xp.asarray(labels), xp.asarray(mask), _by_either(xp)
        assert np.isnan(autodiff(lambda x, loss=theirs, y=y, m=keep: (loss(x, y) * m).sum() / m.sum(), x)).all()
        ours = partial(polyloss.softmax_cross_entropy, targets=y, where=keep > 0)
        assert np.isnan(float(ours(x))) and float(ours(x, denominator=2)) == 0
        for loss in (ours, partial(ours, denominator=2), partial(ours, reduction="sum")):
            assert not np.any(autodiff(loss, x)) and not np.any(np.asarray(polyloss.grad(loss)(x)))


def _by_either(xp: Any) -> Callable[[Callable[[Any], Any], Any], np.ndarray]:
    """Half the gradient of a function of one array, by the library's autodiff."""
    by = (lambda f, x: by_jax(f, (x,))) if "jax" in xp.__name__ else (lambda f, x: by_torch(f, {"x": x}))
    return lambda f, x: np.asarray(by(f, x)[1][0])


def test_a_column_against_a_row_is_an_error_where_optax_makes_a_square() -> None:
    optax, jnp = modules("optax", "jax.numpy")
    column, row = jnp.zeros((3, 1)), jnp.zeros(3)
    assert optax.sigmoid_binary_cross_entropy(column, row).shape == (3, 3)
    for loss in (polyloss.sigmoid_cross_entropy, polyloss.binary_log_loss, polyloss.bpr, polyloss.pairwise_hinge):
        with pytest.raises(ValueError, match=r"\(3, 1\), .*got \(3,\)"):
            loss(column, row)
