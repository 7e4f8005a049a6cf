"""Kernels plug in by the memory of the arrays, rules by their library, and each may decline."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import dispatch
from polyloss.backends import Unavailable
from polyloss.backends.cpu import compiled
from polyloss.conformance.losses import LOSSES
from polyloss.primitives import LseCrossEntropy
from polyloss.replay import Replays


class Counting:
    """Kernels that take the row primitive for float32 and count what they are asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def take(self, work: Any) -> Any:
        if not isinstance(work.primitive, LseCrossEntropy) or "float32" not in str(work.arrays[0].dtype):
            return None
        return CountingKernel(self.calls)


class CountingKernel:
    """The formula, in the form of a kernel."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def value(self, work: Any, *, residuals: bool = False) -> Any:
        self.calls.append("value, and residuals" if residuals else "value")
        items, kept = work.primitive.forward(work.library, *work.arrays)
        return (items if work.divisor is None else float(work.library.total(items)) / work.divisor), kept

    def vjp(self, work: Any, residuals: Any) -> Any:
        self.calls.append("vjp")
        assert residuals
        return self._gradients(work, residuals)

    def value_and_vjp(self, work: Any) -> Any:
        self.calls.append("value and vjp")
        items, residuals = work.primitive.forward(work.library, *work.arrays)
        return float(work.library.total(items)) / work.divisor, self._gradients(work, residuals)

    def _gradients(self, work: Any, residuals: Any) -> Any:
        x, targets = work.arrays[:2]
        cotangent = work.library.xp.full_like(x[:, 0], work.factor)
        return work.primitive.vjp(work.library, cotangent, (True, False, False, False), residuals, x, targets)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    kernels = Counting()
    monkeypatch.setattr(dispatch, "kernels", lambda memory: kernels if memory == "host" else None)
    monkeypatch.setattr(Replays, "call", lambda self, args, kwargs: self._once(*args, **kwargs)[1])  # as if the first
    return kernels


X, Y = np.zeros((2, 3), np.float32), np.array([0, 2])


def test_a_kernel_serves_value_and_gradient_on_numpy(counting: Counting) -> None:
    polyloss.softmax_cross_entropy(X, Y)
    assert counting.calls == ["value"]
    polyloss.value_and_grad(polyloss.softmax_cross_entropy)(X, Y)
    assert counting.calls == ["value", "value and vjp"]


def test_the_same_kernel_serves_torch_and_the_formula_its_second_derivative(counting: Counting) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    (gradient,) = torch.autograd.grad(polyloss.softmax_cross_entropy(x, torch.tensor(Y)), x, create_graph=True)
    assert counting.calls == ["value and vjp"]  # which could not be differentiated again
    gradient.square().sum().backward()
    assert x.grad is not None
    counting.calls.clear()
    large = torch.zeros(2, importlib.import_module("polyloss.backends.torch").SMALL, requires_grad=True)
    polyloss.softmax_cross_entropy(large, torch.tensor(Y)).backward()
    assert counting.calls == ["value, and residuals", "vjp"]


def test_what_a_kernel_declines_takes_the_formula(counting: Counting) -> None:
    polyloss.softmax_cross_entropy(X.astype(np.float64), Y)
    polyloss.bpr(X, X)
    assert counting.calls == []


def test_dasks_blocks_ask_for_their_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    da = pytest.importorskip("dask.array")
    kernels = Counting()
    monkeypatch.setattr(dispatch, "kernels", lambda memory: kernels)
    loss = polyloss.softmax_cross_entropy(da.from_array(X, chunks=(1, 3)), da.from_array(Y, chunks=1))
    assert kernels.calls == []
    np.testing.assert_allclose(loss.compute(), np.log(3), rtol=1e-6)
    assert kernels.calls == ["value", "value"]


def test_the_generic_path_can_be_forced(counting: Counting) -> None:
    with dispatch.generic():
        polyloss.softmax_cross_entropy(X, Y)
    assert counting.calls == []
    polyloss.softmax_cross_entropy(X, Y)
    assert counting.calls == ["value"]


def test_a_subclass_is_known_by_its_base() -> None:
    class Mine(np.ndarray):
        pass

    assert dispatch.library_of(np.zeros(2).view(Mine)) is dispatch.library_of(np.zeros(2))
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert dispatch.library_of(parameter) is dispatch.library_of(torch.zeros(2))
    polyloss.bpr(parameter, torch.ones(2)).backward()
    assert parameter.grad is not None


def test_a_scalar_of_numpy_stays_a_number_whatever_was_asked_before() -> None:
    strict = pytest.importorskip("array_api_strict")
    dispatch.library_of(np.float32(1))
    loss = polyloss.bpr(np.float32(1), strict.asarray(0.0, dtype=strict.float32))
    assert type(loss) is type(strict.asarray(0.0))


def test_what_is_no_array_is_no_array() -> None:
    for x in (np.dtype("f4"), object(), np.random.default_rng(0), "abc", {1: 2}):
        with pytest.raises(TypeError):
            dispatch.library_of(x)


@pytest.mark.parametrize("made", [0, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_whole_where_a_kernel_cannot_be_made_after_all(
    name: str, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the second of two that the loss asks for."""
    row, kernel = LOSSES[name], compiled.kernel
    arguments = row.arguments(0, 5) | row.options
    left = 0

    def sometimes(*key: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("not here")
        return kernel(*key)

    calls = [row.loss, polyloss.value_and_grad(row.loss), partial(row.loss, reduction="none")]
    with dispatch.generic():
        expected = [call(**arguments) for call in calls]
    monkeypatch.setattr(compiled, "kernel", sometimes)
    for call, numbers in zip(calls, expected):
        left = made
        found = call(**arguments)
        for one, two in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, numbers))):
            np.testing.assert_allclose(one, two, rtol=1e-12)  # a kernel rounds otherwise than the formula
