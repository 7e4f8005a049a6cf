"""The losses under the frameworks' own transformations: the same numbers, first and second derivatives."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.losses import LOSSES, Row
from polyloss.conformance.routes import from_numpy

every_loss = pytest.mark.parametrize("name", LOSSES)


def call_in(library: str, row: Row, dtype: str = "float64", n: int = 4) -> tuple[Any, Any]:
    """The loss as a function of its first argument, with weights and a mask, and that argument."""
    arguments = row.arguments(3, n, dtype)
    options = {"weights": np.linspace(0.5, 2, n).astype(dtype), "where": np.arange(n) != 2}
    given = {key: from_numpy(library, x) for key, x in (arguments | row.options | options).items()}
    first = next(iter(arguments))
    x = given.pop(first)
    return (lambda x: row.loss(**{first: x}, **given)), x


@every_loss
def test_torch_gradients_of_gradients(name: str) -> None:
    torch = pytest.importorskip("torch")
    loss, x = call_in("torch", LOSSES[name])
    x.requires_grad_()
    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))


@every_loss
def test_torch_func_agrees_with_autograd(name: str) -> None:
    torch = pytest.importorskip("torch")
    loss, x = call_in("torch", LOSSES[name])
    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(loss))(x), expected)
    tangent = torch.ones_like(x)
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], torch.func.grad(loss)(x).sum())
    batched = torch.func.vmap(loss)(torch.stack([x, x]))
    torch.testing.assert_close(batched, loss(x).expand(2))


@every_loss
def test_torch_compile_traces_the_loss_without_a_graph_break(name: str) -> None:
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    loss, x = call_in("torch", LOSSES[name])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, expected = compiled(one), loss(two)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(one.grad, two.grad)


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


def test_torch_autocast_lowers_nothing_inside_a_loss() -> None:
    torch = pytest.importorskip("torch")
    q, p = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.randn(6, 5)
    expected = polyloss.info_nce(q, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert polyloss.info_nce(q, p) == expected
        logits = torch.nn.functional.linear(q, p)
        assert logits.dtype == torch.bfloat16
        assert polyloss.softmax_cross_entropy(logits, torch.arange(6)).dtype == torch.float32


def test_tensors_without_numbers_have_shapes() -> None:
    """Meta and fake tensors: what a model is traced with before it has memory."""
    torch = pytest.importorskip("torch")
    x = torch.zeros(4, 3, device="meta")
    assert polyloss.softmax_cross_entropy(x, torch.zeros(4, dtype=torch.int64, device="meta")).shape == ()
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert polyloss.bpr(torch.zeros(4), torch.zeros(4, 2), reduction="none").shape == (4, 2)


@every_loss
def test_jax_transformations_agree(name: str) -> None:
    jax = pytest.importorskip("jax")
    loss, x = call_in("jax", LOSSES[name], "float32")
    expected, slope = jax.value_and_grad(loss)(x)
    value, compiled = jax.jit(jax.value_and_grad(loss))(x)
    close = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, float(np.max(np.abs(slope))))}
    np.testing.assert_allclose(value, expected, **close)
    np.testing.assert_allclose(compiled, slope, **close)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(loss))(x), slope, **close)
    forward, reverse = jax.jit(jax.hessian(loss))(x), jax.jit(jax.jacrev(jax.jacrev(loss)))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-4 * max(1.0, float(np.max(np.abs(reverse)))))
    batched = jax.jit(jax.vmap(loss))(jax.numpy.stack([x, x]))
    np.testing.assert_allclose(batched, [expected, expected], **close)


def test_value_and_grad_may_be_compiled_and_is_detached() -> None:
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    both = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
    x, t = jax.numpy.array([0.5, -1.0]), jax.numpy.array([1, 0])
    for got, expected in zip(jax.jit(both)(x, t), both(x, t)):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    value, gradient = both(torch.tensor([0.5, -1.0], requires_grad=True), torch.tensor([1, 0]))
    assert not value.requires_grad
    assert not gradient.requires_grad


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


def test_dask_computes_nothing_before_it_is_asked() -> None:
    da = pytest.importorskip("dask.array")
    from dask.callbacks import Callback

    started: list[object] = []

    class Watch(Callback):  # type: ignore[misc]
        def _start(self, graph: object) -> None:
            started.append(graph)

    x = da.from_array(np.random.default_rng(0).standard_normal((8, 6)), chunks=(3, 2))
    y = da.from_array(np.arange(8) % 6, chunks=3)
    with Watch():
        value, gradient = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y, label_smoothing=0.1)
        assert not started
        expected, slope = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(
            x.compute(), y.compute(), label_smoothing=0.1
        )
        np.testing.assert_allclose(value.compute(), expected)
        np.testing.assert_allclose(gradient.compute(), slope)


@every_loss
def test_torch_checkpointing_and_saved_tensor_hooks(name: str) -> None:
    """Each saved tensor is unpacked once, which checkpointing insists on."""
    torch = pytest.importorskip("torch")
    from torch.utils.checkpoint import checkpoint

    loss, x = call_in("torch", LOSSES[name])
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    checkpoint(loss, one, use_reentrant=False).backward()
    with torch.autograd.graph.save_on_cpu():
        value = loss(two)
    value.backward(retain_graph=True)
    torch.testing.assert_close(one.grad, two.grad)
    value.backward()
    torch.testing.assert_close(two.grad, 2 * one.grad)


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
