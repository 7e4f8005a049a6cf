"""Every error that the contract promises.

A row of a table is a name, a call that must fail, the exception, and what its message must contain. Rows of `SHAPES`
and `VALUES` run in several libraries. What an invalid value does where none can be raised: `test_invalid_values`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import pickle
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from calls import (
    CALLS,
    DEVICES,
    HOST,
    HOT,
    INF,
    LONGDOUBLE,
    LOSSES,
    NAMESPACES,
    NAN,
    NEGATIVES,
    STRICT,
    WIDE,
    In,
    P,
    S,
    Series,
    T,
    V,
    X,
    Y,
    bce,
    bpr,
    elsewhere,
    given,
    gradient,
    in_,
    jitted,
    made,
    nce,
    pair,
    put,
    sce,
)

import polyloss

MIXED = [
    pair for pair in itertools.permutations(NAMESPACES, 2) if set(pair) != {"numpy", "jax.numpy"}
]  # JAX takes those


def name_of(*namespaces: str) -> list[str]:
    return [name.partition(".")[0] for name in namespaces]


SHAPES: list[tuple[Any, ...]] = [
    ("targets (N,) for (N, 1)", bce(logits=V[:, None], targets=S), "targets", "(3, 1)", "(3,)"),
    ("targets (N, 1) for (N,)", bce(logits=V, targets=S[:, None]), "targets", "(3, 1)", "(3,)"),
    ("a number for all targets", bce(targets=1.0), "targets", "()", "(3, 4)"),
    ("a row for all targets", bce(targets=T[0]), "targets", "(4,)", "(3, 4)"),
    ("targets, binary_log_loss", given("binary_log_loss", targets=S), "targets", "probabilities", "(3,)", "(3, 4)"),
    ("labels (N, 1)", sce(targets=Y[:, None]), "targets", "(3,)", "(3, 1)"),
    ("labels of axis 1 for 0", sce(axis=0), "targets", "(4,)", "(3,)"),
    ("labels (N, 1), log_loss", given("log_loss", targets=Y[:, None]), "targets", "probabilities", "(3,)", "(3, 1)"),
    ("one label for all", sce(targets=1), "targets", "(3,)", "()"),
    ("one-hot", sce(targets=HOT), "targets", "one-hot", "argmax(targets, axis=1)"),
    ("one-hot, axis 0", sce(targets=HOT, axis=0), "targets", "one-hot", "argmax(targets, axis=0)"),
    ("one-hot, boolean", sce(targets=HOT == 1), "targets", "one-hot", "argmax"),
    ("one-hot, log_loss", given("log_loss", targets=HOT), "targets", "probabilities", "one-hot", "argmax"),
    ("floating labels", sce(targets=S), "targets", "(3, 4)", "(3,)"),
    ("soft targets of one row", given("log_loss", targets=P[:1]), "targets", "probabilities", "(3, 4)", "(1, 4)"),
    ("K = 0", sce(logits=X[:, :0]), "logits", "class", "(3, 0)"),
    ("K = 0, soft", sce(logits=X[:, :0], targets=T[:, :0]), "logits", "class", "(3, 0)"),
    ("K = 0, log_loss", given("log_loss", probabilities=P[:, :0]), "probabilities", "class", "(3, 0)"),
    ("weights from the right", bce(weights=T[0]), "weights", "(4,)", "(3, 4)"),
    ("weights enlarge", bpr(weights=T), "weights", "(3, 4)", "(3,)"),
    ("weights enlarge an axis", bce(logits=X[:1], targets=T[:1], weights=T), "weights", "(3, 4)", "(1, 4)"),
    ("weights of classes", sce(weights=T[0]), "weights", "(4,)", "(3,)"),
    ("weights of features", pair(weights=T), "weights", "(3, 4)", "(3,)"),
    ("where from the right", bce(where=T[0] > 0), "where", "(4,)", "(3, 4)"),
    ("where of the logits", sce(where=T > 0), "where", "(3, 4)", "(3,)"),
    ("where enlarges", bpr(where=T > 0), "where", "(3, 4)", "(3,)"),
    ("where of classes", given("log_loss", where=T[0] > 0), "where", "(4,)", "(3,)"),
    ("where of rows in softmax", given("softmax", where=S > 0), "where", "(3,)", "(3, 4)"),
    ("where enlarges logsumexp", given("logsumexp", where=T[None] > 0), "where", "(1, 3, 4)", "(3, 4)"),
    ("pos_weight of rows", bce(pos_weight=V), "pos_weight", "(3,)", "(3, 4)"),
    ("pos_weight enlarges", bce(pos_weight=T[None]), "pos_weight", "(1, 3, 4)", "(3, 4)"),
    ("class_weights of rows", sce(class_weights=V), "class_weights", "(4,)", "(3,)"),
    ("class_weights 2-d", sce(class_weights=T), "class_weights", "(4,)", "(3, 4)"),
    ("class_weights 0-d", sce(class_weights=2.0), "class_weights", "(4,)", "()"),
    ("class_weights of one", sce(class_weights=V[:1]), "class_weights", "(4,)", "(1,)"),
    ("class_mask of rows", sce(class_mask=S > 0), "class_mask", "(3,)", "(3, 4)"),
    ("class_mask enlarges", sce(class_mask=NEGATIVES > 0), "class_mask", "(5, 4)", "(3, 4)"),
    ("negative_scores short", bpr(negative_scores=V[:1]), "negative_scores", "(3,)", "(1,)"),
    ("negative_scores (N,) for (N, 1)", bpr(positive_scores=V[:, None]), "negative_scores", "(3, 1)", "(3,)"),
    ("negative_scores from the right", bpr(positive_scores=X[0], negative_scores=X), "negative_scores", "(4,)"),
    ("negative_scores fewer axes", given("pairwise_hinge", positive_scores=X), "negative_scores", "(3, 4)", "(3,)"),
    ("negative_scores 3-d", given("pairwise_hinge", negative_scores=X[:, None]), "negative_scores", "(3, 1, 4)"),
    ("second of one row", pair(second=X[:1]), "second must", "first", "(3, 4)", "(1, 4)"),
    ("second of other features", pair(second=X[:, :2]), "second must", "(3, 4)", "(3, 2)"),
    ("similar (N, 1)", pair(similar=S[:, None]), "similar", "(3,)", "(3, 1)"),
    ("similar of one", pair(similar=S[:1]), "similar", "(3,)", "(1,)"),
    ("similar (N,) for (N, 1)", given("contrastive_from_distance", distances=V[:, None]), "similar", "(3, 1)", "(3,)"),
    ("embeddings 0-d", pair(first=V[0, ...], second=V[0, ...], similar=S[0, ...]), "first must", "()"),
    ("no features", pair(first=X[:, :0], second=X[:, :0]), "first must", "(3, 0)"),
    ("no features, info_nce", nce(queries=X[:, :0], positives=X[:, :0]), "queries", "(3, 0)"),
    ("queries 3-d", nce(queries=X[None], positives=X[None]), "queries", "(1, 3, 4)"),
    ("positives of one row", nce(positives=X[:1]), "positives", "queries", "(3, 4)", "(1, 4)"),
    ("positives for one query", nce(queries=X[0], negatives=NEGATIVES), "positives", "(4,)", "(3, 4)"),
    ("negatives of other features", nce(negatives=NEGATIVES[:, :2]), "negatives", "(M, 4)", "(5, 2)"),
    ("negatives of other queries", nce(negatives=np.ones((2, 5, 4))), "negatives", "(3, M, 4)", "(2, 5, 4)"),
    ("negatives 3-d, one query", nce(queries=X[0], positives=X[0], negatives=X[None]), "negatives", "(1, 3, 4)"),
    ("negatives 1-d", nce(negatives=X[0]), "negatives", "(M, 4)", "(4,)"),
    ("candidate_mask", nce(candidate_mask=T > 0), "candidate_mask", "(3, 3)", "(3, 4)"),
    ("candidate_mask of negatives", nce(negatives=X, candidate_mask=S > 0), "candidate_mask", "(3, 4)", "(3,)"),
    ("temperature 1-d", nce(temperature=np.ones(1)), "temperature", "(1,)"),
    ("denominator 1-d", bpr(denominator=np.ones(1)), "denominator", "(1,)"),
    ("denominator list", sce(denominator=[2.0]), "denominator", "(1,)"),
    ("ragged weights", bce(weights=[[1.0, 2.0], [3.0], [4.0]]), "weights"),
    ("in grad", gradient("sigmoid_cross_entropy", targets=T[:, :1]), "targets", "(3, 4)", "(3, 1)"),
]

VALUES: list[tuple[Any, ...]] = [
    ("label", sce(targets=np.array([0, 7, 9])), "targets", "[0, 4)", "7", "(1,)"),
    ("label K", sce(targets=np.array([4, 0, 9])), "targets", "[0, 4)", "(0,)"),
    ("label -1", sce(targets=np.array([0, -1, 1])), "targets", "[0, 4)", "-1", "(1,)"),
    ("label -100", sce(targets=np.array([-1, 0, -100]), ignore_index=-1), "targets", "-100", "(2,)"),
    ("label uint8", sce(targets=np.array([0, 255, 0], np.uint8)), "targets", "255", "(1,)"),
    ("label int8", sce(targets=np.array([0, -128, 0], np.int8)), "targets", "-128", "(1,)"),
    ("label True of one class", sce(logits=X[:, :1], targets=S > 0.5), "targets", "[0, 1)", "(0,)"),
    ("label along axis 0", sce(targets=np.arange(4), axis=0), "targets", "[0, 3)", "(3,)"),
    ("label in a list", sce(targets=[0, 7, 9]), "targets", "7", "(1,)"),
    ("label of two axes", sce(logits=X[None], targets=np.array([[0, 9, 0]])), "targets", "9", "(0, 1)"),
    ("label in log_loss", given("log_loss", targets=np.array([0, 7, 9])), "targets", "[0, 4)", "7", "(1,)"),
    ("target", bce(targets=put(T, (1, 2), 1.5)), "targets", "[0, 1]", "1.5", "(1, 2)"),
    ("target inf", bce(targets=put(T, (0, 1), INF)), "targets", "[0, 1]", "inf", "(0, 1)"),
    ("target integer", bce(targets=2 * HOT), "targets", "[0, 1]", "2", "(0, 2)"),
    ("target -1 for 0", given("binary_log_loss", targets=2 * HOT - 1), "targets", "[0, 1]", "-1", "(0, 0)"),
    ("soft target", sce(targets=put(T, (1, 0), -0.5)), "targets", "[0, 1]", "-0.5", "(1, 0)"),
    ("soft target, axis 0", sce(targets=put(T, (1, 2), 1.5), axis=0), "targets", "[0, 1]", "1.5", "(1, 2)"),
    ("soft target in log_loss", given("log_loss", targets=put(P, (1, 0), 1.5)), "targets", "[0, 1]", "1.5", "(1, 0)"),
    ("probability", given("binary_log_loss", probabilities=X), "probabilities", "[0, 1]", "-1", "(0, 1)"),
    ("probability > 1", given("log_loss", probabilities=put(P, 1, 1.5)), "probabilities", "[0, 1]", "1.5", "(1, 0)"),
    (
        "probability, axis 0",
        given("log_loss", probabilities=X, targets=HOT[0], axis=0),
        "probabilities",
        "-1",
        "(0, 1)",
    ),
    ("row sum", given("log_loss", probabilities=put(P, 1, 0)), "probabilities", "sum", "1", "(1,)", "binary_log_loss"),
    (
        "row sum of one class",
        given("log_loss", probabilities=P[:, :1], targets=0 * Y),
        "probabilities",
        "0.5",
        "binary_log_loss",
    ),
    ("row sum off by 0.002", given("log_loss", probabilities=P * 1.002), "probabilities", "1.00", "(0,)"),
    ("similar", pair(similar=np.array([1, 2, 3])), "similar", "[0, 1]", "2", "(1,)"),
    ("similar -1", given("contrastive_from_distance", similar=np.array([1, 0, -1])), "similar", "[0, 1]", "-1", "(2,)"),
    ("distance", given("contrastive_from_distance", distances=put(V, 1, -0.5)), "distances", "0", "-0.5", "(1,)"),
    ("temperature 0", nce(temperature=np.array(0.0)), "temperature", "positive", "0"),
    ("temperature < 0", nce(temperature=np.array(-1.0)), "temperature", "positive", "-1"),
    ("in grad", gradient("softmax_cross_entropy", targets=np.array([0, 7, 9])), "targets", "[0, 4)", "7", "(1,)"),
]
# Beyond the index dtype a label may wrap neither into range nor onto ignore_index; the message names it as it came.
HUGE = [
    (f"label {y}", sce(targets=np.array([0, y, 0], dtype), ignore_index=-100), "targets", "[0, 4)", str(y), "(1,)")
    for y, dtype in ((2**63 + 1, np.uint64), (2**64 - 100, np.uint64), (WIDE, np.int64))
]

TYPES: list[tuple[Any, ...]] = [
    *(
        (f"{f} {name} {dtype}", given(f, **{name: CALLS[f][name].astype(dtype)}), name, dtype, "float32")
        for dtype in ("int64", "uint8", "bool", "complex128", "object", "<U4", *LONGDOUBLE)
        for f in CALLS
        for name in list(CALLS[f])[: 2 if f in ("bpr", "pairwise_hinge", "contrastive", "info_nce") else 1]
    ),
    *(
        (f"{f} {name} {dtype}", given(f, **{name: np.ones(shape, dtype)}), name, dtype)
        for dtype in ("complex128", "object", "<U4", *LONGDOUBLE)
        for f, name, shape in (
            *((f, "targets", (3, 4)) for f in LOSSES if "targets" in CALLS[f]),
            *((f, "similar", 3) for f in LOSSES if "similar" in CALLS[f]),
            *((f, name, ()) for f in LOSSES for name in ("weights", "denominator")),
            ("sigmoid_cross_entropy", "pos_weight", 4),
            ("softmax_cross_entropy", "class_weights", 4),
            ("info_nce", "temperature", ()),
        )
    ),
    *(
        (f"{f} {name} {dtype}", given(f, **{name: np.ones(4, dtype)}), name, "bool", dtype)
        for dtype in ("int64", "float64")
        for f, name in (
            *((f, "where") for f in (*LOSSES, "softmax", "log_softmax", "logsumexp")),
            ("softmax_cross_entropy", "class_mask"),
            ("info_nce", "candidate_mask"),
        )
    ),
    ("where of a number", bpr(where=1), "where", "bool"),
    ("temperature of integers", nce(temperature=np.array(1)), "temperature", "int64"),
    ("negatives boolean", nce(negatives=NEGATIVES > 0), "negatives", "bool"),
    ("logits True", bce(logits=True, targets=1.0), "logits", "bool"),
    ("logits 1j", bce(logits=1j, targets=1.0), "logits", "complex"),
    ("targets complex64(1)", bce(logits=1.0, targets=np.complex64(1)), "targets", "complex64"),
    *(
        (f"{f} {name} {kind}", given(f, **{name: wrong}), name, *words)
        for f, name in ((f, name) for f in CALLS for name in (*CALLS[f], *(["weights"] if f in LOSSES else [])))
        for kind, wrong, *words in (
            ("pandas", Series(), "Series"),
            ("string", "0.5", "str"),
            ("set", {1.0}, "set"),
            ("list of strings", ["a", "b"], "str"),
            ("list with None", [0.5, None]),
            ("numpy.ma", np.ma.array(X), "numpy.ma", "where"),
            ("numpy.matrix", X.view(np.matrix), "numpy.matrix", "asarray"),  # a view: numpy.matrix() itself warns
            *([] if name == "weights" else [("None", None, "None")]),
        )
    ),
    ("unknown argument", bpr(weight=V), "weight"),
    *(
        (f"{a} with {b}", sce(logits=In(a, X), targets=In(b, Y)), "logits", "targets", *name_of(a, b), "asarray(")
        for a, b in MIXED
    ),
    *(
        (f"NumPy {name} in {xp}", in_(xp, given(f), **{name: x}), name, "numpy", *name_of(xp))
        for xp in ("torch", STRICT, "dask.array")
        for f, name, x in (
            ("bpr", "weights", S),
            ("bpr", "where", S > 0),
            ("bpr", "denominator", np.array(2.0)),
            ("sigmoid_cross_entropy", "pos_weight", T[0]),
            ("info_nce", "temperature", np.array(0.1)),
            ("softmax", "where", T > 0),
        )
    ),
    ("torch and NumPy beside JAX", bce(logits=In("jax.numpy", X), weights=In("torch", T)), "weights", "torch", "jax"),
    *(
        (f"{xp} {f} {dtype}", in_(xp, given(f), **{name: In(xp, HOT, dtype)}), f"{name} must", dtype, "float32")
        for xp, dtype in (
            *itertools.product(NAMESPACES[1:], ("int32", "uint8", "bool", "complex64")),
            *itertools.product(HOST[:3], ("float8_e4m3fn", "float8_e5m2")),
        )
        for f, name in (("sigmoid_cross_entropy", "logits"), ("softmax", "x"), ("info_nce", "queries"))
    ),
    *(
        (f"list with array {len(x)} of {xp}", bce(logits=V[: len(x) + 1], targets=[*x, In(xp, 0.5)]), "targets", word)
        for xp, word in (("torch", "Tensor"), ("jax.numpy", "Array"), (STRICT, "Array"))
        for x in ([], [1.0, 0.0])
    ),
    ("logits in jit", jitted("softmax_cross_entropy", logits=HOT), "logits", "int32"),
]

OPTIONS: list[tuple[Any, ...]] = [
    *(
        (f"{f} {name}={x!r}", given(f, **{name: x}), error, name, *[str(x)][: error is ValueError])
        for f, name, outside in (
            ("sigmoid_cross_entropy", "label_smoothing", (-0.1, 1.1)),
            ("softmax_cross_entropy", "label_smoothing", (-0.1, 1.1)),
            ("softmax_cross_entropy", "z_loss", (-0.1,)),
            ("binary_log_loss", "eps", (-0.1, 0.6)),
            ("log_loss", "eps", (-0.1, 0.6)),
            ("pairwise_hinge", "margin", ()),
            ("contrastive", "margin", ()),
            ("contrastive_from_distance", "margin", ()),
            ("info_nce", "temperature", (0, -0.1)),
        )
        for error, values in ((ValueError, (*outside, NAN, INF, -INF)), (TypeError, ("0.1", None, True, 1j)))
        for x in values
    ),
    *(
        (f"{f} {name}={x!r}", given(f, **{name: x}), ValueError, name, *map(repr, valid), repr(x))
        for f, name, valid in (
            *((f, "reduction", ("none", "sum", "mean")) for f in LOSSES),
            ("info_nce", "similarity", ("cosine", "dot")),
        )
        for x in ("max", "Mean", None, 0)
    ),
    *(
        (f"{f} axis={axis!r}", given(f, axis=axis), error, "axis", *[str(axis), "(3, 4)"][: 2 * (error is ValueError)])
        for f in ("softmax_cross_entropy", "log_loss", "softmax", "log_softmax", "logsumexp")
        for error, values in ((ValueError, (2, -3)), (TypeError, (1.0, "1", None, True)))
        for axis in values
    ),
    ("axis of 0-d", given("softmax", x=V[0, ...]), ValueError, "axis", "()"),
    *((f"ignore_index {i!r}", sce(ignore_index=i), TypeError, "ignore_index") for i in (0.5, "0", True)),
    ("ignore_index, soft", sce(targets=T, ignore_index=-100), ValueError, "ignore_index", "where"),
    ("denominator with sum", bpr(reduction="sum", denominator=2), ValueError, "denominator", "mean", "sum"),
    ("denominator with none", bpr(reduction="none", denominator=2), ValueError, "denominator", "mean", "none"),
    ("symmetric, negatives", nce(negatives=X, symmetric=True), ValueError, "symmetric", "negatives"),
    ("symmetric, both", nce(negatives=X, in_batch=True, symmetric=True), ValueError, "symmetric", "negatives"),
    ("symmetric, not in-batch", nce(in_batch=False, symmetric=True), ValueError, "symmetric", "in_batch"),
    ("symmetric 1", nce(symmetric=1), TypeError, "symmetric", "1"),
    ("in_batch 'yes'", nce(in_batch="yes"), TypeError, "in_batch", "'yes'"),
    ("one query alone", nce(queries=X[0], positives=X[0]), ValueError, "positive", "negatives"),
    ("one row", nce(queries=X[:1], positives=X[:1]), ValueError, "positive", "negatives"),
    ("no candidates", nce(in_batch=False), ValueError, "positive", "negatives", "in_batch"),
    ("no negatives", nce(queries=X[0], positives=X[0], negatives=X[:0]), ValueError, "positive", "negatives"),
    *(
        (f"wrt {wrt!r}", partial(polyloss.value_and_grad, polyloss.bpr, wrt), error, "wrt", *words)
        for wrt, error, *words in (
            ("margin", ValueError, "'margin'", "'positive_scores'", "'negative_scores'"),
            (("negative_scores", "logits"), ValueError, "'logits'", "'positive_scores'", "'negative_scores'"),
            (0, TypeError),
        )
    ),
    ("wrt labels", gradient("softmax_cross_entropy", "targets"), ValueError, "wrt", "'targets'", "'logits'"),
    ("wrt booleans", gradient("contrastive", "similar", similar=S > 0), ValueError, "wrt", "'similar'", "'first'"),
    ("wrt a number", gradient("info_nce", "temperature"), ValueError, "wrt", "'temperature'", "'queries'"),
    ("wrt nothing", gradient("info_nce", ("queries", "negatives")), ValueError, "wrt", "'negatives'", "'positives'"),
    *(
        (f"{f.__name__} of {thing!r:.16}", partial(f, thing), TypeError, "loss", "polyloss", "functools.partial")
        for f in (polyloss.value_and_grad, polyloss.grad)
        for thing in (np.sum, polyloss.softmax, "bpr", partial(np.sum, axis=0), polyloss.grad(polyloss.bpr), None, [])
    ),
    *(
        (f"{f} {name} elsewhere", in_(STRICT, given(f), **{name: elsewhere(x)}), ValueError, first, name, *DEVICES)
        for f, first, name, x in (
            ("softmax_cross_entropy", "logits", "targets", Y),
            ("softmax_cross_entropy", "logits", "class_weights", T[0]),
            ("sigmoid_cross_entropy", "logits", "where", T > 0),
            ("bpr", "positive_scores", "weights", V),
            ("info_nce", "queries", "negatives", NEGATIVES),
            ("softmax", "x", "where", T > 0),
        )
    ),
    *(
        (f"{a} with {b}", bce(logits=In("torch", X, "", a), targets=In("torch", T, "", b)), ValueError, "targets", a, b)
        for a, b in (("cpu", "meta"), ("meta", "cpu"))
    ),
    ("shape in jit", jitted("sigmoid_cross_entropy", targets=T[0]), ValueError, "targets", "(4,)", "(3, 4)"),
    ("one-hot in jit", jitted("softmax_cross_entropy", targets=HOT), ValueError, "targets", "one-hot", "argmax"),
    (
        "wide label beside JAX",
        sce(logits=In("jax.numpy", X), targets=put(Y, 1, WIDE)),
        ValueError,
        "targets",
        str(WIDE),
    ),
]

ROWS = [
    *(
        pytest.param(in_(xp, call), ValueError, words, id=f"{name}, {xp}")
        for table, libraries in ((SHAPES, NAMESPACES), (VALUES, HOST), (HUGE, ("numpy", "torch", STRICT)))
        for name, call, *words in table
        for xp in libraries
    ),
    *(pytest.param(call, TypeError, words, id=name) for name, call, *words in TYPES),
    *(pytest.param(call, error, words, id=name) for name, call, error, *words in OPTIONS),
]


@pytest.mark.parametrize(("call", "error", "words"), ROWS)
def test_a_message_names_the_argument_what_was_expected_and_what_came(call, error, words):
    arguments = {name: made(x) for name, x in call.keywords.items()}
    with pytest.raises(error) as caught:
        call(**arguments)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@pytest.mark.parametrize(("call", "error", "words"), ROWS)
def test_a_failing_call_leaves_its_inputs_untouched(call, error, words):
    arguments = {name: made(x) for name, x in call.keywords.items()}
    # What pickle would store is all there is to an array, in every library.
    before = {name: pickle.dumps(x) for name, x in arguments.items()}
    with contextlib.suppress(Exception):  # whether it is the right one, the test above asks
        call(**arguments)
    assert {name: pickle.dumps(x) for name, x in arguments.items()} == before


@pytest.mark.parametrize(("a", "b"), MIXED)
def test_the_advice_for_two_libraries_names_a_function_that_exists(a, b):
    with pytest.raises(TypeError) as caught:
        sce()(logits=In(a, X).array(), targets=In(b, Y).array())
    module, function = re.search(r"([\w.]+)\.(\w+)\((?:logits|targets)\)", str(caught.value)).groups()
    assert hasattr(importlib.import_module(module), function), str(caught.value)


ARRAYS = {
    "weights": np.asarray(2.0),
    "where": np.asarray(True),
    "denominator": np.asarray(2.0),
    "pos_weight": np.asarray(2.0),
    "class_weights": np.ones(4),
    "class_mask": np.ones(4, bool),
    "negatives": NEGATIVES,
    "temperature": np.asarray(0.5),
    "candidate_mask": np.asarray(True),
}


@pytest.mark.parametrize(
    ("function", "name"),
    [(f, n) for f in LOSSES for n in inspect.signature(getattr(polyloss, f)).parameters if n in ARRAYS | CALLS[f]],
)
def test_whichever_argument_is_of_another_library_is_named(function, name):
    numbers = (ARRAYS | CALLS[function])[name]
    with pytest.raises(TypeError, match=rf"\b{name}\b.*convert one of them first"):
        given(function, **{name: In(STRICT, numbers).array()})()
