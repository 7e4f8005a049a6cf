"""The kernels on torch's tensors: layouts that NumPy has not, and the backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from layouts import (
    HALVES,
    INF,
    NAN,
    agree,
    agree_all,
    binary_terms,
    generic,
    results,
)

import polyloss
from polyloss import dispatch

TORCH_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda x: x.clone(),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "channels last": lambda x: x.clone().contiguous(memory_format=_channels_last()),
    "every second": lambda x: x.repeat_interleave(2, 0).repeat_interleave(2, 3)[::2, :, :, ::2],
    "every second class": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "with an offset": lambda x: x.new_ones(5, *x.shape).copy_(x)[3],
    "negative": lambda x: (-x).clone()._neg_view(),
}


def _channels_last() -> Any:
    import torch

    return torch.channels_last


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("float16", marks=HALVES), "bfloat16"])
@pytest.mark.parametrize("classes", [3, 40])
def test_tensors_of_any_layout(classes: int, dtype: str, ran: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(3, classes, 5, 7, generator=generator)).to(getattr(torch, dtype))
    y = torch.randint(0, classes, (3, 5, 7), generator=generator)
    t = torch.rand(x.shape, generator=generator).to(x.dtype)
    negative = torch.randn(x.shape, generator=generator).to(x.dtype)
    for loss, other, options in (
        (polyloss.softmax_cross_entropy, y, {"axis": 1}),
        (polyloss.sigmoid_cross_entropy, t, {}),
        (polyloss.bpr, negative, {}),
    ):
        expected = generic(loss, x, other, **options)
        k = classes if loss is polyloss.softmax_cross_entropy else 1
        larger = binary_terms(x, t) if loss is polyloss.sigmoid_cross_entropy else 0.0
        for name, lay_out in TORCH_LAYOUTS.items():
            given, before = lay_out(x), x.clone()
            second = other if other.ndim == 3 else lay_out(other)
            ran.clear()
            got = results(loss, given, second, **options)
            if name != "negative":
                assert len(ran) == 2, name
            agree_all(got, expected, k, (loss.__name__, name), larger=larger)
            assert torch.equal(given.resolve_neg(), before)
            backward = []
            for reduction in ("mean", "none"):
                leaf = lay_out(x).requires_grad_()
                value = loss(leaf, second, reduction=reduction, **options)
                value.sum().backward()
                backward += [value, leaf.grad]
            agree_all(backward, expected, k, (loss.__name__, name, "backward"), larger=larger)


@pytest.mark.parametrize("classes", [3, 40])
def test_expanded_tensors(classes: int, ran: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for small in itertools.product([False, True], repeat=4):
        shape = [3, classes, 5, 7]
        x = torch.randn([1 if one else n for one, n in zip(small, shape)], generator=generator).expand(shape)
        y = torch.randint(0, classes, (1, 5, 1), generator=generator).expand(3, 5, 7)
        expected = generic(polyloss.softmax_cross_entropy, x.contiguous(), y.contiguous(), axis=1)
        ran.clear()
        agree_all(results(polyloss.softmax_cross_entropy, x, y, axis=1), expected, classes, small)
        assert len(ran) == 2
        t = torch.rand(7, generator=generator).expand(shape)
        expected = generic(polyloss.sigmoid_cross_entropy, x.contiguous(), t.contiguous())
        agree_all(results(polyloss.sigmoid_cross_entropy, x, t), expected, 1, small, larger=binary_terms(x, t))


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("argument", ["weights", "pos_weight", "targets", "class_weights"])
def test_negative_views_of_torch_are_read_with_their_sign(argument: str, contiguous: bool) -> None:
    """The imaginary part of a conjugate: its memory holds the numbers with the other sign."""
    torch = pytest.importorskip("torch")
    numbers = torch.linspace(0.1, 0.9, 6)
    view = torch.complex(torch.zeros(6), -numbers).conj().imag
    if contiguous:  # as that of a single number is, and the copy of a copy
        view = numbers.neg()._neg_view()
    assert view.is_neg() and torch.equal(view, numbers) and view.is_contiguous() == contiguous
    x = torch.linspace(-2, 2, 36).reshape(6, 6)
    if argument == "class_weights":
        calls: list[Any] = [
            (polyloss.softmax_cross_entropy, (x, torch.arange(6)), {argument: view}, {argument: numbers})
        ]
    elif argument == "targets":
        calls = [(polyloss.sigmoid_cross_entropy, (x[0],), {argument: view}, {argument: numbers})]
    else:
        calls = [(polyloss.sigmoid_cross_entropy, (x, x * 0 + 1), {argument: view}, {argument: numbers})]
        if argument == "weights":
            calls.append((polyloss.softmax_cross_entropy, (x, torch.arange(6)), {argument: view}, {argument: numbers}))
    for loss, arrays, given, plain in calls:
        agree_all(results(loss, *arrays, **given), generic(loss, *arrays, **plain), 6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("small", [True, False])
def test_torchs_backward_pass_with_weights_masks_and_any_cotangent(
    small: bool, classes: int, reduction: str, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    if not small:
        monkeypatch.setattr("polyloss.backends.torch.SMALL", 0)
    kernels = 1 if small and reduction == "mean" else 2  # the gradient of small predictions comes with the value
    generator = torch.Generator().manual_seed(0)
    x, keep = torch.randn(9, 13, classes, generator=generator), torch.rand(9, 13, generator=generator) < 0.7
    y, w = torch.randint(0, classes, (9, 13), generator=generator), torch.rand(9, 13, generator=generator) + 0.5
    t = torch.rand(x.shape, generator=generator)
    x[~keep] = NAN
    y[~keep] = -100
    for loss, targets, mask in (
        (polyloss.softmax_cross_entropy, y, keep),
        (polyloss.sigmoid_cross_entropy, t, keep),
    ):
        options = {"weights": w, "where": mask, "reduction": reduction}
        found = []
        for formula in (False, True):
            for cotangent in (
                torch.rand((), generator=torch.Generator().manual_seed(1)) + 1,
                "varied",
                "infinite where masked",
            ):
                leaf = x.clone().requires_grad_()
                ran.clear()
                if formula:
                    with dispatch.generic():
                        value = loss(leaf, targets, **options)
                else:
                    value = loss(leaf, targets, **options)
                if isinstance(cotangent, str):
                    if reduction == "mean":
                        continue
                    c = torch.rand(value.shape, generator=torch.Generator().manual_seed(2))
                    if cotangent.startswith("infinite"):
                        c[~keep] = INF
                    cotangent = c
                value.backward(cotangent.expand(value.shape))
                assert len(ran) == (0 if formula else kernels)
                found.append(leaf.grad.numpy())
                assert not found[-1][~keep.numpy()].any()
        half = len(found) // 2
        for one, two in zip(found[:half], found[half:], strict=True):
            agree(one, two, classes, larger=6.0 * (loss is not polyloss.softmax_cross_entropy), note=loss.__name__)


@pytest.mark.parametrize("name", ["denominator", "weights"])
def test_a_tensor_of_a_subclass_beside_plain_ones_is_left_to_the_formula(name: str, ran: list[Any]) -> None:
    """Nobody knows what its memory holds, and its number may not be there."""
    torch = pytest.importorskip("torch")

    class Distributed(torch.Tensor):  # type: ignore[misc, name-defined]
        def _fails(self) -> Any:
            raise AssertionError("its number, or its memory, was asked for")

        __float__ = data_ptr = _fails

    x, t = torch.linspace(-3, 3, 6), torch.linspace(0, 1, 6)
    given = torch.tensor(3.0) if name == "denominator" else torch.linspace(1, 2, 6)
    both = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
    with dispatch.generic():
        expected = both(x, t, **{name: given})
    got = both(x, t, **{name: given.as_subclass(Distributed)})
    assert not ran
    for one, two in zip(got, expected):
        torch.testing.assert_close(one.as_subclass(torch.Tensor), two)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("rows", [6, 4000])
def test_a_batch_of_cotangents_is_a_loop_over_them(rows: int, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 10, generator=generator, requires_grad=True)
    y = torch.randint(0, 10, (rows,), generator=generator)
    value = polyloss.softmax_cross_entropy(x, y, reduction=reduction)
    cotangents = torch.randn(3, *value.shape, generator=generator)
    (together,) = torch.autograd.grad(value, x, cotangents, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(value, x, one, retain_graph=True)[0] for one in cotangents]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-8)


def test_a_tensor_between_multiples_of_its_size_takes_no_kernel(ran: list[Any]) -> None:
    """A GPU cannot read it, and a processor need not."""
    torch = pytest.importorskip("torch")
    y = torch.tensor([2, 0, 1])
    aligned = torch.randn(3, 4)
    odd = torch.frombuffer(bytearray(4 * 12 + 1), dtype=torch.float32, offset=1).view(3, 4).copy_(aligned)
    assert odd.data_ptr() % 4 and odd.is_contiguous()
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    value, gradient = both(odd, y)
    assert not ran
    expected, slope = both(aligned, y)
    assert ran
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
