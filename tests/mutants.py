"""What a mutant of polyloss must not pass; see ``mutate.py``. Few tests that ask much: mutmut names all that it runs.

NumPy shows the formulas and their gradients, by kernels and without, and torch what autodiff makes of the formulas. The
kernels are not mutated, so what asks for their digits alone is left out, and accuracy is asked in float32 alone.
"""

from __future__ import annotations

import importlib

import pytest
import test_errors

from polyloss.conformance.engine import cells, run
from polyloss.conformance.grid import VARIANTS

for name in ("cpu.host", "torch"):  # once, and not for each mutant
    importlib.import_module(f"polyloss.backends.{name}")

ASKED = {
    ("numpy", "generic"): ("*",),
    ("numpy", "kernel"): (
        "again",
        "differences",
        "invalid values",
        "layout",
        "limits",
        "mask",
        "no items",
        "reductions",
    ),
    ("torch", "generic"): ("accuracy", "autodiff", "curved", "derivatives", "derivatives in weights", "limits"),
}
NOT_HERE = ("dask", "jax", "JAX", "jit", "meta")


@pytest.mark.parametrize(("function", "library", "path"), [(name, *way) for name in VARIANTS for way in ASKED])
def test_conformance(function: str, library: str, path: str) -> None:
    for task in cells(library, loss=function, path=path, device="cpu", level="quick"):
        asked = task.check.name in ASKED[library, path] or "*" in ASKED[library, path]
        if asked and (task.check.name != "accuracy" or task.dtype == "float32"):
            cell = run(task, fail_fast=True)
            assert cell.status != "failed", "\n".join(map(str, cell.failures))


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_messages(kind: type[Exception]) -> None:
    for row in test_errors.ROWS:
        call, error, words = row.values
        if error is kind and not any(name in str(row.id) for name in NOT_HERE):
            test_errors.test_a_message_names_the_argument_what_was_expected_and_what_came(call, error, words)
