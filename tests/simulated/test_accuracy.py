"""The kernels for CUDA memory stay within the budget, on the hard cases of `polyloss.conformance.grid`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from layouts import dtype_of
from simulated.device import launching, to_device, to_host

import polyloss
from polyloss.conformance import oracle
from polyloss.conformance.budget import Exact, spread, ulps
from polyloss.conformance.exact import LINES, ROWS, Case, shares
from polyloss.conformance.grid import GAPS, grid

DTYPES = ("float32", "float64", "float16", "bfloat16")
ON_KERNELS = ("softmax_cross_entropy", "sigmoid_cross_entropy", "bpr", "info_nce")
HARD = [
    (function, dtype, name)
    for function in ON_KERNELS
    for dtype in DTYPES
    for name in grid(function, dtype, "standard")
    if name != "batch"  # more rows than a simulator has time for
]


def _share(case: Case, items: np.ndarray, gradient: np.ndarray) -> float:
    return max(share.used for share in shares(case, "device", items, gradient))


def _stored(x: Any, case: Case) -> Any:
    """Floating numbers in the dtype of the case, which holds them; in a case those of 16 bits are float32."""
    return x.astype(dtype_of(case.dtype)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def _run(case: Case) -> tuple[np.ndarray, np.ndarray]:
    name = list(inspect.signature(case.loss).parameters)[case.wrt]
    options = {key: to_device(_stored(x, case)) for key, x in case.options.items()}
    with launching() as device:
        both = polyloss.value_and_grad(case.loss, name)
        items, gradient = both(*(to_device(_stored(x, case)) for x in case.arrays), reduction="none", **options)
        assert device.launched, "takes no kernel"
    return to_host(items), to_host(gradient)


@pytest.mark.parametrize(("function", "dtype", "name"), HARD)
def test_values_and_gradients_are_within_the_budget(function: str, dtype: str, name: str) -> None:
    case = grid(function, dtype, "standard")[name]
    assert _share(case, *_run(case)) <= 1


@pytest.mark.parametrize(("dtype", "name"), [("float32", "hard of 1000"), ("float64", "z of 33")])
def test_so_are_they_one_after_the_other_from_the_row_statistics(dtype: str, name: str) -> None:
    case = grid("softmax_cross_entropy", dtype, "standard")[name]
    with launching():
        work = _work(case)
        items, kept = work.kernel.value(work, residuals=True)
        gradient = work.kernel.vjp(work, kept)[0]
    assert _share(case, to_host(items), to_host(gradient)) <= 1


def _work(case: Case) -> Any:
    from simulated.device import LIBRARY

    from polyloss.application import Application
    from polyloss.primitives import LseCrossEntropy

    x, y = map(to_device, case.arrays)
    work = Application(LseCrossEntropy(0.0, case.options.get("z_loss", 0.0)), LIBRARY, x.dtype, (x, y, None, None), 1)
    return work.fused((True, False))


@pytest.mark.parametrize("lead", [0.0, 20.0])
def test_a_long_row_on_its_own_kernel(lead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, which is exact beside float32."""
    from polyloss.backends.cuda import lse

    monkeypatch.setattr(lse, "SPLIT", 0)
    k = 60_001
    x = np.random.default_rng(0).standard_normal((1, k)).astype(np.float32)
    x[0, 7] = np.max(x) + np.float32(lead)
    exps = np.exp(x.astype(np.float64) - x[0, 7])
    others = np.sum(exps) - 1 if lead == 0 else np.sum(np.delete(exps, 7))
    with launching():
        both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        value, gradient = map(to_host, both(to_device(x), to_device(np.array([7]))))
    budget = 6 + spread(x)[0] + np.log2(k)
    assert abs(float(value) - np.log1p(others)) <= budget * np.spacing(value)
    slopes = exps[0] / (1 + others)
    slopes[7] = -others / (1 + others)
    own = budget + (x[0, 7] - x[0].astype(np.float64))
    assert np.all(np.abs(gradient[0] - slopes) <= own * np.spacing(np.abs(gradient[0])))


def test_sums_of_many_equal_terms_keep_their_digits() -> None:
    """One thread adds 256 of them, each rounded the same way: 60 ulp are lost without compensation."""
    k, gap = 1 << 16, np.float32(0.025303826)
    x = np.full((1, k), -gap)
    x[0, 0] = 0
    e = np.exp(-np.float64(gap))
    exact = e / (1 + (k - 1) * e)
    with launching():
        both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        _, gradient = both(to_device(x), to_device(np.array([0])), class_mask=to_device(np.ones(k, bool)))
    assert np.abs(to_host(gradient)[0, 1] - exact) / np.spacing(np.float32(exact)) <= 6 + gap + np.log2(k)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"])
def test_transforms_are_within_the_budget(name: str, dtype: str) -> None:
    of = oracle.FORMULAS[name][0]
    floor = float(np.finfo(dtype).smallest_subnormal)
    gaps = np.array([*GAPS, 1e-30, 1e-7])
    if name in ("sigmoid", "log_sigmoid", "softplus"):
        x = np.concatenate([gaps, -gaps]).astype(dtype)
        exact, budget = Exact([of(v) for v in x.tolist()]), np.full(x.shape, 6.0)
        larger = None
    else:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((len(gaps), 40)).astype(dtype)
        x[:, 7] += gaps.astype(dtype)
        exact = Exact([of(row) for row in x.astype(np.float64).tolist()])
        budget = 6 + (x.max(-1, keepdims=True) - x.astype(np.float64)) + spread(x)[:, None] + np.log2(40)
        budget = budget[:, 0] * 0 + 6 + spread(x) + np.log2(40) if name == "logsumexp" else budget
        larger = np.max(np.abs(x), axis=-1) if name == "logsumexp" else None
    with launching() as device:
        got = to_host(getattr(polyloss, name)(to_device(x)))
        assert device.launched, "takes no kernel"
    assert np.all(ulps(got, exact, larger, dtype, floor=40 * floor) <= budget)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*LINES, *ROWS])
def test_so_are_those_of_16_bits(name: str, dtype: str) -> None:
    for case in grid(name, dtype, "standard").values():
        with launching() as device:
            got = to_host(getattr(polyloss, name)(to_device(_stored(case.arrays[0], case))))
            assert device.launched, "takes no kernel"
        assert shares(case, "device", got, None)[0].used <= 1
