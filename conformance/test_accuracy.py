"""Every route to a value and a gradient stays within the budget, on the hard cases of `accuracy`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from polyloss.conformance.accuracy import cases, jacobian_shares, share, transform_shares
from polyloss.conformance.routes import ROUTES, installed
from polyloss.dispatch import generic

COMPILED = ("-10-", "-1000-", "-128000-")  # torch.compile takes seconds a shape: not every size


@pytest.mark.parametrize("name", cases)
def test_values_and_gradients_are_within_the_budget(name: str, record_property: Callable[[str, object], None]) -> None:
    case = cases[name]()
    used = {}
    for route, (library, run) in ROUTES.items():
        sized = name.startswith(("softmax", "info_nce", "log_loss"))
        if library not in installed() or (route == "torch compile" and sized and not any(k in name for k in COMPILED)):
            continue
        items, gradient = run(case.loss, case.arrays, case.options, case.wrt)
        used[route] = share(case, library, items, gradient)
    record_property("budget", {(name.split("-")[0], route): pair for route, pair in used.items()})
    assert all(max(pair) <= 1 for pair in used.values()), used


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", ["kernel", "generic"])
@pytest.mark.parametrize("library", installed())
def test_transforms_are_within_the_budget(library: str, path: str, dtype: str) -> None:
    with generic() if path == "generic" else contextlib.nullcontext():
        used = transform_shares(library, dtype)
    assert all(part <= 1 for part in used.values()), used


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_every_entry_of_a_transforms_jacobian_is_within_the_budget(library: str, dtype: str) -> None:
    pytest.importorskip(library)
    used = jacobian_shares(library, dtype)
    assert all(part <= 1 for part in used.values()), used
