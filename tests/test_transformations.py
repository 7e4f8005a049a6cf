"""What the table of `test_interchange` cannot say of a loss under a framework's transformations."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.routes import from_numpy


def test_the_first_call_of_all_may_be_a_compiled_one() -> None:
    """Nothing has loaded the rule of torch yet, and Dynamo must be able to follow how it is found."""
    pytest.importorskip("torch")
    code = """
import polyloss, torch
x, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
torch.compile(lambda x: polyloss.softmax_cross_entropy(x, y), fullgraph=True, backend="aot_eager")(x).backward()
assert x.grad.abs().sum() > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_compiled_loss_is_not_compiled_anew_after_other_calls() -> None:
    """What Dynamo traces holds for no longer than the tables that it read, and other calls make those grow."""
    pytest.importorskip("torch")
    code = """
import numpy, polyloss, torch
from torch._dynamo.testing import CompileCounterWithBackend
counter = CompileCounterWithBackend("aot_eager")
loss, both = polyloss.softmax_cross_entropy, polyloss.value_and_grad(polyloss.softmax_cross_entropy)
compiled = [torch.compile(f, fullgraph=True, backend=counter) for f in (loss, both)]
def run():
    for f in compiled:
        f(torch.randn(2, 3), torch.tensor([0, 1]))
    assert counter.frame_count == 2, counter.frame_count
run()
run()
for x, y in (
    (numpy.zeros((2, 3)), numpy.zeros(2, int)),
    (torch.nn.Parameter(torch.zeros(2, 3).double()), torch.zeros(2).bool()),
    ([[0.0, 1.0]], [1]),
):
    loss(x, y)
    both(x, y)
    run()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_weights_that_require_a_gradient_get_it() -> None:
    torch = pytest.importorskip("torch")
    logits, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    weights, classes = (torch.rand(k, dtype=torch.float64, requires_grad=True) for k in (4, 3))
    assert torch.autograd.gradcheck(
        lambda w, c: polyloss.softmax_cross_entropy(logits, labels, weights=w, class_weights=c, label_smoothing=0.1),
        (weights, classes),
    )
    p = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: polyloss.sigmoid_cross_entropy(logits, logits > 0, pos_weight=p, label_smoothing=0.1), (p,)
    )


def test_a_frozen_memory_bank_costs_no_gradient() -> None:
    torch = pytest.importorskip("torch")
    q = torch.randn(3, 4, requires_grad=True)
    loss = polyloss.info_nce(q, torch.randn(3, 4), torch.randn(5, 4))
    loss.backward()
    assert q.grad is not None


def test_a_partial_loss_is_the_loss_and_is_detached() -> None:
    torch = pytest.importorskip("torch")
    q, p = torch.randn(3, 4), torch.randn(3, 4)
    t = torch.tensor(0.5, requires_grad=True)
    outer = functools.partial(functools.partial(polyloss.info_nce, temperature=t), similarity="dot")
    value, gradient = polyloss.value_and_grad(outer)(q, p)
    expected, slope = polyloss.value_and_grad(polyloss.info_nce)(q, p, temperature=0.5, similarity="dot")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    assert not value.requires_grad
    assert not gradient.requires_grad
    pickled = pickle.loads(pickle.dumps(functools.partial(polyloss.bpr, reduction="sum")))
    assert pickled(q, p) == polyloss.bpr(q, p, reduction="sum")


def test_a_0d_tensor_on_the_host_may_stand_beside_those_on_a_device() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(3, 2, device="meta")
    for options in ({"weights": torch.tensor(2.0)}, {"where": torch.tensor(True)}, {"denominator": torch.tensor(3.0)}):
        assert polyloss.bpr(x, x, **options).device.type == "meta"


def test_a_tensor_subclass_keeps_its_class_through_a_row_loss() -> None:
    """DTensor: what is made beside it must be of its kind."""
    torch = pytest.importorskip("torch")
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch was built without distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
        x = distribute_tensor(logits, mesh, [Shard(0)]).requires_grad_()
        loss = polyloss.softmax_cross_entropy(x, distribute_tensor(labels, mesh, [Shard(0)]), reduction="sum")
        assert type(loss) is type(x)
        loss.backward()
        expected = polyloss.grad(polyloss.softmax_cross_entropy)(logits, labels, reduction="sum")
        torch.testing.assert_close(x.grad.full_tensor(), expected)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "dask"])
def test_a_large_count_is_a_number_and_not_an_index(library: str) -> None:
    """JAX's integers have 32 bits, its floats do not care."""
    pytest.importorskip(library)
    x, t = (from_numpy(library, np.ones(4, np.float32)) for _ in range(2))
    for count in (5_000_000_000, 5e9, np.int64(5_000_000_000)):
        value = polyloss.sigmoid_cross_entropy(x, t, denominator=count)
        np.testing.assert_allclose(float(value), 4 * np.log1p(np.exp(-1)) / 5e9, rtol=1e-6)
        value = polyloss.sigmoid_cross_entropy(x, t, weights=count)
        np.testing.assert_allclose(float(value), np.log1p(np.exp(-1)), rtol=1e-6)


def test_a_dask_task_carries_no_data() -> None:
    da = pytest.importorskip("dask.array")
    from polyloss.backends import dask as own

    x, y = da.zeros((1000, 50), chunks=(100, 50)), da.zeros(1000, chunks=100, dtype=int)
    seen = []
    original = own.da.blockwise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            own.da, "blockwise", lambda task, *rest, **kw: (seen.append(task), original(task, *rest, **kw))[1]
        )
        polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y)
    assert seen
    assert all(len(pickle.dumps(task)) < 500 for task in seen)


def test_what_dask_cannot_take_is_an_error() -> None:
    da = pytest.importorskip("dask.array")
    masked = da.ma.masked_array([1.0, 2.0, 100.0], mask=[0, 0, 1])
    with pytest.raises(TypeError, match=r"logits is a numpy\.ma array"):
        polyloss.sigmoid_cross_entropy(masked, da.ones(3))
    x = da.from_array(np.arange(6.0))[:, None]
    with pytest.raises(ValueError, match=r"queries has a size that is not known yet.*compute_chunk_sizes"):
        polyloss.info_nce(x[x[:, 0] > 2], x[x[:, 0] > 2])


@pytest.mark.parametrize("n", [4, 9000])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_differentiates_a_curved_function_of_a_loss_twice(n: int, reduction: str) -> None:
    """Its cotangent depends on the logits too, and counted twice: the Hessian of the square of a loss was wrong."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, n, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    x.requires_grad_()

    def curvature(loss: Any) -> Any:
        value = torch.sum(loss(x, y, reduction=reduction) ** 2)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(torch.sum(gradient * v), x)[0]

    torch.testing.assert_close(
        curvature(polyloss.softmax_cross_entropy), curvature(torch.nn.functional.cross_entropy), rtol=1e-9, atol=1e-12
    )
