"""Kernels under torch.compile: custom operations that torch's own checker accepts, and code without them elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import dispatch
from polyloss.conformance.faults import FAULTS
from polyloss.conformance.selftest import _Copies

torch = pytest.importorskip("torch")
from polyloss.backends import torch as backend  # noqa: E402

ROWS, CLASSES = 64, 100  # more than `backend.LARGE` predictions
RNG = np.random.default_rng(0)
PRIMITIVES = {
    "softplus": ("polyloss.primitives:SoftplusCrossEntropy", 1),
    "lse": ("polyloss.primitives:LseCrossEntropy", 2),
}


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return torch.from_numpy(RNG.standard_normal(shape).astype(dtype))


def labels() -> Any:
    return torch.from_numpy(RNG.integers(CLASSES, size=ROWS))


def rows(dtype: str = "float32") -> Any:
    return torch.softmax(numbers(ROWS, CLASSES, dtype=dtype), -1)


OPERATIONS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "labels": lambda: ("lse", [0.0, 0.0], numbers(ROWS, CLASSES), labels(), None, None),
    "labels, smoothed, z": lambda: ("lse", [0.1, 0.01], numbers(ROWS, CLASSES), labels(), None, None),
    "soft targets": lambda: ("lse", [0.0, 0.0], numbers(ROWS, CLASSES), rows(), None, None),
    "class weights": lambda: (
        "lse",
        [0.0, 0.0],
        numbers(ROWS, CLASSES),
        labels(),
        torch.rand(CLASSES).expand(ROWS, CLASSES),
        None,
    ),
    "weights of their own": lambda: (
        "lse",
        [0.0, 0.0],
        numbers(ROWS, CLASSES),
        labels(),
        torch.rand(ROWS, CLASSES),
        None,
    ),
    "class mask": lambda: (
        "lse",
        [0.1, 0.0],
        numbers(ROWS, CLASSES),
        torch.zeros(ROWS, dtype=torch.int64),
        None,
        (torch.arange(CLASSES) % 3 != 1).expand(ROWS, CLASSES),
    ),
    "float64": lambda: ("lse", [0.0, 0.0], numbers(ROWS, CLASSES, dtype="float64"), labels(), None, None),
    "few classes": lambda: (
        "lse",
        [0.0, 0.0],
        numbers(1000, 7),
        torch.from_numpy(RNG.integers(7, size=1000)),
        None,
        None,
    ),
    "transposed": lambda: ("lse", [0.0, 0.0], numbers(CLASSES, ROWS).T, labels(), None, None),
    "nothing": lambda: ("lse", [0.0, 0.0], numbers(0, 5), torch.zeros(0, dtype=torch.int64), None, None),
    "elements": lambda: ("softplus", [0.0], numbers(50, 90), torch.rand(50, 90), None, None),
    "elements, smoothed, weighted": lambda: (
        "softplus",
        [0.2],
        numbers(50, 90),
        torch.rand(50, 90),
        torch.rand(90).expand(50, 90),
        None,
    ),
    "elements without targets": lambda: ("softplus", [0.0], numbers(50, 90, dtype="float64"), None, None, None),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_torch_accepts_the_operations(name: str) -> None:
    primitive, options, x, *others = OPERATIONS[name]()
    spelled, _ = PRIMITIVES[primitive]
    arguments = (spelled, options, x.requires_grad_(), *others)
    torch.library.opcheck(backend._items, arguments)
    items, top, rest = backend._items(*arguments)
    backward = (spelled, options, torch.rand_like(items), x.detach(), *others, top.detach(), rest.detach())
    # Its own derivative is refused, loudly; see below.
    torch.library.opcheck(backend._slopes, backward)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kernels", [True, False])
def test_an_operation_is_its_primitive(name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(dispatch, "kernels", lambda memory: None)
    primitive, options, x, *others = OPERATIONS[name]()
    spelled, _ = PRIMITIVES[primitive]
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    items = backend._items(spelled, options, one, *others)[0]
    formula = backend._primitive(spelled, options)
    expected = formula.differentiable(backend.LIBRARY, two, *others[: 2 if primitive == "softplus" else 3])
    cotangent = torch.rand_like(items)
    items.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(items, expected)
    torch.testing.assert_close(one.grad, two.grad)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations of ours that were run."""
    found: list[str] = []
    real = backend._kernel_work

    def work(name: str, *arguments: Any) -> Any:
        found.append(name)
        return real(name, *arguments)

    monkeypatch.setattr(backend, "_kernel_work", work)
    torch._dynamo.reset()
    return found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the C++ compiler, whose code is not the point here."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


LOSSES: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: polyloss.softmax_cross_entropy(x, torch.arange(len(x)) % x.shape[-1]),
    "softmax, weighted": lambda x: polyloss.softmax_cross_entropy(
        x,
        torch.arange(len(x)) % x.shape[-1],
        class_weights=torch.linspace(0.5, 2, x.shape[-1]),
        weights=torch.linspace(0, 1, len(x)),
        where=torch.arange(len(x)) % 5 != 0,
        label_smoothing=0.1,
    ),
    "softmax, axis first": lambda x: polyloss.softmax_cross_entropy(
        x, torch.arange(x.shape[1]) % len(x), axis=0, reduction="sum"
    ),
    "sigmoid": lambda x: polyloss.sigmoid_cross_entropy(x, (x > 0.5).to(x.dtype), pos_weight=torch.tensor(2.0)),
    "bpr": lambda x: polyloss.bpr(x, x.flip(0)),
    "info_nce": lambda x: polyloss.info_nce(x, x.flip(-1) + 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_code_calls_the_kernels_and_agrees(name: str, used: list[str]) -> None:
    x = numbers(80, 90)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, expected = compiled(LOSSES[name])(one), LOSSES[name](two)
    (3 * value).backward()
    (3 * expected).backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(one.grad, two.grad)
    assert len(used) == 2  # forward and backward


def test_small_tensors_and_the_generic_path_stay_in_compiled_code(used: list[str]) -> None:
    loss = LOSSES["softmax"]
    compiled(loss)(numbers(4, 5).requires_grad_()).backward()
    with dispatch.generic():
        compiled(lambda x: loss(x) + 0)(numbers(80, 90).requires_grad_()).backward()
    targets = rows().requires_grad_()
    compiled(polyloss.softmax_cross_entropy)(numbers(ROWS, CLASSES), targets).backward()
    assert targets.grad is not None
    assert used == []


def test_transforms_inside_compiled_code_get_the_formula(used: list[str]) -> None:
    x, loss = numbers(80, 90), LOSSES["softmax"]
    functions = {
        "grad": (torch.func.grad(loss), x),
        "vmap of grad": (torch.func.vmap(torch.func.grad(loss)), torch.stack([x, -x])),
        "jvp": (lambda x: torch.func.jvp(loss, (x,), (x,))[1], x),
    }
    for function, batch in functions.values():
        torch.testing.assert_close(compiled(function)(batch), function(batch))
    assert used == []


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_needs_no_polyloss(strict: bool, used: list[str]) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return LOSSES["softmax"](x)

    x = numbers(80, 90)
    program = torch.export.export(Model(), (x,), strict=strict)
    assert "polyloss" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), LOSSES["softmax"](x))


def test_new_data_compiles_nothing(used: list[str]) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(partial(polyloss.softmax_cross_entropy, label_smoothing=0.1), fullgraph=True, backend=counter)
    for _ in range(3):
        step(numbers(ROWS, CLASSES).requires_grad_(), labels()).backward()
    assert counter.frame_count == 1
    assert len(used) == 6


def test_a_second_derivative_of_the_operation_is_refused() -> None:
    """torch.compile refuses it by itself; nobody is to get a silent zero."""
    spelled, options, x, *others = ("polyloss.primitives:LseCrossEntropy", [0.0, 0.0], numbers(4, 5), torch.arange(4))
    x.requires_grad_()
    items = backend._items(spelled, options, x, *others, None, None)[0]
    (gradient,) = torch.autograd.grad(items.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad((gradient**2).sum(), x)


COMPILED = """
import torch, polyloss
x = torch.linspace(-1, 1, 6400).reshape(64, 100).requires_grad_()
loss = torch.compile(polyloss.softmax_cross_entropy)
loss(x, torch.arange(64), reduction="none").backward(torch.full((64,), 3.0))
print(float(x.grad.abs().sum()))
"""


def test_what_was_compiled_with_another_derivative_is_not_used(tmp_path: Path) -> None:
    """On disk torch keeps the derivative of an operation with the code that it has compiled."""
    (fault,) = (fault for fault in FAULTS if fault.name == "compiled-rule-without-the-cotangent")
    copies = _Copies(tmp_path, [sys.executable, "-c", COMPILED])
    ours, theirs = (float(copies.run(one, 600)[2].splitlines()[-1]) for one in (None, fault))
    assert ours == pytest.approx(3 * theirs, rel=1e-5)
