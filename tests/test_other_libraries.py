"""README's table of equivalents: each call of another library against the polyloss call that equals it.

The rows, with a random case of each, are in `peers`; values and gradients are compared over many cases, and README's
own code is run. Whether polyloss is right to the last digit is the business of `polyloss.conformance`: here the two
agree to the accuracy that the other one has. What the other one gets wrong is in `test_faults_of_others`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import TABLE, Draw, Pair, Row, by_jax, by_torch, modules

import polyloss

CASES = {"float64": 1000, "float32": 200}  # a formula is wrong in both, a route for one of them in every case

# Theirs subtracts numbers of size `scale`, rounded to eps / 2 each (lse - x_y, p - 1, 1 - similarity), takes
# exponentials of them, and sums up to 200 terms: at worst 11.3 eps times the scale over 1,000 cases a row. The limit is
# 7e-15 of the scale in float64 and 4e-6 in float32, while a mistake in a formula shows in the first digits.
ROUNDINGS = 32

Results = tuple[Any, Any]  # a value, and half the gradients

in_both_precisions = pytest.mark.parametrize("dtype", ["float64", "float32"])


def agree(theirs: Any, ours: Any, scale: float, what: str) -> None:
    expected, found = np.asarray(theirs), np.asarray(ours)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    error, limit = np.max(np.abs(expected - found)), ROUNDINGS * np.finfo(found.dtype).eps * scale
    assert error <= limit, f"{what}: {expected}, ours {found}; off by {error} where {limit} is allowed"


def agree_all(pair: Pair, case: int, theirs: Results, routes: dict[str, Results]) -> None:
    value, gradients = theirs
    for route, (found, slopes) in routes.items():
        agree(value, found, pair.scale, f"case {case}, value by {route}")
        for name, gradient, slope in zip(pair.inputs, gradients, slopes, strict=True):
            agree(gradient, slope, pair.scale, f"case {case}, gradient in {name} by {route}")


def by_formula(pair: Pair, *arrays: Any) -> Results:
    named = dict(zip((*pair.inputs, *pair.others), arrays, strict=True))
    value, gradients = polyloss.value_and_grad(pair.ours, wrt=tuple(pair.inputs))(**named)
    return pair.factor * value, [0.5 * pair.factor * g for g in gradients]


def in_numpy(pair: Pair) -> dict[str, Results]:
    """Where theirs is one call of ours, and not an expression of its own."""
    if not isinstance(pair.ours, partial):
        return {}
    return {"value_and_grad on NumPy": by_formula(pair, *pair.inputs.values(), *pair.others.values())}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, torch's threads wait for each other for ten times as long as one thread takes alone."""
    (torch,) = modules("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@in_both_precisions
@pytest.mark.parametrize("row", TABLE["torch"].values(), ids=lambda row: row.__name__)
@pytest.mark.usefixtures("one_thread")
def test_value_and_gradients_equal_those_in_torch(row: Row, dtype: str) -> None:
    (torch,) = modules("torch")
    for case in range(CASES[dtype]):
        pair = row(Draw(np.random.default_rng(case), dtype, torch.asarray), torch)
        arrays = {name: torch.asarray(x) for name, x in pair.inputs.items()}
        theirs = by_torch(pair.theirs, arrays)
        assert str(theirs[0].dtype).endswith(dtype)
        routes = {"autograd": by_torch(pair.ours_in_order, arrays)}
        if isinstance(pair.ours, partial):
            numpys = row(Draw(np.random.default_rng(case), dtype, np.asarray), torch)  # the same numbers
            routes |= {"value_and_grad": by_formula(pair, *arrays.values()), **in_numpy(numpys)}
        agree_all(pair, case, theirs, routes)


@in_both_precisions
@pytest.mark.parametrize("row", TABLE["optax"].values(), ids=lambda row: row.__name__)
def test_value_and_gradients_equal_those_of_optax(row: Row, dtype: str) -> None:
    optax, jax = modules("optax", "jax")
    compiled: dict[Any, dict[str, Callable[..., Results]]] = {}
    with jax.enable_x64(dtype == "float64"):  # without it JAX turns float64 into float32
        for case in range(CASES[dtype]):
            pair = row(Draw(np.random.default_rng(case), dtype, np.asarray), optax)
            arrays = (*pair.inputs.values(), *pair.others.values())
            if pair.key not in compiled:
                compiled[pair.key] = _compiled(pair)
            theirs, *_ = results = {name: route(*arrays) for name, route in compiled[pair.key].items()}
            assert results[theirs][0].dtype == dtype
            agree_all(pair, case, results.pop(theirs), results | in_numpy(pair))


def _compiled(pair: Pair) -> dict[str, Callable[..., Results]]:
    """Theirs, and ours by each route, as functions of the arrays alone."""
    (jax,) = modules("jax")
    routes = {
        "theirs": lambda *arrays: by_jax(pair.theirs, arrays, len(pair.inputs)),
        "jax.grad": lambda *arrays: by_jax(pair.ours_in_order, arrays, len(pair.inputs)),
    }
    if isinstance(pair.ours, partial):
        routes["value_and_grad"] = partial(by_formula, pair)
    return {name: jax.jit(route) for name, route in routes.items()}


@in_both_precisions
@pytest.mark.parametrize("row", TABLE["sklearn.metrics"].values(), ids=lambda row: row.__name__)
def test_values_equal_those_of_scikit_learn(row: Row, dtype: str) -> None:
    (metrics,) = modules("sklearn.metrics")
    for case in range(CASES[dtype]):
        pair = row(Draw(np.random.default_rng(case), dtype, np.asarray), metrics)
        (p,) = pair.inputs.values()
        agree(np.asarray(pair.theirs(p), dtype), pair.ours(p), pair.scale, f"case {case}")


@in_both_precisions
def test_log_losses_clip_where_scikit_learn_does(dtype: str) -> None:
    """What comes of the clipping is too little to show among other items."""
    (metrics,) = modules("sklearn.metrics")
    sure, eps = np.eye(2, dtype=dtype), float(np.finfo(dtype).eps)
    assert polyloss.log_loss(sure, [0, 1], eps=eps) == pytest.approx(metrics.log_loss([0, 1], sure), rel=1e-6, abs=0)
    assert polyloss.binary_log_loss(sure[0], [1, 0], eps=eps) == pytest.approx(eps, rel=1e-6, abs=0)


# README's table.


def cells() -> dict[str, tuple[str, str]]:
    """Of each row by its first cell: their code, if it is code, and ours."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## Reproducing other libraries")
    rows = [
        line.strip("| ").split(" | ") for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")
    ]
    codes = [[re.search("`(.*?)`", cell) for cell in row] for row in rows[1:]]
    return {row[0]: tuple(code[1] if code else "" for code in pair) for row, pair in zip(rows[1:], codes, strict=True)}


ARRAYS = {"torch": "torch", "optax": "jax.numpy", "sklearn.metrics": "numpy"}


def test_the_table_in_the_readme_is_the_table_that_is_tested() -> None:
    assert [*cells()] == [cell for rows in TABLE.values() for cell in rows]


@pytest.mark.parametrize(
    ("peer", "cell"),
    [pytest.param(peer, cell, id=row.__name__) for peer, rows in TABLE.items() for cell, row in rows.items()],
)
def test_the_code_in_the_table_in_the_readme_is_true(peer: str, cell: str) -> None:
    """As it stands there: evaluated with both libraries' functions and the numbers of a case."""
    library, xp = modules(peer, ARRAYS[peer])
    functions = vars(library.nn.functional if peer == "torch" else library)
    their_code, our_code = cells()[cell]
    for case in range(20):
        draw = Draw(np.random.default_rng(case), "float32", xp.asarray, reductions=("mean",))
        pair = TABLE[peer][cell](draw, library)
        names = {name: xp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x for name, x in pair.names.items()}
        helpers = {"finfo": np.finfo, "eye": np.eye, "roll": np.roll}
        arrays = [xp.asarray(x) for x in (*pair.inputs.values(), *pair.others.values())]
        theirs = eval(their_code, {**functions, **names}) if their_code else pair.theirs(*arrays)
        found = eval(our_code, {**vars(polyloss), **helpers, **names})
        agree(np.asarray(theirs, "float32"), found, pair.scale, f"case {case}")
