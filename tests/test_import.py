"""Importing polyloss is cheap, loads no framework, and exposes exactly the public names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polyloss

HEAVY = ("numba", "torch", "jax", "cupy", "dask", "scipy", "sklearn", "matplotlib", "rich", "mpmath", "hypothesis")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_polyloss_loads_no_framework_and_no_numba() -> None:
    code = f"import sys, polyloss, polyloss.diagnostics; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_calling_on_numpy_arrays_loads_no_framework() -> None:
    code = (
        "import sys, numpy, polyloss; polyloss.bpr(numpy.ones(2), numpy.ones(2)); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    python(code)  # the first call on a new machine compiles a kernel
    assert python(code) == "[]"


def test_importing_polyloss_takes_at_most_a_fifth_of_a_second_more_than_numpy() -> None:
    code = "import time, numpy; start = time.perf_counter(); import polyloss; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(7)) < 0.2  # other work on the machine can only add


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(polyloss.__all__) == {
        *("sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"),
        *("sigmoid_cross_entropy", "softmax_cross_entropy", "pairwise_hinge", "bpr"),
        *("contrastive", "info_nce", "contrastive_from_distance", "binary_log_loss", "log_loss"),
        *("accuracy", "top_k_accuracy", "f1", "roc_auc", "average_precision", "ndcg", "brier", "calibration_error"),
        *("value_and_grad", "grad", "__version__"),
    }
    assert all(hasattr(polyloss, name) for name in polyloss.__all__)


def test_types_are_shipped() -> None:
    assert (Path(polyloss.__file__).parent / "py.typed").exists()
