"""Every kernel that a call can launch is launched by one, and its numbers are the formula's in double precision.

By default a thirteenth of them, every day another one; see ``--kernels`` and ``--every-kernel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from simulated.device import LIBRARY, launching, to_device, to_host
from simulated.reaching import Call, call_of

import polyloss
from polyloss import dispatch
from polyloss.backends.cuda import compiled, lse
from polyloss.conformance.budget import Exact
from polyloss.conformance.exact import Case, shares

Numbers = list[Any]


def _asked(call: Call, *arrays: Any, **options: Any) -> Numbers:
    """The value and, if it is wanted, the gradient."""
    if call.gradient and not call.by_rule:
        return list(polyloss.value_and_grad(call.of)(*arrays, **options))
    return [call.of(*arrays, **options)]


def _on_device(call: Call, options: dict[str, Any], patch: pytest.MonkeyPatch) -> tuple[Numbers, list[Any]]:
    """What is computed on the device, and by which kernels."""
    launched: list[Any] = []
    slopes: Numbers = []
    real = compiled.Kernel.__call__

    def run(kernel: Any, work: Any, formula: Any) -> Any:  # as the rule of an autodiff
        value, kept = kernel.value(work, residuals=True)
        slopes.append(kernel.vjp(work, kept)[0])
        return value

    with launching(), patch.context() as here:
        here.setattr(compiled.Kernel, "__call__", lambda self, *a: (launched.append(self.key), real(self, *a))[1])
        if call.by_rule:
            here.setattr(LIBRARY, "run", run, raising=False)
        found = _asked(call, *map(to_device, call.arrays), **{name: to_device(x) for name, x in options.items()})
    return [to_host(x) for x in (*found, *slopes)], launched


def _expected(call: Call, options: dict[str, Any]) -> Numbers:
    """By the formula, in double precision; on the device, where a target out of range makes its item NaN."""

    def wide(x: Any) -> Any:
        floating = isinstance(x, np.ndarray) and x.dtype.kind not in "iub"
        return to_device(x.astype(np.float64) if floating else x)

    both = polyloss.value_and_grad(call.of) if call.gradient else lambda *a, **o: [call.of(*a, **o)]
    with launching(), dispatch.generic():
        found = both(*map(wide, call.arrays), **{name: wide(x) for name, x in options.items()})
    return [to_host(x) for x in found]


def _used(call: Call, found: Numbers, expected: Numbers) -> float:
    """The largest part of its budget that any number has used."""
    x = call.arrays[0]
    exact = [Exact.of(np.asarray(e)) for e in expected]
    case = Case(
        call.of.__name__,
        call.arrays,
        str(x.dtype),
        {},
        exact[0],
        exact[-1],
        np.broadcast_to(call.item_budget, exact[0].high.shape),
        np.broadcast_to(call.gradient_budget, exact[-1].high.shape) if call.gradient else np.zeros(()),
        2.0 * x.shape[-1],  # with weights of up to 2
        larger_item=call.larger_item,
        larger_gradient=call.larger,
    )
    return max(share.used for share in shares(case, "device", found[0], found[1] if call.gradient else None))


@pytest.fixture(autouse=True)
def _planned_anew() -> Iterator[None]:
    """The form of a row is remembered, and a call that reaches a kernel may change what it depends on."""
    plans = lse.shape_of, lse.slices_of
    for plan in plans:
        plan.cache_clear()
    yield
    for plan in plans:
        plan.cache_clear()


def test_its_numbers_are_the_formulas(launchable_key: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(launchable_key, monkeypatch)
    options = call.options if launchable_key[0] in ("transforms", "sums") else call.options | {"reduction": "none"}
    found, launched = _on_device(call, options, monkeypatch)
    assert launchable_key in call.launched
    assert launched == call.launched
    assert _used(call, found, _expected(call, options)) <= 1
