"""Every loss under every transformation of every framework; the table is `polyloss.conformance.interchange`."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import polyloss
from polyloss.conformance import interchange
from polyloss.conformance.interchange import FRAMEWORKS, PUBLIC, Transformation, applies, check, check_apart, table
from polyloss.conformance.losses import LOSSES
from polyloss.conformance.routes import installed

PAGE = Path(__file__).parent.parent / "docs" / "transformations.md"

# What users of a framework do to a function. A name stands for the rows of the table that contain it.
EXPECTED = {
    "torch": (
        "backward, upstream gradient, is_grads_batched, retain_graph, double backward, gradgradcheck, func.jvp, "
        "dual_level, func.grad, func.vjp, func.vmap, func.vmap of func.grad, func.jacrev, func.jacfwd, "
        "func.hessian, nested, compile(fullgraph=True), compile of value_and_grad, sizes that change, autocast, "
        "bfloat16, autocast, float16, export, subclass, without memory, needs no gradient, no_grad, "
        "inference_mode, meta, fake, expanded, channels-last, nn.Parameter, pickled, DataLoader, "
        "DistributedDataParallel, checkpoint, value_and_grad"
    ),
    "jax": (
        "jit, grad, value_and_grad, upstream gradient, jvp, jacfwd, jacrev, hessian, nested, vmap, weights and labels, "
        "checkpoint, scan, pmap, shard_map, sharded, donated, x64, bfloat16, eval_shape, checking_leaks, "
        "transfer_guard, linearize, pickled, polyloss.value_and_grad"
    ),
    "dask": (
        "compute, float32, one chunk, chunks of one number, chunks that differ, persist, synchronous, optimize, "
        "worker, delayed"
    ),
    "numpy": "call, value_and_grad, grad, float32, generic, pickled, read-only and strided, threads",
}

RUNNABLE = {framework: table(framework) for framework in FRAMEWORKS if framework in installed()}
ROWS = [(framework, row) for framework, rows in RUNNABLE.items() for row in rows.values()]


def cells() -> list[object]:
    return [
        pytest.param(framework, row, name, id=f"{framework}-{row.name}-{name}")
        for framework, row in ROWS
        if not row.processes
        for name in applies(row)
    ]


@pytest.mark.parametrize(("framework", "row", "name"), cells())
def test_a_loss_under_a_transformation_is_the_loss(framework: str, row: Transformation, name: str) -> None:
    check(framework, row, name)


@pytest.mark.parametrize(
    ("framework", "row"), [pytest.param(f, row, id=f"{f}-{row.name}") for f, row in ROWS if row.processes]
)
def test_losses_under_a_transformation_that_needs_its_own_processes(framework: str, row: Transformation) -> None:
    found = check_apart(framework, row)
    assert set(found) == set(applies(row))
    for name, failure in found.items():
        assert failure is None, f"{name}: {failure}"


def test_no_public_loss_is_missing() -> None:
    """A loss is what has a reduction."""
    public = {name: getattr(polyloss, name) for name in polyloss.__all__ if callable(getattr(polyloss, name))}
    losses = {name for name, function in public.items() if "reduction" in inspect.signature(function).parameters}
    assert losses == set(PUBLIC)
    for _, row in ROWS:
        run = {LOSSES[name].loss.__name__ for name in applies(row)}
        assert run | set(row.unless) == losses, row.name
        assert not run & set(row.unless)
        assert all(len(reason) > 10 for reason in row.unless.values())


def test_no_transformation_is_missing() -> None:
    assert set(EXPECTED) == set(FRAMEWORKS)
    for framework, rows in RUNNABLE.items():
        for part in EXPECTED[framework].split(", "):
            assert any(part in name for name in rows), f"{framework}: {part}"


def test_the_documented_table_is_the_one_that_is_run() -> None:
    if set(RUNNABLE) != set(FRAMEWORKS):
        pytest.skip("the table needs every framework")
    assert PAGE.read_text(encoding="utf-8") == interchange.page()


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_is_no_trivial_one(name: str) -> None:
    """Nothing in it is zero or infinite everywhere, so that an array of zeros cannot pass."""
    reference = interchange.reference(name, "float64")
    straight = LOSSES[name].loss is polyloss.pairwise_hinge
    for key in ("value", "items", "gradient", "pulled", "slope", "jacobian", "hessian", "curvature"):
        assert np.all(np.isfinite(reference[key]))
        tolerance = np.max(reference.tolerance(key, "float32", "float32"))
        assert (np.max(np.abs(reference[key])) > 100 * tolerance) == (
            not straight or key not in ("hessian", "curvature")
        )


@pytest.mark.parametrize("key", ["value", "gradient", "hessian"])
def test_a_cell_fails_if_its_array_is_off(key: str) -> None:
    """The upstream gradient dropped, a wrong sign, NaN, another shape or dtype."""
    expected = interchange.reference("bpr", "float64")[key]
    wrong = [2 * expected, -expected, expected + 1e-6, expected * np.nan, expected[None], expected.astype("f")]
    for array in (*wrong, None):
        rows, transformation = interchange.registry("float64")
        found = [] if array is None else [(key, array)]
        transformation("planted")(_yielding(found))
        with pytest.raises(AssertionError):
            check("numpy", rows["planted"], "bpr")


def _yielding(found: list[tuple[str, np.ndarray]]) -> interchange.Run:
    def run(*_: object) -> interchange.Found:
        """A planted fault."""
        return found

    return run
