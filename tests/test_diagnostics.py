"""Diagnostics: the parts add up, what is said of the metric holds, and the pictures draw what the fields say."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyloss
from polyloss.conformance.routes import from_numpy, installed
from polyloss.diagnostics import active_pairs, explain_change, fit_temperature, negative_shares, reliability_curve

NAN, INF = math.nan, math.inf
few = settings(max_examples=40, deadline=None)
rng = np.random.default_rng(0)
seeds = given(seed=st.integers(0, 10**6))

LABELS = rng.integers(0, 3, 30)
ITEM_LOSSES = {
    "sigmoid": (polyloss.sigmoid_cross_entropy, (30,), LABELS > 0),
    "sigmoid, weighted": (
        partial(polyloss.sigmoid_cross_entropy, weights=rng.random(30), pos_weight=2.0, label_smoothing=0.1),
        (30,),
        LABELS > 0,
    ),
    "sigmoid, labels": (polyloss.sigmoid_cross_entropy, (30, 2), LABELS[:, None] == [0, 1]),
    "softmax": (polyloss.softmax_cross_entropy, (30, 3), LABELS),
    "softmax, sum": (partial(polyloss.softmax_cross_entropy, reduction="sum"), (30, 3), LABELS),
    "softmax, axis 0": (
        partial(polyloss.softmax_cross_entropy, axis=0, class_weights=np.array([1.0, 2.0, 0.5])),
        (3, 30),
        LABELS,
    ),
    "softmax, soft": (polyloss.softmax_cross_entropy, (30, 3), np.eye(3)[LABELS] * 0.8 + 0.2 / 3),
    "softmax, ignored": (
        partial(polyloss.softmax_cross_entropy, ignore_index=-100, class_mask=np.array([True, True, False])),
        (30, 3),
        np.where(LABELS == 2, -100, LABELS),
    ),
}
PAIR_LOSSES = (polyloss.bpr, polyloss.pairwise_hinge, partial(polyloss.pairwise_hinge, margin=0.3))


def adds_up(change: Any) -> None:
    scale = abs(change.before) + abs(change.after)
    assert math.fsum(part.change for part in change.parts) == change.change
    assert change.after - change.before == pytest.approx(change.change, abs=1e-14 * scale)
    assert sum(part.count for part in change.parts) == change.count
    assert 0 <= change.fall_could_move <= change.fall * (1 + 1e-12)


@pytest.mark.parametrize("name", ITEM_LOSSES)
@pytest.mark.parametrize("metric", [None, polyloss.f1])
@seeds
@settings(max_examples=10, deadline=None)
def test_the_parts_of_a_cross_entropy_add_up_to_its_change(name: str, metric: Any, seed: int) -> None:
    loss, shape, targets = ITEM_LOSSES[name]
    random = np.random.default_rng(seed)
    before, after = random.standard_normal((2, *shape)) * 3
    change = explain_change(before, after, targets, loss=loss, metric=metric)
    adds_up(change)
    np.testing.assert_allclose([change.before, change.after], [loss(x, targets) for x in (before, after)], rtol=1e-13)


def lists(seed: int, levels: int = 2, ties: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores before and after with many ties, relevance, and a mask, of three lists."""
    random = np.random.default_rng(seed)
    before = random.integers(-ties, ties + 1, (3, 12)) / ties
    after = before + random.integers(-1, 2, (3, 12)) * random.integers(0, 2, (3, 1))
    return before, after, random.integers(0, levels, (3, 12)), random.random((3, 12)) < 0.8


@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("levels", [2, 4])
@seeds
@settings(max_examples=10, deadline=None)
def test_the_parts_of_a_pair_loss_add_up_and_its_pairs_are_all_of_them(loss: Any, levels: int, seed: int) -> None:
    before, after, t, keep = lists(seed, levels)
    change = explain_change(before, after, t, loss=loss, metric=polyloss.ndcg, where=keep)
    adds_up(change)
    pairs = np.argwhere((t[:, :, None] > t[:, None, :]) & keep[:, :, None] & keep[:, None, :])
    row, i, j = pairs.T
    assert change.count == len(pairs)
    if len(pairs):
        for value, x in ((change.before, before), (change.after, after)):
            np.testing.assert_allclose(value, loss(x[row, i], x[row, j]), rtol=1e-13)
        was, now = (x[row, i] > x[row, j] for x in (before, after))
        assert change["wrong, became right"].count == np.sum(~was & now)
        assert change["right, became wrong"].count == np.sum(was & ~now)
        fell = loss(after[row, i], after[row, j], reduction="none") < loss(
            before[row, i], before[row, j], reduction="none"
        )
        assert change["right, pushed further"].count == np.sum(was & now & fell)
        assert change["wrong, less wrong"].count == np.sum(~was & ~now & fell)


@pytest.mark.parametrize("metric", [polyloss.roc_auc, polyloss.ndcg, partial(polyloss.ndcg, k=3)])
@seeds
@few
def test_where_no_pair_could_have_moved_the_metric_it_has_not(metric: Any, seed: int) -> None:
    """Lists are picked one by one, so that many have no such pair."""
    before, after, t, _ = lists(seed, ties=2)
    after = before + np.where(np.random.default_rng(seed).random(before.shape) < 0.1, 0.5, 0.0) * (1 + before)
    grades = np.random.default_rng(seed).integers(0, 4, t.shape) / 4
    for loss in (polyloss.bpr, polyloss.sigmoid_cross_entropy):
        for i in range(3):
            relevance = t[i] if metric is polyloss.roc_auc else grades[i]
            change = explain_change(before[i], after[i], relevance, loss=loss, metric=metric)
            if all(part.could_move == 0 for part in change.parts):
                assert change.metric_after == pytest.approx(change.metric_before, rel=1e-13, nan_ok=True)


def test_places_beyond_k_cannot_move_the_metric() -> None:
    before, after = np.array([5.0, 4.0, 1.0, 0.0]), np.array([6.0, 4.0, 0.0, 1.0])
    relevance = np.array([1, 0, 0, 1])
    whole = explain_change(before, after, relevance, loss=polyloss.bpr, metric=polyloss.ndcg)
    first = explain_change(before, after, relevance, loss=polyloss.bpr, metric=partial(polyloss.ndcg, k=2))
    assert whole["wrong, became right"].could_move == whole["wrong, became right"].change < 0
    assert first["wrong, became right"].could_move == 0
    assert first["wrong, became right"].change == whole["wrong, became right"].change
    assert first.metric_before == first.metric_after


def test_an_item_that_comes_among_the_first_k_can_move_the_metric() -> None:
    before, after, relevance = np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 2.0, 1.0, 9.0]), np.array([0, 0, 0, 1])
    for x, y in ((before, after), (after, before)):
        change = explain_change(x, y, relevance, loss=polyloss.bpr, metric=partial(polyloss.ndcg, k=1))
        assert sum(part.could_move for part in change.parts) == pytest.approx(change.change, rel=1e-14)


def test_right_items_that_are_pushed_further_move_no_metric() -> None:
    before = np.array([1.0, 2.0, -1.0, -3.0])
    change = explain_change(before, 3 * before, before > 0, loss=polyloss.sigmoid_cross_entropy)
    assert change["right, pushed further"].change == change.change < 0
    assert change.could_move == 0
    assert change.metric_before == change.metric_after == 1
    nothing = explain_change(before, before, before > 0, loss=polyloss.sigmoid_cross_entropy)
    assert math.isnan(nothing.could_move)
    assert nothing["unchanged"].count == 4


SMOOTH = {
    "sigmoid": (partial(polyloss.sigmoid_cross_entropy, label_smoothing=0.3), np.array([2.0]), np.array([1])),
    "softmax": (
        partial(polyloss.softmax_cross_entropy, label_smoothing=0.3),
        np.array([[2.0, 0.0, 0.0]]),
        np.array([0]),
    ),
    "z": (partial(polyloss.softmax_cross_entropy, z_loss=1.0), np.array([[2.0, 0.0, 0.0]]), np.array([0])),
    "soft": (polyloss.softmax_cross_entropy, np.array([[2.0, 0.0, 0.0]]), np.array([[0.5, 0.25, 0.25]])),
    "axis": (
        partial(polyloss.softmax_cross_entropy, label_smoothing=0.3, axis=0, class_mask=np.ones((3, 1), bool)),
        np.array([[2.0], [0.0], [0.0]]),
        np.array([0]),
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("scale", [2, 500])
def test_further_and_nearer_go_by_the_scores_whatever_the_loss_makes_of_them(name: str, scale: float) -> None:
    loss, logits, target = SMOOTH[name]
    change = explain_change(logits, scale * logits, target, loss=loss)
    assert change["right, pushed further"].change == change.change > 0
    back = explain_change(scale * logits, logits, target, loss=loss)
    assert back["right, drawn nearer"].change == back.change < 0
    assert back.fall == -back.change


def test_where_there_is_nothing_to_average_the_change_is_nan() -> None:
    x, y = np.array([1.0, -1.0]), np.array([1, 1])
    for loss in (polyloss.sigmoid_cross_entropy, polyloss.bpr):
        for change in (
            explain_change(x, 2 * x, y, loss=loss, where=np.zeros(2, bool)),
            explain_change(x[:0], x[:0], y[:0], loss=loss),
        ):
            numbers = change.before, change.after, change.change, change.fall, change.could_move, change.metric_after
            assert np.all(np.isnan(numbers))
            assert change.count == 0
            assert "nan" in str(change)
        nothing = explain_change(x, 2 * x, y, loss=partial(loss, reduction="sum"), where=np.zeros(2, bool))
        assert nothing.before == nothing.change == 0
    for options in ({"weights": np.zeros(2)}, {"denominator": 0}):
        change = explain_change(x, 2 * x, y, loss=partial(polyloss.sigmoid_cross_entropy, **options))
        assert math.isnan(change.before)
        assert change.count == 2


def test_soft_targets_are_the_relevance_of_ndcg() -> None:
    before, after, t = np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.2, 0.4])
    change = explain_change(before, after, t, loss=polyloss.sigmoid_cross_entropy, metric=polyloss.ndcg)
    assert (change.metric_before, change.metric_after) == (polyloss.ndcg(before, t), 1)
    assert sum(part.could_move for part in change.parts) == pytest.approx(change.change, rel=1e-14)


def test_graded_relevance_has_a_metric_by_default() -> None:
    before, after, t, _ = lists(0, levels=4)
    change = explain_change(before, after, t, loss=polyloss.bpr)
    assert change.metric_before == pytest.approx(np.mean(polyloss.ndcg(before, t)))


def test_an_unknown_relevance_is_an_error_where_it_counts() -> None:
    x, t = np.zeros((2, 3)), np.array([[0, 1, 2], [0, math.nan, 1]])
    with pytest.raises(ValueError, match=r"targets must be finite, got nan at index \(1, 1\)"):
        explain_change(x, x, t, loss=polyloss.bpr)
    assert explain_change(x, x, t, loss=polyloss.bpr, where=~np.isnan(t)).count == 4


def test_two_wrong_classes_move_f1_and_not_accuracy() -> None:
    before, after, y = np.array([[0.0, 2.0, 1.0]]), np.array([[0.0, 1.0, 2.0]]), np.array([0])
    shift = np.array([[0.1, 0.0, 0.0]])
    for metric, share in ((polyloss.accuracy, 0), (polyloss.f1, 1)):
        change = explain_change(before, after + shift, y, loss=polyloss.softmax_cross_entropy, metric=metric)
        assert change.could_move == share
        assert change["wrong, less wrong"].count == 1


@pytest.mark.parametrize("library", installed())
def test_arrays_of_every_library_are_explained(library: str) -> None:
    before, after, t, keep = lists(1)
    x, y = (from_numpy(library, a.astype(np.float32)) for a in (before, after))
    options = {"metric": polyloss.ndcg, "where": from_numpy(library, keep)}
    got = explain_change(x, y, from_numpy(library, t), loss=polyloss.bpr, **options)
    expected = explain_change(
        before.astype("f"), after.astype("f"), t, loss=polyloss.bpr, metric=polyloss.ndcg, where=keep
    )
    assert str(got) == str(expected)
    assert got == expected


def test_a_metric_must_be_one_number() -> None:
    metric = partial(polyloss.f1, average="none")
    with pytest.raises(ValueError, match="average must make one number"):
        explain_change(Q, Q, Q > 0, loss=polyloss.sigmoid_cross_entropy, metric=metric)


def test_brain_floats_are_explained() -> None:
    torch = pytest.importorskip("torch")
    x, t = torch.tensor([[0.5, 1.0], [2.0, 0.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    loss = partial(polyloss.softmax_cross_entropy, class_weights=torch.ones(2).bfloat16())
    change = explain_change(x.bfloat16(), 2 * x.bfloat16(), t.bfloat16(), loss=loss)
    assert change == explain_change(x, 2 * x, t, loss=loss)
    np.testing.assert_allclose(reliability_curve(t.bfloat16()[:, 0], torch.tensor([0, 1])).error, 0.125)


def test_pairs_are_counted_in_a_memory_that_does_not_grow_with_them() -> None:
    n = 3000
    x = rng.standard_normal(2 * n)
    tracemalloc.start()
    change = explain_change(x, x + 1e-9, np.arange(2 * n) % 2, loss=polyloss.pairwise_hinge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert change.count == n * n
    assert peak < 8 * n * n  # one array of all pairs alone is as large


def test_one_positive_among_very_many_is_cut_too() -> None:
    from polyloss.diagnostics.moves import BLOCK

    x = np.linspace(-1, 1, BLOCK + 10)
    change = explain_change(x, x, np.arange(x.size) == 0, loss=polyloss.bpr)
    assert change.count == x.size - 1


BAD = [
    (
        {"loss": np.sum},
        TypeError,
        "loss must be one of sigmoid_cross_entropy, softmax_cross_entropy, pairwise_hinge, bpr",
    ),
    ({"metric": polyloss.accuracy}, TypeError, "metric must be one of ndcg, roc_auc for bpr"),
    ({"after": np.zeros(2)}, ValueError, "after must have the shape of before, (3,), got (2,)"),
    ({"targets": np.zeros(2)}, ValueError, "targets must hold the relevance of each score"),
    ({"loss": partial(polyloss.bpr, weights=np.ones(3))}, ValueError, "margin alone, got ['weights']"),
    ({"loss": partial(polyloss.bpr, reduction="none")}, ValueError, "reduction must be one of 'mean', 'sum'"),
    ({"where": np.ones(3)}, ValueError, "where must be boolean of shape (3,)"),
    ({"before": np.array([np.inf, 0, 0])}, ValueError, "not finite"),
    ({"metric": partial(polyloss.ndcg, where=np.ones(3, bool))}, ValueError, "where is an argument of explain_change"),
    ({"targets": np.array(["a", "b", "c"])}, TypeError, "targets"),
    ({"before": np.arange(3)}, TypeError, "before must be a real floating array"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), BAD)
def test_a_bad_argument_is_named(wrong: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {"before": np.zeros(3), "after": np.ones(3), "targets": np.array([0, 1, 1]), "loss": polyloss.bpr}
    with pytest.raises(error) as caught:
        explain_change(**(good | wrong))
    assert words in str(caught.value)


# Calibration.


def test_the_reliability_curve_is_scikit_learns_and_its_error_the_metric() -> None:
    curve_of = pytest.importorskip("sklearn.calibration").calibration_curve
    p = rng.random(500)
    y = rng.random(500) < p**2
    for strategy in ("uniform", "quantile"):
        curve = reliability_curve(p, y, bins=8, strategy=strategy)
        np.testing.assert_allclose([curve.outcome, curve.probability], curve_of(y, p, n_bins=8, strategy=strategy))
        assert curve.error == pytest.approx(polyloss.calibration_error(p, y, bins=8, strategy=strategy), rel=1e-12)
        assert curve.weight.sum() == 500


def test_the_interval_is_wilsons() -> None:
    binomtest = pytest.importorskip("scipy.stats").binomtest
    p, y = np.full(40, 0.3), np.arange(40) < 9
    for confidence in (0.9, 0.99):
        curve = reliability_curve(p, y, confidence=confidence)
        expected = binomtest(9, 40).proportion_ci(confidence, method="wilson")
        np.testing.assert_allclose([curve.low[0], curve.high[0]], [expected.low, expected.high], rtol=1e-12)
        weighted = reliability_curve(p, y, confidence=confidence, weights=0.1)
        np.testing.assert_allclose([weighted.low, weighted.high], [curve.low, curve.high], rtol=1e-12)


def test_of_perfect_probabilities_few_intervals_miss_the_diagonal() -> None:
    p = rng.random((200, 300))
    y = rng.random((200, 300)) < p
    misses = [np.mean((c.low > c.probability) | (c.high < c.probability)) for c in map(reliability_curve, p, y)]
    assert 0.02 < np.mean(misses) < 0.08  # 0.05 is promised


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.5])
def test_the_fitted_temperature_is_where_the_loss_is_least(temperature: float) -> None:
    logits = rng.standard_normal((6000, 3))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)  # labels drawn from the softmax
    found = fit_temperature(logits * temperature, y)
    losses = [polyloss.softmax_cross_entropy(logits * temperature / (found * f), y) for f in (0.999, 1, 1.001)]
    assert losses[1] == min(losses)
    assert found == pytest.approx(temperature, rel=0.15)
    for library in installed():
        given_ = from_numpy(library, logits * temperature), from_numpy(library, y)
        assert fit_temperature(*given_) == pytest.approx(found, rel=1e-4)


def test_temperature_scaling_lowers_the_calibration_error_on_real_data() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = x / 16 * (np.random.default_rng(0).random(x.shape) < 0.3)  # with pixels missing, so that it is hard
    train, held_out, test = np.split(np.random.default_rng(1).permutation(len(x)), [400, 1000])
    w, both = np.zeros((64, 10)), polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    for _ in range(500):
        w -= 3 * x[train].T @ both(x[train] @ w, y[train])[1]
    logits = x @ w
    t = fit_temperature(logits[held_out], y[held_out])
    errors = [polyloss.calibration_error(polyloss.softmax(logits[test] / s), y[test]) for s in (1, t)]
    losses = [polyloss.softmax_cross_entropy(logits[test] / s, y[test]) for s in (1, t)]
    assert t > 1.2
    assert errors[1] < errors[0] / 2
    assert losses[1] < losses[0]


RIGHT, NONE, EQUAL = "right without exception", "no better than none", np.full((5, 3), 3.3)


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (5 * np.eye(2), [0, 1], RIGHT),
        (5e-9 * np.eye(2), [0, 1], RIGHT),
        (np.array([[1000.0, 1000 + 1e-9]]), [1], RIGHT),
        (-5 * np.eye(2), [0, 1], NONE),
        (EQUAL, np.arange(5) % 3, NONE),
        (0 * EQUAL, np.arange(5) % 3, NONE),
        (EQUAL[:0], np.arange(0), "is nan at every temperature"),
        (np.array([[NAN, 0.0]]), [0], "is nan at every temperature"),
        (np.array([[-INF, 0.0], [1.0, 0.0]]), [0, 0], "is inf at every temperature"),
    ],
)
def test_where_no_temperature_is_best_an_error_says_why(logits: Any, targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_temperature(logits, np.asarray(targets))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_temperature_has_the_scale_of_the_logits(scale: float) -> None:
    logits = rng.standard_normal((50, 3))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    for dtype in (np.float64, np.float32):
        x = logits.astype(dtype)
        assert fit_temperature(x * dtype(scale), y) == pytest.approx(scale * fit_temperature(x, y), rel=1e-5)
    steep = np.array([[1.0, 1 + 2.0**-30]] * 4)
    fitted = polyloss.sigmoid(2.0**-30 / fit_temperature(steep, np.array([1, 1, 1, 0])))
    assert fitted == pytest.approx(0.75, rel=1e-3)


def test_the_confidence_is_printed_as_it_is() -> None:
    for confidence, words in ((0.95, " 95% interval"), (0.995, " 99.5% interval"), (0.07, " 7% interval")):
        assert words in str(reliability_curve(np.array([0.5]), np.array([1]), confidence=confidence))
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match="confidence must be"):
            reliability_curve(np.array([0.5]), np.array([1]), confidence=bad)


def test_a_nan_makes_its_own_bin_nan() -> None:
    p, y, w = np.array([0.1, 0.9, 0.9]), np.array([0, 1, 1]), np.array([1.0, NAN, 1.0])
    for curve in (reliability_curve(p, y, weights=w), reliability_curve(p, y + w - 1)):
        assert curve.outcome[0] == 0
        assert np.isnan(curve.outcome[1])
        assert np.isnan(curve.error)


# Shares of the gradient.

Q, P, M = rng.standard_normal((3, 6, 4))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((Q, P), {}),
        ((Q, P), {"similarity": "dot"}),
        ((Q, P, M), {}),
        ((Q, P, M), {"in_batch": True}),
        ((Q, P, rng.standard_normal((6, 5, 4))), {}),
        ((Q, P), {"candidate_mask": rng.random((6, 6)) < 0.6}),
    ],
)
def test_the_shares_are_those_of_info_nces_own_gradient(arguments: Any, options: Any) -> None:
    for t in (0.1, 1.0):
        found = negative_shares(polyloss.info_nce, *arguments, temperatures=[t], **options)
        np.testing.assert_allclose(found.shares.sum(-1), 1)
        loss = polyloss.info_nce(*arguments, temperature=t, reduction="none", **options)
        np.testing.assert_allclose(found.pull[0], -np.expm1(-loss), rtol=1e-10)  # 1 - the positive's probability


def test_the_effective_number_of_negatives_is_between_one_and_all() -> None:
    logits = np.array([[9.0, 3.0, 3.0, 3.0, -99.0]])
    found = negative_shares(polyloss.softmax_cross_entropy, logits, np.array([0]), temperatures=[0.5, 1.0, 1e6])
    np.testing.assert_allclose(found.effective[:, 0], [3, 3, 4], rtol=1e-3)
    few_ = negative_shares(polyloss.info_nce, Q, P, temperatures=[0.001, 100.0])
    assert np.all(few_.effective[0] < 1.1)
    assert np.all(few_.effective[1] > 4.99)


def test_active_pairs_are_those_within_the_margin() -> None:
    first, second, similar = rng.standard_normal((40, 3)), rng.standard_normal((40, 3)), rng.random(40) < 0.4
    distance = np.linalg.norm(first - second, axis=1)
    margins = [0.5, 1.5, 3.0]
    expected = [np.mean(distance[~similar] < m) for m in margins]
    for loss, arguments in (
        (polyloss.contrastive, (first, second)),
        (polyloss.contrastive_from_distance, (distance,)),
    ):
        found = active_pairs(loss, *arguments, similar, margins=margins)
        np.testing.assert_allclose(found.shares, expected)
        assert found.count == np.sum(~similar)
    many = rng.standard_normal((7, 5))
    hinge = active_pairs(polyloss.pairwise_hinge, many[:, 0], many, margins=margins)
    np.testing.assert_allclose(hinge.shares, [np.mean(many[:, :1] - many < m) for m in margins])


def test_equal_embeddings_have_no_gradient() -> None:
    first = np.array([[0.0, 0.0], [1.0, 0.0]])
    found = active_pairs(polyloss.contrastive, first, first, np.zeros(2), margins=[1, 2])
    np.testing.assert_array_equal(found.shares, 0)
    apart = active_pairs(polyloss.contrastive, first, first * 0, np.zeros(2), margins=[1, 2])
    np.testing.assert_array_equal(apart.shares, [0, 0.5])
    distances = active_pairs(polyloss.contrastive_from_distance, np.array([0.0, 1.0]), np.zeros(2), margins=[1, 2])
    np.testing.assert_array_equal(distances.shares, [0.5, 1])


TEMPERED = partial(polyloss.info_nce, temperature=0.1)
SMOOTHED = partial(polyloss.softmax_cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: negative_shares(TEMPERED, Q, P),
            "info_nce, similarity, in_batch, candidate_mask are taken, got ['temp",
        ),
        (
            lambda: negative_shares(SMOOTHED, Q, P),
            "softmax_cross_entropy, axis, class_mask are taken, got ['label",
        ),
        (lambda: negative_shares(polyloss.softmax_cross_entropy, Q), "must be logits, targets, got 1"),
        (lambda: negative_shares(polyloss.info_nce, Q, P, M, M), "must be queries, positives, negatives, got 4"),
        (lambda: active_pairs(polyloss.contrastive, Q, P, margins=[1]), "must be first, second, similar, got 2"),
        (lambda: active_pairs(polyloss.pairwise_hinge, Q[0], margins=[1]), "must be positive_scores, negative_scores"),
    ],
)
def test_what_a_diagnostic_does_not_take_is_named(call: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert words in str(caught.value)


def test_where_there_is_nothing_a_diagnostic_is_nan_or_says_so() -> None:
    empty = reliability_curve(np.zeros(0), np.zeros(0))
    assert math.isnan(empty.error)
    assert "nan" in str(empty)
    np.testing.assert_array_equal(active_pairs(polyloss.pairwise_hinge, Q[0] * NAN, P[0], margins=[1]).shares, NAN)
    logits, y = np.ones((2, 3)), np.zeros(2, int)
    for arguments, temperatures in (((logits, y), []), ((logits[:0], y[:0]), [1.0])):
        with pytest.raises(ValueError, match="there must be a temperature and a query"):
            negative_shares(polyloss.softmax_cross_entropy, *arguments, temperatures=temperatures)
    with pytest.raises(ValueError, match="there must be a margin"):
        active_pairs(polyloss.pairwise_hinge, Q[0], P[0], margins=[])


@pytest.mark.parametrize("tool", [negative_shares, partial(active_pairs, margins=[1])])
def test_a_loss_without_negatives_is_refused(tool: Any) -> None:
    with pytest.raises(TypeError, match="loss must be"):
        tool(polyloss.bpr, np.zeros(3), np.zeros(3))


# Pictures.

RESULTS = {
    "change": lambda: explain_change(*lists(0)[:3], loss=polyloss.bpr),
    "curve": lambda: reliability_curve(rng.random(50), rng.integers(0, 2, 50)),
    "shares": lambda: negative_shares(polyloss.info_nce, Q, P),
    "active": lambda: active_pairs(polyloss.pairwise_hinge, Q[0], P[0], margins=[0, 1, 2]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_prints_and_draws(name: str, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    result = RESULTS[name]()
    assert "nan" not in str(result)
    axes = result.plot()
    axes.figure.savefig(tmp_path / "picture.svg")
    assert axes.get_xlabel()
    assert result.plot(axes) is axes


def test_the_bars_are_the_parts() -> None:
    pytest.importorskip("matplotlib")
    change = RESULTS["change"]()
    widths = [bar.get_width() for bar in change.plot().patches]
    parts = change.parts[:-1]
    np.testing.assert_array_equal(widths, [p.change for p in parts] + [p.could_move for p in parts])


def test_without_matplotlib_the_extra_is_named_and_nothing_else_is_lost() -> None:
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
import numpy as np, polyloss
from polyloss.diagnostics import reliability_curve
curve = reliability_curve(np.array([0.5]), np.array([1]))
print(curve.error)
try:
    curve.plot()
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "0.5"
    assert "array-polyloss[plot]" in done.stdout


def test_shares_of_one_query_and_of_classes_on_any_axis() -> None:
    one = negative_shares(polyloss.info_nce, Q[0], P[0], M)
    np.testing.assert_allclose(one.shares, negative_shares(polyloss.info_nce, Q[:1], P[:1], M).shares, rtol=1e-12)
    labels = np.array([0, 1, 2, 3, 0, 1])
    rows = negative_shares(polyloss.softmax_cross_entropy, Q, labels)
    columns = negative_shares(polyloss.softmax_cross_entropy, Q.T, labels, axis=0)
    np.testing.assert_array_equal(columns.shares, rows.shares)


def test_a_confident_query_has_shares_too() -> None:
    logits = np.array([[20.0, 1.0, 0.0], [1.0, 0.0, 0.5]])
    found = negative_shares(polyloss.softmax_cross_entropy, logits, np.array([0, 0]), temperatures=[0.02, 1.0])
    assert np.all(np.isfinite(found.shares))
    np.testing.assert_allclose(found.shares.sum(axis=-1), 1)
    np.testing.assert_allclose(found.shares[1, 0, 1:], polyloss.softmax(logits[0, 1:]))


def test_nested_sequences_are_taken() -> None:
    before, after = [[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.5], [0.0, 1.5]]
    loss = polyloss.softmax_cross_entropy
    expected = explain_change(np.array(before), np.array(after), np.array([1, 0]), loss=loss)
    assert explain_change(before, after, [1, 0], loss=loss).change == expected.change
    shares = negative_shares(loss, before, [1, 0], temperatures=[1.0])
    expected_shares = negative_shares(loss, np.array(before), np.array([1, 0]), temperatures=[1.0])
    assert str(shares) == str(expected_shares)
