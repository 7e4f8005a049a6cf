"""torch's autograd rule on the kernels for CUDA memory: its CPU tensors, said to be on a device.

Whoever looks at a number of a tensor would wait for the device, and fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from layouts import agree_all, generic, to_numpy

import polyloss
import polyloss.dispatch
from polyloss.backends.cuda import compiled, simulator

torch = pytest.importorskip("torch")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    from polyloss.backends.torch import Torch

    keys: list[Any] = []
    call = compiled.Kernel.__call__

    def remember(self: Any, *arguments: Any) -> None:
        keys.append(self.key)
        call(self, *arguments)

    with simulator.allow() as allow:

        def address(self: Any, x: Any) -> int:
            bits = x.detach().view(torch.int16) if x.dtype is torch.bfloat16 else x.detach()
            allow(bits.numpy(), True)
            return int(x.data_ptr())

        def stalls(*args: Any) -> Any:
            raise AssertionError("the device would have to be waited for")

        monkeypatch.setattr(compiled.Kernel, "__call__", remember)
        monkeypatch.setattr(Torch, "memory", lambda self, x: "cuda")
        monkeypatch.setattr(Torch, "queue", lambda self, x: (0, 0))
        monkeypatch.setattr(Torch, "address", address)
        for name in ("__float__", "__bool__", "__int__", "__index__", "item", "tolist"):
            monkeypatch.setattr(torch.Tensor, name, stalls)
        yield keys


def _case(dtype: Any = None, rows: int = 5, classes: int = 40) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(rows, classes, generator=generator)
    return x.to(dtype or torch.float32), torch.randint(0, classes, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_value_and_grad(dtype: str, launched: list[Any]) -> None:
    x, y = _case(getattr(torch, dtype))
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    got = [*both(x, y), *both(x, y, reduction="none")]
    assert launched
    agree_all([to_numpy(a) for a in got], generic(polyloss.softmax_cross_entropy, x, y), 40)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}, {"reduction": "sum"}, {"label_smoothing": 0.1}], ids=str)
def test_backward(options: dict[str, Any], small: bool, launched: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Small predictions have their gradient with the value; of large ones the statistics are kept."""
    import polyloss.backends.torch as rule

    if not small:
        monkeypatch.setattr(rule, "SMALL", 0)
    x, y = _case()
    x.requires_grad_()
    scale = torch.tensor(2.5)
    (scale * polyloss.softmax_cross_entropy(x, y, **options)).backward()
    assert launched
    other = x.detach().clone().requires_grad_()
    with polyloss.dispatch.generic():
        (scale * polyloss.softmax_cross_entropy(other, y, **options)).backward()
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(other.grad), rtol=1e-5, atol=1e-9)


def test_items_take_their_cotangents(launched: list[Any]) -> None:
    x, y = _case()
    x.requires_grad_()
    cotangent = torch.linspace(0, 2, len(y))
    polyloss.softmax_cross_entropy(x, y, reduction="none").backward(cotangent)
    assert [key[0] for key in launched] == ["rows", "rows"]
    other = x.detach().clone().requires_grad_()
    with polyloss.dispatch.generic():
        polyloss.softmax_cross_entropy(other, y, reduction="none").backward(cotangent)
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(other.grad), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}], ids=str)
def test_the_gradient_is_differentiable_again(options: dict[str, Any], launched: list[Any]) -> None:
    x, y = _case(torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(polyloss.softmax_cross_entropy(x, y, **options), x, create_graph=True)
    assert launched
    gradient.square().sum().backward()
    other = x.detach().clone().requires_grad_()
    with polyloss.dispatch.generic():
        (g,) = torch.autograd.grad(polyloss.softmax_cross_entropy(other, y, **options), other, create_graph=True)
        g.square().sum().backward()
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(other.grad), rtol=1e-10, atol=1e-15)


def test_a_call_like_an_earlier_one_is_replayed(launched: list[Any]) -> None:
    x, y = _case(classes=41)
    first = polyloss.softmax_cross_entropy(x, y)
    launched.clear()
    np.testing.assert_array_equal(to_numpy(polyloss.softmax_cross_entropy(x, y)), to_numpy(first))
    assert len(launched) == 1


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"ignore_index": 3}], ids=str)
def test_where_the_kernel_of_the_gradient_cannot_be_made_the_formula_computes_it(
    options: dict[str, Any], launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import polyloss.backends.torch as rule

    compiled.kernel.cache_clear()
    monkeypatch.setattr(rule, "SMALL", 0)
    monkeypatch.setattr(compiled, "failures", {(("rows", "float32", "int64", "few", False, True), 0): "no"})
    x, y = _case()
    given = [x.requires_grad_(), x.detach().clone().requires_grad_()]
    items = polyloss.softmax_cross_entropy(given[0], y, **options)
    assert launched
    with polyloss.dispatch.generic():
        others = polyloss.softmax_cross_entropy(given[1], y, **options)
    cotangent = torch.rand(items.shape)
    for loss in (items, others):
        loss.backward(cotangent)
    compiled.kernel.cache_clear()
    np.testing.assert_allclose(to_numpy(given[0].grad), to_numpy(given[1].grad), rtol=1e-5, atol=1e-9)
