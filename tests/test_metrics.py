"""Metrics: the numbers of scikit-learn in every array library, and laws over one table of them."""

from __future__ import annotations

import math
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyloss
import polyloss.diagnostics
from polyloss.conformance.routes import from_numpy, installed, to_numpy

sk = pytest.importorskip("sklearn.metrics")

calibration_curve = pytest.importorskip("sklearn.calibration").calibration_curve

NAN, INF = math.nan, math.inf
ORDERS = ("roc_auc", "average_precision", "ndcg")
few = settings(max_examples=40, deadline=None)

# name: the metric of (predictions, targets, **options), and scikit-learn's of (predictions, targets, weights).


def _expected_calibration_error(p: np.ndarray, y: np.ndarray, bins: int, strategy: str) -> float:
    came, promised = calibration_curve(y, p, n_bins=bins, strategy=strategy)
    shares = np.linspace(0, 1, bins + 1)
    edges = shares if strategy == "uniform" else np.percentile(p, shares * 100)
    counts = np.bincount(np.searchsorted(edges[1:-1], p), minlength=bins)
    return float(np.sum(counts[counts > 0] * np.abs(came - promised)) / len(p))


BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "roc_auc": (polyloss.roc_auc, lambda x, y, w: sk.roc_auc_score(y, x, sample_weight=w)),
    "average_precision": (
        polyloss.average_precision,
        lambda x, y, w: sk.average_precision_score(y, x, sample_weight=w),
    ),
    "f1": (
        partial(polyloss.f1, threshold=0.25),
        lambda x, y, w: sk.f1_score(y, x > 0.25, sample_weight=w, zero_division=np.nan),
    ),
    "brier": (polyloss.brier, lambda x, y, w: sk.brier_score_loss(y, x, sample_weight=w)),
    "accuracy": (
        lambda x, y, **o: polyloss.accuracy(x > 0.25, y, **o),
        lambda x, y, w: sk.accuracy_score(y, x > 0.25, sample_weight=w),
    ),
}
CLASSES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "accuracy": (polyloss.accuracy, lambda x, y, w: sk.accuracy_score(y, x.argmax(1), sample_weight=w)),
    "top_k_accuracy": (
        partial(polyloss.top_k_accuracy, k=2),
        lambda x, y, w: sk.top_k_accuracy_score(y, x, k=2, sample_weight=w, labels=range(x.shape[1])),
    ),
    "brier": (
        lambda x, y, **o: polyloss.brier(x / x.sum(-1, keepdims=True), y, **o),
        lambda x, y, w: sk.brier_score_loss(y, x / x.sum(1, keepdims=True), sample_weight=w, labels=range(x.shape[1])),
    ),
}


@st.composite
def samples(draw: st.DrawFn, classes: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores in [0, 1] of few distinct values, labels and weights; both classes occur."""
    n = draw(st.integers(2, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 4, 1 << 20]))
    x = random.integers(0, levels + 1, (n, classes) if classes else n) / levels
    y = random.integers(0, classes or 2, n)
    if not classes:
        y[:2] = 0, 1
    else:
        x += 1 / 8  # so that no row is 0
    weights = random.integers(1, 5, n) / 2 if draw(st.booleans()) else None
    return x, y, weights


@pytest.mark.parametrize("name", BINARY)
@given(sample=samples())
@few
def test_a_binary_metric_is_scikit_learns(name: str, sample: Any) -> None:
    x, y, weights = sample
    ours, theirs = BINARY[name]
    np.testing.assert_allclose(ours(x, y, weights=weights), theirs(x, y, weights), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CLASSES)
@given(sample=samples(classes=3))
@few
def test_a_metric_of_classes_is_scikit_learns(name: str, sample: Any) -> None:
    x, y, weights = sample
    ours, theirs = CLASSES[name]
    np.testing.assert_allclose(ours(x, y, weights=weights), theirs(x, y, weights), rtol=1e-12, atol=1e-15)


@given(sample=samples(), k=st.sampled_from([None, 1, 3, 100]), levels=st.sampled_from([1, 4]))
@few
def test_ndcg_is_scikit_learns(sample: Any, k: int | None, levels: int) -> None:
    x, y, _ = sample
    relevance = y * (1 + np.arange(len(y)) % levels)
    np.testing.assert_allclose(
        polyloss.ndcg(x, relevance, k=k), sk.ndcg_score([relevance], [x], k=k), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "none"])
@given(sample=samples(classes=3))
@few
def test_f1_of_labels_is_scikit_learns(average: str, sample: Any) -> None:
    x, y, weights = sample
    targets = np.stack([y == 0, y == 1, np.zeros_like(y)], -1)  # the last label never occurs
    options = {"average": None if average == "none" else average, "sample_weight": weights, "zero_division": np.nan}
    if average == "weighted" and not np.any(targets):  # scikit-learn says 0
        assert np.isnan(polyloss.f1(x, targets, threshold=0.5, average=average, weights=weights))
        return
    expected = sk.f1_score(targets, x > 0.5, **options)
    np.testing.assert_allclose(
        polyloss.f1(x, targets, threshold=0.5, average=average, weights=weights), expected, rtol=1e-12
    )


@given(sample=samples())
@few
def test_two_classes_have_the_brier_score_of_the_question_between_them(sample: Any) -> None:
    p, y, weights = sample
    both = np.stack([1 - p, p], axis=-1)
    expected = sk.brier_score_loss(y, both, sample_weight=weights)
    np.testing.assert_allclose(polyloss.brier(both, y, weights=weights), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(polyloss.brier(p, y, weights=weights), expected, rtol=1e-12, atol=1e-15)
    whole = sk.brier_score_loss(y, both, sample_weight=weights, scale_by_half=False)
    np.testing.assert_allclose(2 * polyloss.brier(both, y, weights=weights), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@given(sample=samples())
@few
def test_the_calibration_error_is_that_of_scikit_learns_curve(strategy: str, sample: Any) -> None:
    p, y, _ = sample
    for bins in (3, 5, 15):  # of which 3 and 15 round the place of an item that is an edge
        expected = _expected_calibration_error(p, y, bins, strategy)
        np.testing.assert_allclose(polyloss.calibration_error(p, y, bins=bins, strategy=strategy), expected, atol=1e-14)


# Laws over all metrics.

rng = np.random.default_rng(0)
N, K = 24, 3
X, Y = rng.integers(0, 9, N) / 8, rng.integers(0, 2, N)
SCORES, LABELS = rng.integers(1, 9, (N, K)) / 8, rng.integers(0, K, N)
SHARES = SCORES / SCORES.sum(-1, keepdims=True)
WEIGHTS, KEEP = rng.integers(0, 4, N) / 2, rng.random(N) < 0.7

CALLS: dict[str, tuple[Callable[..., Any], np.ndarray, np.ndarray]] = {
    "accuracy of scores": (polyloss.accuracy, SCORES, LABELS),
    "accuracy": (polyloss.accuracy, LABELS[::-1].copy(), LABELS),
    "top_k_accuracy": (partial(polyloss.top_k_accuracy, k=2), SCORES, LABELS),
    "f1": (partial(polyloss.f1, threshold=0.5), X, Y),
    "f1 of labels": (partial(polyloss.f1, threshold=0.5, average="macro"), SCORES, LABELS[:, None] == [0, 1, 2]),
    "roc_auc": (polyloss.roc_auc, X, Y),
    "average_precision": (polyloss.average_precision, X, Y),
    "ndcg": (partial(polyloss.ndcg, k=5), X, Y * 3),
    "ndcg, all places": (
        polyloss.ndcg,
        X - X[KEEP & (Y == 1)][0],
        Y * 3,
    ),  # with relevant items at 0, where masked ones go
    "brier": (polyloss.brier, X, Y),
    "brier of classes": (polyloss.brier, SHARES, LABELS),
    "calibration_error": (partial(polyloss.calibration_error, bins=4), X, Y),
    "calibration_error, quantile": (partial(polyloss.calibration_error, bins=4, strategy="quantile"), X, Y),
    "calibration_error of classes": (partial(polyloss.calibration_error, bins=4), SHARES, LABELS),
}
SORTED = [name for name in CALLS if name.partition(",")[0] in ORDERS or "quantile" in name]
every = pytest.mark.parametrize("name", CALLS)
in_lists = pytest.mark.parametrize("name", ORDERS)


def options_of(name: str) -> dict[str, np.ndarray]:
    return {"where": KEEP} if "ndcg" in name else {"weights": WEIGHTS, "where": KEEP}


@every
@pytest.mark.parametrize("library", installed())
def test_every_library_gives_the_number_of_numpy(name: str, library: str) -> None:
    metric, x, y = CALLS[name]
    x = x.astype(np.float32) if x.dtype == np.float64 else x
    given_ = from_numpy(library, x), from_numpy(library, y)
    options = {key: from_numpy(library, np.asarray(o)) for key, o in options_of(name).items()}
    if library == "dask" and name in SORTED:
        with pytest.raises(TypeError, match="dask has no lazy sort"):
            metric(*given_)
        return
    for chosen in ({}, options):
        got = metric(*given_, **chosen)
        assert type(got).__module__.partition(".")[0].removesuffix("lib") == library
        assert x.dtype != np.float32 or str(got.dtype).endswith("float32")
        expected = metric(x, y, **{key: options_of(name)[key] for key in chosen})
        np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-6, atol=1e-7)


@every
def test_a_metric_is_compiled_and_mapped_by_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    metric, x, y = CALLS[name]
    x = x.astype(np.float32) if x.dtype == np.float64 else x
    options = {key: o.astype(np.float32) if o.dtype == np.float64 else o for key, o in options_of(name).items()}
    expected = metric(x, y, **options)
    np.testing.assert_allclose(jax.jit(metric)(x, y, **options), expected, rtol=1e-6, atol=1e-7)
    twice = jax.vmap(lambda x, y: metric(x, y, **options))(np.stack([x, x]), np.stack([y, y]))
    np.testing.assert_allclose(twice, [expected, expected], rtol=1e-6, atol=1e-7)


@every
def test_a_metric_of_tensors_is_no_part_of_the_graph(name: str) -> None:
    torch = pytest.importorskip("torch")
    metric, x, y = CALLS[name]
    tensor = torch.tensor(x, requires_grad=x.dtype == np.float64)
    assert not metric(tensor, torch.tensor(y)).requires_grad


@every
def test_a_masked_item_is_as_if_it_were_not_there(name: str) -> None:
    metric, x, y = CALLS[name]
    x = np.where(KEEP.reshape(N, *[1] * (x.ndim - 1)), x, np.asarray(NAN).astype(x.dtype)) if x.dtype.kind == "f" else x
    y = np.where(KEEP.reshape(N, *[1] * (y.ndim - 1)), y, 99) if y.dtype.kind == "i" else y
    np.testing.assert_allclose(metric(x, y, where=KEEP), metric(x[KEEP], y[KEEP]), rtol=1e-14)


@every
def test_an_integer_weight_is_a_repetition(name: str) -> None:
    if "ndcg" in name or "quantile" in name:  # which has no weights; whose bins are of items
        return
    metric, x, y = CALLS[name]
    counts = np.arange(N) % 3
    repeated = metric(np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0))
    np.testing.assert_allclose(metric(x, y, weights=counts), repeated, rtol=1e-13)
    np.testing.assert_allclose(metric(x, y, weights=counts / 7), repeated, rtol=1e-13)


@every
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_only_the_shares_of_the_weights_count(name: str, scale: float) -> None:
    if "ndcg" in name:  # which has none
        return
    metric, x, y = CALLS[name]
    np.testing.assert_allclose(metric(x, y, weights=scale * WEIGHTS), metric(x, y, weights=WEIGHTS), rtol=1e-13)


@every
def test_the_order_of_the_items_does_not_matter(name: str) -> None:
    metric, x, y = CALLS[name]
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_allclose(metric(x[order], y[order]), metric(x, y), rtol=1e-13)


@every
def test_a_nan_makes_the_metric_nan_and_nothing_warns(name: str) -> None:
    metric, x, y = CALLS[name]
    if x.dtype.kind != "f":
        return
    x = x.copy()
    x[(3,) * x.ndim if x.ndim == 1 else (3, 1)] = NAN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metric(x, y))
        assert np.isnan(metric(x, y, where=np.arange(N) == 3))
        assert not np.isnan(metric(x, y, where=np.arange(N) != 3))


@every
def test_nothing_to_measure_is_nan(name: str) -> None:
    metric, x, y = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metric(x[:0], y[:0]))
        assert np.isnan(metric(x, y, where=False))
        if "ndcg" not in name:
            assert np.isnan(metric(x, y, weights=0))


@pytest.mark.parametrize(
    ("metric", "targets"),
    [
        (polyloss.roc_auc, [0, 0, 0]),
        (polyloss.roc_auc, [1, 1, 1]),
        (polyloss.average_precision, [0, 0, 0]),
        (polyloss.ndcg, [0, 0, 0]),
        (partial(polyloss.f1, threshold=1), [0, 0, 0]),
    ],
)
def test_one_class_alone_is_undefined(metric: Any, targets: list[int]) -> None:
    for library in installed():
        if library != "dask":
            got = metric(from_numpy(library, np.array([0.5, 0.25, 0.25], "f")), from_numpy(library, np.array(targets)))
            assert np.isnan(to_numpy(got))


@in_lists
@pytest.mark.parametrize("library", [name for name in installed() if name != "dask"])
def test_each_list_has_its_own_number(name: str, library: str) -> None:
    metric = getattr(polyloss, name)
    x, y, keep = X.reshape(2, 3, 4).astype("f"), Y.reshape(2, 3, 4), KEEP.reshape(2, 3, 4)
    got = to_numpy(metric(*(from_numpy(library, a) for a in (x, y)), where=from_numpy(library, keep)))
    expected = [[metric(x[i, j], y[i, j], where=keep[i, j]) for j in range(3)] for i in range(2)]
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@in_lists
@given(seed=st.integers(0, 10**6))
@few
def test_only_the_order_of_the_scores_counts(name: str, seed: int) -> None:
    metric, random = getattr(polyloss, name), np.random.default_rng(seed)
    x, y = random.integers(-5, 6, 20), random.integers(0, 2, 20)
    for same in (
        x.astype(np.int8),
        x / 3,
        x.astype(np.float16),
        np.exp(x.astype("f")),
        np.where(x == 5, INF, x),
        x * 7,
    ):
        np.testing.assert_allclose(metric(same, y), metric(x.astype(float), y), rtol=1e-6)
    assert metric(x > 0, y).dtype == np.float64  # decisions are scores, too


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64", "bool"])
@pytest.mark.parametrize("library", [name for name in installed() if name != "dask"])
def test_integer_scores_are_compared_as_integers(library: str, dtype: str) -> None:
    x, y = np.array([0, 1, 1, 0, 1]).astype(dtype), np.array([0, 1, 0, 1, 1])
    got = polyloss.roc_auc(from_numpy(library, x), from_numpy(library, y))
    np.testing.assert_allclose(to_numpy(got), polyloss.roc_auc(x.astype(float), y), rtol=1e-6)
    large = np.array([2**53, 2**53 + 1])  # which no float tells apart
    assert polyloss.roc_auc(large, [0, 1]) == 1


def test_ten_to_the_ten_pairs_are_counted() -> None:
    """As many as 32 bits do not hold, in a memory that grows with the items alone."""
    n = 10**5
    x = np.arange(2 * n, dtype=np.float32)
    y = np.arange(2 * n) % 2
    tracemalloc.start()
    assert polyloss.roc_auc(x, y) == np.float32((n + 1) / 2 / n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 8 * 2 * n
    jax = pytest.importorskip("jax")
    np.testing.assert_allclose(polyloss.roc_auc(jax.numpy.asarray(x), jax.numpy.asarray(y)), (n + 1) / 2 / n, rtol=1e-5)


def test_the_benchmark_of_the_metrics_runs_and_its_results_agree() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    try:
        from benchmarks.metrics import measure, table
    finally:
        sys.path.pop(0)
    for dtype, tolerance in (("float64", 1e-14), ("float32", 1e-7)):
        assert all(difference < tolerance for *_, difference in measure(500, dtype, 1).values())
    assert table(500, 1).count("|\n") == 7


def test_sixteen_bits_are_counted_in_more() -> None:
    x, y = np.zeros(5000, np.float16), np.arange(5000) % 2  # float16 ends at 2048
    assert polyloss.roc_auc(x, y) == 0.5
    assert polyloss.brier(x, y) == 0.5
    assert polyloss.average_precision(x, y).dtype == polyloss.brier(x, y).dtype == np.float32


def test_a_library_without_a_cumulative_maximum_gets_one() -> None:
    import array_api_compat.numpy as xp

    from polyloss.backends import Library

    for n in range(1, 20):
        x = rng.integers(0, 5, (2, n))
        np.testing.assert_array_equal(Library(xp).cumulative_max(x), np.maximum.accumulate(x, axis=-1))


BAD = [
    (polyloss.accuracy, (X, Y), TypeError, "class indices"),
    (polyloss.accuracy, (SCORES, Y[:2]), ValueError, "labels"),
    (polyloss.accuracy, (SCORES[None], Y), ValueError, "predictions must have the shape of labels, (24,), or one more"),
    (polyloss.accuracy, (SCORES, Y + 5), ValueError, "labels must be class indices in [0, 3)"),
    (polyloss.accuracy, (SCORES, Y / 2), TypeError, "labels are class indices"),
    (polyloss.accuracy, (None, Y), TypeError, "predictions"),
    (partial(polyloss.top_k_accuracy, k=0), (SCORES, LABELS), ValueError, "k must be at least 1, got 0"),
    (partial(polyloss.top_k_accuracy, k=1.5), (SCORES, LABELS), TypeError, "k must be an integer"),
    (polyloss.top_k_accuracy, (X[0], Y[0], 1), ValueError, "scores of shape ()"),
    (partial(polyloss.f1, threshold=NAN), (X, Y), ValueError, "threshold"),
    (partial(polyloss.f1, threshold=0.5, average="samples"), (X, Y), ValueError, "'macro'"),
    (partial(polyloss.f1, threshold=0.5), (X, Y + 1), ValueError, "targets must be 0 or 1, got 2"),
    (polyloss.roc_auc, (X, Y * 0.5), ValueError, "targets must be 0 or 1, got 0.5"),
    (polyloss.roc_auc, (X, Y[:3]), ValueError, "targets must have the shape of scores, (24,), got (3,)"),
    (polyloss.roc_auc, (X[0], Y[0]), ValueError, "scores must hold a list"),
    (polyloss.roc_auc, (X * 1j, Y), TypeError, "scores must be integer, boolean or real floating"),
    (partial(polyloss.roc_auc, weights=WEIGHTS[:2]), (X, Y), ValueError, "weights"),
    (partial(polyloss.roc_auc, where=WEIGHTS), (X, Y), TypeError, "where must be boolean"),
    (polyloss.ndcg, (X, Y - 1), ValueError, "relevance must be at least 0, got -1"),
    (partial(polyloss.ndcg, k=0), (X, Y), ValueError, "k must be at least 1"),
    (polyloss.brier, (X + 1, Y), ValueError, "probabilities must be in [0, 1]"),
    (polyloss.brier, (Y, Y), TypeError, "probabilities must be a real floating array"),
    (polyloss.brier, (X, Y + 1), ValueError, "targets must be in [0, 1]"),
    (partial(polyloss.calibration_error, bins=0), (X, Y), ValueError, "bins must be at least 1"),
    (partial(polyloss.calibration_error, strategy="width"), (X, Y), ValueError, "'quantile'"),
]


@pytest.mark.parametrize(("metric", "arguments", "error", "words"), BAD)
def test_a_bad_argument_is_named(metric: Any, arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        metric(*arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "accuracy of scores", "brier", "f1", "ndcg"])
def test_where_no_value_can_be_seen_a_bad_target_makes_nan(name: str) -> None:
    jax = pytest.importorskip("jax")
    metric, x, y = CALLS[name]
    y = y.copy()
    y[4] = -1
    with pytest.raises(ValueError, match=r"\(4,\)"):
        metric(x, y)
    assert np.isnan(jax.jit(metric)(x.astype("f"), y))


@pytest.mark.parametrize("library", installed())
def test_f1_compares_scores_in_their_own_dtype(library: str) -> None:
    large = np.array([2**24 + 1, 0], np.int32)
    for scores, threshold in ((large, 2**24), (np.array([0.9, 0.1], np.float32), 0.1), (large, -1e30), (large, 1e30)):
        expected = polyloss.f1(scores > np.asarray(threshold, scores.dtype if abs(threshold) < 1e9 else "d"),
                               np.array([1, 0]), threshold=0)  # fmt: skip
        got = polyloss.f1(from_numpy(library, scores), from_numpy(library, np.array([1, 0])), threshold=threshold)
        np.testing.assert_allclose(float(to_numpy(got)), float(expected), rtol=1e-6)
    if library != "array_api_strict":  # which has no 16 bits
        half = from_numpy(library, np.array([0.3, 0.9], np.float16))  # 0.30005
        assert to_numpy(polyloss.f1(half, from_numpy(library, np.array([0, 1])), threshold=0.3)) == 1
        assert to_numpy(polyloss.f1(half, from_numpy(library, np.array([0, 1])), threshold=1e30)) == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("library", installed())
def test_the_largest_integers_are_told_apart(library: str, dtype: str) -> None:
    largest = np.iinfo(dtype).max
    scores = from_numpy(library, np.array([largest, largest - 1, 0], dtype))
    if np.dtype(str(scores.dtype).rpartition(".")[2]) != dtype:
        pytest.skip(f"{library} has no {dtype}")
    targets = from_numpy(library, np.array([1, 0, 0]))
    for threshold, expected in ((int(largest) - 1, 1), (int(largest) - 2, 2 / 3), (-1, 0.5), (int(largest), 0)):
        got = polyloss.f1(scores, targets, threshold=threshold)
        np.testing.assert_allclose(float(to_numpy(got)), expected, rtol=1e-6)
    if library != "dask":
        assert to_numpy(polyloss.roc_auc(scores, targets)) == 1
        assert to_numpy(polyloss.ndcg(scores, targets)) == 1
    assert to_numpy(polyloss.accuracy(scores[None, :], targets[1:2])) == 1


def test_integers_that_a_library_cannot_hold_are_refused() -> None:
    jnp = pytest.importorskip("jax.numpy")
    for large in (np.array([2**40, 2**41]), [2**40, 2**41]):
        with pytest.raises(ValueError, match="scores must fit int32, as jax holds them here, got int64"):
            polyloss.roc_auc(large, jnp.asarray([0, 1]))
    assert polyloss.roc_auc(np.array([5, 6]), jnp.asarray([0, 1])) == 1


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("library", installed())
def test_an_edge_belongs_to_the_bin_below_in_every_library(library: str, dtype: str, strategy: str) -> None:
    p = (np.arange(1, 10) / 10).astype(dtype)  # of which 0.1 and 0.7 are larger in float32, and 0.3 in float16
    if library == "dask" and strategy == "quantile":
        return
    if library == "array_api_strict" and dtype == "float16":  # which it lacks
        return
    given_ = from_numpy(library, p), from_numpy(library, np.arange(9) % 2)
    for bins in (1, 2, 5, 10):
        place = np.arange(9) * bins // 10 if strategy == "uniform" else np.maximum(np.arange(9) * bins - 1, 0) // 8
        expected = np.abs(np.bincount(place, p - np.arange(9) % 2.0)).sum() / 9
        got = to_numpy(polyloss.calibration_error(*given_, bins=bins, strategy=strategy))
        np.testing.assert_allclose(float(got), expected, rtol=2e-6)


@pytest.mark.parametrize("library", installed())
@pytest.mark.parametrize(("n", "count"), [(0, 3), (1, 1), (23, 6), (64, 2), (64, 100)])
def test_sums_of_groups_are_those_of_their_items(library: str, n: int, count: int) -> None:
    from polyloss.dispatch import library_of

    for _ in range(3 if library == "jax" else 30):
        rows, group = rng.random((2, n)), rng.integers(0, count, n)
        arrays = [from_numpy(library, x) for x in (*rows.astype(np.float32), group)]
        got = library_of(arrays[0]).sums_of_groups(arrays[:2], arrays[2], count)
        for row, found in zip(rows, got):
            np.testing.assert_allclose(to_numpy(found), np.bincount(group, row, count), rtol=1e-5)


def test_negative_weights_make_no_calibration_error() -> None:
    weights = np.array([1.0, -1.0])
    for function in (polyloss.calibration_error, polyloss.diagnostics.reliability_curve):
        with pytest.raises(ValueError, match=r"weights must be at least 0, got -1.0 at index \(1,\)"):
            function(np.array([0.5, 0.7]), np.array([1, 0]), weights=weights)


def test_many_bins_cost_no_more_than_few() -> None:
    jax = pytest.importorskip("jax")
    p, y = rng.random(1000), rng.integers(0, 2, 1000)
    steps = [len(jax.make_jaxpr(partial(polyloss.calibration_error, bins=bins))(p, y).eqns) for bins in (5, 500)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_threshold_beyond_all_numbers_of_the_scores_is_below_infinity(dtype: str) -> None:
    scores = np.array([np.inf, 1], dtype)
    for threshold in (1e6, 1e39, np.finfo(np.float64).max):
        assert polyloss.f1(scores, np.array([1, 0]), threshold=threshold) == 1


def test_integer_thresholds_of_numpy_are_not_rounded() -> None:
    scores, targets = np.array([2**53 + 1, 2**60]), np.array([0, 1])
    for kind in (int, np.int64, np.uint64):
        assert polyloss.f1(scores, targets, threshold=kind(2**53 + 1)) == 1


@pytest.mark.parametrize("weights", [[1e308, 1e308], [1e308, 1.0], [1.0, 1e308]])
def test_the_area_of_weights_near_the_end_of_the_range(weights: list[float]) -> None:
    assert polyloss.roc_auc(np.array([0.1, 0.9]), np.array([0, 1]), weights=np.array(weights)) == 1


def test_the_sum_of_a_bin_is_accurate_however_many_items_it_has() -> None:
    n = 10**6
    got = polyloss.calibration_error(np.full(n, 0.1), np.zeros(n))
    np.testing.assert_allclose(got, 0.1, rtol=np.log2(n) * np.finfo(np.float64).eps)


def test_chunks_of_calibration_that_differ() -> None:
    da = pytest.importorskip("dask.array")
    p = np.random.default_rng(0).random(100)
    t = (p > 0.5) * 1.0
    got = polyloss.calibration_error(
        da.from_array(p, chunks=10), da.from_array(t, chunks=7), weights=da.from_array(p, chunks=33)
    )
    np.testing.assert_allclose(got.compute(), polyloss.calibration_error(p, t, weights=p), rtol=1e-14)
