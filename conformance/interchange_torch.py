"""torch: autograd, `torch.func`, forward mode, the compiler, and the places in which tensors live."""

from __future__ import annotations

import atexit
import functools
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import polyloss
from polyloss.conformance.interchange import ITEMS, Found, registry, weave
from polyloss.conformance.losses import LOSSES

__all__ = ["TRANSFORMATIONS"]

TRANSFORMATIONS, transformation = registry("float64")

TWO_AXES = "embeddings have two axes, images of them do not exist"


def along(x: Any) -> Any:
    """The tangent or cotangent of the reference."""
    return torch.from_numpy(weave(tuple(x.shape), "float64")).to(x.dtype)


def backward_of(loss: Any, x: Any, rest: Any) -> Found:
    x = x.detach().requires_grad_()
    value = loss(x, **rest)
    value.backward()
    yield "value", value
    yield "gradient", x.grad


def per_item(loss: Any, rest: Any) -> dict[str, int | None]:
    """The axis of the items in each array; None where all items share it."""
    shared = {key for row in LOSSES.values() if row.loss is loss.func for key in row.shared}
    return {key: None if key in shared and len(a) != ITEMS else 0 for key, a in rest.items()}


# Reverse mode.


@transformation("backward")
def backward(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from backward_of(loss, x, rest)


@transformation("backward with an upstream gradient")
def upstream(loss: Any, x: Any, rest: Any) -> Found:
    """gradients of a multiple of the loss and of weighted items"""
    x.requires_grad_()
    (-3 * loss(x, **rest)).backward()
    yield "gradient", x.grad / -3
    items = loss(x, **rest, reduction="none")
    yield "items", items
    yield "pulled", torch.autograd.grad(items, x, along(items))[0]


@transformation("is_grads_batched")
def batched(loss: Any, x: Any, rest: Any) -> Found:
    """gradients for a batch of cotangents, of the loss and of weighted items"""
    x.requires_grad_()
    factors = torch.tensor([-3.0, 2.0], dtype=x.dtype)
    many = torch.autograd.grad(loss(x, **rest), x, factors, is_grads_batched=True)[0]
    for factor, one in zip(factors, many):
        yield "gradient", one / factor
    items = loss(x, **rest, reduction="none")
    both = torch.stack([torch.zeros_like(items), along(items)])
    yield "pulled", torch.autograd.grad(items, x, both, is_grads_batched=True)[0][1]


@transformation("retain_graph")
def retain_graph(loss: Any, x: Any, rest: Any) -> Found:
    """gradient, after each of two backward passes"""
    x.requires_grad_()
    value = loss(x, **rest)
    value.backward(retain_graph=True)
    yield "gradient", x.grad.clone()
    value.backward()
    yield "gradient", x.grad / 2


@transformation("double backward")
def double_backward(loss: Any, x: Any, rest: Any) -> Found:
    """gradient, and Hessian times a vector"""
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, **rest), x, create_graph=True)
    yield "gradient", gradient
    if gradient.requires_grad:
        yield "curvature", torch.autograd.grad(torch.sum(gradient * along(x)), x)[0]
    else:  # a loss of straight pieces, as torch's own
        yield "curvature", torch.zeros_like(x)


@transformation("gradcheck and gradgradcheck")
def gradgradcheck(loss: Any, x: Any, rest: Any) -> Found:
    """gradients of gradients, by torch's own differences; gradient"""
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, **rest), (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, **rest), (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, **rest, reduction="none"), (x,), fast_mode=True)
    yield from backward_of(loss, x, rest)


@transformation("autograd.functional.hessian")
def functional_hessian(loss: Any, x: Any, rest: Any) -> Found:
    """Hessian"""
    yield "hessian", torch.autograd.functional.hessian(lambda x: loss(x, **rest), x)


@transformation("checkpoint and saved-tensor hooks")
def checkpointed(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient; each saved tensor is unpacked once"""
    yield from backward_of(
        lambda x, **rest: checkpoint(functools.partial(loss, **rest), x, use_reentrant=False), x, rest
    )
    with torch.autograd.graph.save_on_cpu():
        yield from backward_of(loss, x, rest)


# torch.func and forward mode.


@transformation("func.grad, func.vjp")
def func_grad(loss: Any, x: Any, rest: Any) -> Found:
    """gradient and value, and gradient of weighted items"""
    gradient, value = torch.func.grad_and_value(loss)(x, **rest)
    yield "gradient", gradient
    yield "value", value
    items, pull = torch.func.vjp(lambda x: loss(x, **rest, reduction="none"), x)
    yield "pulled", pull(along(items))[0]


@transformation("func.jvp")
def func_jvp(loss: Any, x: Any, rest: Any) -> Found:
    """value and slope"""
    value, slope = torch.func.jvp(lambda x: loss(x, **rest), (x,), (along(x),))
    yield "value", value
    yield "slope", slope


@transformation("forward_ad.dual_level")
def dual(loss: Any, x: Any, rest: Any) -> Found:
    """value and slope"""
    with forward_ad.dual_level():
        value, slope = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, along(x)), **rest))
    yield "value", value
    yield "slope", slope


@transformation("func.vmap")
def vmap(loss: Any, x: Any, rest: Any) -> Found:
    """values of a batch of logits alone, and of a batch of all arrays"""
    yield "value", torch.func.vmap(lambda x: loss(x, **rest))(torch.stack([x.flip(0), x]))[1]
    axes = per_item(loss, rest)
    pair = {key: a if axes[key] is None else torch.stack([a, a.flip(0)]) for key, a in rest.items()}
    values = torch.func.vmap(lambda x, rest: loss(x, **rest), in_dims=(0, axes))(torch.stack([x, x.flip(0)]), pair)
    yield "value", values[0]
    yield "value", values[1]


@transformation("func.vmap of func.grad")
def vmap_grad(loss: Any, x: Any, rest: Any) -> Found:
    """gradients of a batch of all arrays"""
    axes = per_item(loss, rest)
    pair = {key: a if axes[key] is None else torch.stack([a, a.flip(0)]) for key, a in rest.items()}
    one = torch.func.grad(lambda x, rest: loss(x, **rest))
    gradients = torch.func.vmap(one, in_dims=(0, axes))(torch.stack([x, x.flip(0)]), pair)
    yield "gradient", gradients[0]
    yield "gradient", gradients[1].flip(0)


@transformation("func.jacrev")
def jacrev(loss: Any, x: Any, rest: Any) -> Found:
    """Jacobian of the items"""
    yield "jacobian", torch.func.jacrev(lambda x: loss(x, **rest, reduction="none"))(x)


@transformation("func.jacfwd")
def jacfwd(loss: Any, x: Any, rest: Any) -> Found:
    """Jacobian of the items"""
    yield "jacobian", torch.func.jacfwd(lambda x: loss(x, **rest, reduction="none"))(x)


@transformation("func.hessian")
def hessian(loss: Any, x: Any, rest: Any) -> Found:
    """Hessian"""
    yield "hessian", torch.func.hessian(lambda x: loss(x, **rest))(x)


@transformation("nested func transformations")
def nested(loss: Any, x: Any, rest: Any) -> Found:
    """Hessian by jacfwd of jacfwd, jacrev of jacrev, jacrev of jacfwd; Hessian times a vector by jvp of grad"""

    def value(x: Any) -> Any:
        return loss(x, **rest)

    yield "hessian", torch.func.jacfwd(torch.func.jacfwd(value))(x)
    yield "hessian", torch.func.jacrev(torch.func.jacrev(value))(x)
    yield "hessian", torch.func.jacrev(torch.func.jacfwd(value))(x)
    yield "curvature", torch.func.jvp(torch.func.grad(value), (x,), (along(x),))[1]
    yield "hessian", torch.func.vmap(torch.func.hessian(value))(torch.stack([x, x]))[1]


# The compiler.


@contextmanager
def dynamo() -> Iterator[CompileCounterWithBackend]:
    """A fresh compiler that counts what it compiles."""
    torch._dynamo.reset()
    try:
        yield CompileCounterWithBackend("aot_eager")
    finally:
        torch._dynamo.reset()


def flipped(loss: Any, x: Any, rest: Any) -> tuple[Any, Any]:
    """Other numbers in the same shapes: the items in reverse order."""
    axes = per_item(loss, rest)
    return x.flip(0), {key: a if axes[key] is None else a.flip(0) for key, a in rest.items()}


@transformation("compile(fullgraph=True)")
def compiled(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient; no graph break, and a call with new numbers compiles nothing"""
    with dynamo() as counter:
        run = torch.compile(lambda x, rest: loss(x, **rest), fullgraph=True, backend=counter)
        yield from backward_of(lambda x, **rest: run(x, rest), x, rest)
        again = dict(backward_of(lambda x, **rest: run(x, rest), *flipped(loss, x, rest)))
        yield "value", again["value"]
        yield "gradient", again["gradient"].flip(0)
        assert counter.frame_count == 1, f"compiled {counter.frame_count} times"


@transformation("compile, sizes that change", once=True)
def compiled_sizes(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient; a third size compiles nothing"""
    axes = per_item(loss, rest)
    with dynamo() as counter:
        run = torch.compile(lambda x, rest: loss(x, **rest), fullgraph=True, backend=counter)
        counts = []
        for n in (5, 6, 7, ITEMS):
            part = {key: a if axes[key] is None else a[:n].clone() for key, a in rest.items()}
            found = list(backward_of(lambda x, **rest: run(x, rest), x[:n].clone(), part))
            counts.append(counter.frame_count)
        yield from found
        assert counts[1:] == counts[1:2] * 3, f"compiled {counts} times after each size"


@transformation("compile of func.grad, of vmap of func.grad", once=True)
def compiled_func(loss: Any, x: Any, rest: Any) -> Found:
    """gradients"""
    with dynamo() as counter:
        grad = torch.func.grad(lambda x: loss(x, **rest))
        yield "gradient", torch.compile(grad, fullgraph=True, backend=counter)(x)
        many = torch.compile(torch.func.vmap(grad), fullgraph=True, backend=counter)
        yield "gradient", many(torch.stack([x, x]))[1]


@transformation("compile of value_and_grad", once=True)
def compiled_formula(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    with dynamo() as counter:
        both = polyloss.value_and_grad(loss)
        run = torch.compile(lambda x, rest: both(x, **rest), fullgraph=True, backend=counter)
        run(*flipped(loss, x, rest))
        yield from zip(("value", "gradient"), run(x, rest))
        assert counter.frame_count == 1, f"compiled {counter.frame_count} times"


@transformation("export")
def export(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of the exported program, with other numbers than it was traced with"""

    class Model(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, rest: Any) -> Any:
            return loss(x, **rest)

    other, others = flipped(loss, x, rest)
    program = torch.export.export(Model(), (other.requires_grad_(), others)).module()
    yield from backward_of(lambda x, **rest: program(x, rest), x, rest)


# Modes, and the places in which tensors live.


def lowered(loss: Any, x: Any, rest: Any, half: Any) -> Found:
    x = x.to(half).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, **rest)
        value.backward()
    yield "value", value
    yield "gradient", x.grad


@transformation("autocast, bfloat16 logits", dtype="bfloat16", compute="float32")
def autocast(loss: Any, x: Any, rest: Any) -> Found:
    """value in float32, gradient in bfloat16"""
    yield from lowered(loss, x, rest, torch.bfloat16)


@transformation("autocast, float16 logits", dtype="float16", compute="float32")
def autocast_float16(loss: Any, x: Any, rest: Any) -> Found:
    """value in float32, gradient in float16"""
    yield from lowered(loss, x, rest, torch.float16)


@transformation("autocast, float32 logits", dtype="float32")
def autocast_float32(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient: nothing inside a loss is lowered"""
    yield from lowered(loss, x, rest, torch.float32)


@transformation("a tensor that needs no gradient")
def constant(loss: Any, x: Any, rest: Any) -> Found:
    """value and items, which need none either"""
    value = loss(x, **rest)
    assert not value.requires_grad
    yield "value", value
    yield "items", loss(x, **rest, reduction="none")


@transformation("no_grad")
def no_grad(loss: Any, x: Any, rest: Any) -> Found:
    """value, which needs no gradient"""
    with torch.no_grad():
        value = loss(x.requires_grad_(), **rest)
    assert not value.requires_grad
    yield "value", value


@transformation("inference_mode")
def inference_mode(loss: Any, x: Any, rest: Any) -> Found:
    """value inside, and of tensors that were made inside"""
    with torch.inference_mode():
        yield "value", loss(x, **rest)
        made = x.clone()
    yield "value", loss(made, **rest)


@transformation("value_and_grad")
def value_and_grad(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, detached"""
    value, gradient = polyloss.value_and_grad(loss)(x.requires_grad_(), **rest)
    assert not value.requires_grad and not gradient.requires_grad
    yield "value", value
    yield "gradient", gradient


def shapes_alone(loss: Any, x: Any, rest: Any) -> None:
    """Value and gradient have the dtype, device and shape that they should have."""
    x.requires_grad_()
    value, items = loss(x, **rest), loss(x, **rest, reduction="none")
    value.backward()
    assert value.shape == () and items.shape[0] == ITEMS and x.grad.shape == x.shape
    assert value.dtype == x.grad.dtype == x.dtype and value.device == x.device


@transformation("meta tensors")
def meta(loss: Any, x: Any, rest: Any) -> Found:
    """shapes and dtypes, forward and backward; beside them the value"""
    shapes_alone(loss, x.to("meta"), {key: a.to("meta") for key, a in rest.items()})
    yield "value", loss(x, **rest)


@transformation("fake tensors")
def fake(loss: Any, x: Any, rest: Any) -> Found:
    """shapes and dtypes, forward and backward; beside them the value"""
    with FakeTensorMode() as mode:
        shapes_alone(loss, mode.from_tensor(x), {key: mode.from_tensor(a) for key, a in rest.items()})
    yield "value", loss(x, **rest)


class Tagged(torch.Tensor):  # type: ignore[misc]
    """A subclass that changes nothing."""


class Wrapped(torch.Tensor):  # type: ignore[misc]
    """A subclass that holds another tensor and has no memory of its own."""

    inner: Any

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=False)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_map_only

        args, kwargs = tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))


@transformation("a tensor subclass")
def subclass(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, of the subclass"""
    found = dict(backward_of(loss, x.as_subclass(Tagged), rest))
    assert type(found["value"]) is Tagged
    yield from ((key, a.as_subclass(torch.Tensor)) for key, a in found.items())


@transformation("a tensor subclass without memory")
def wrapper(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, of the subclass: no address is read"""
    found = dict(backward_of(loss, Wrapped(x), {key: Wrapped(a) for key, a in rest.items()}))
    assert all(type(a) is Wrapped for a in found.values())
    yield from ((key, a.detach().inner) for key, a in found.items())


@transformation("nn.Parameter")
def parameter(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    p = torch.nn.Parameter(x)
    value = loss(p, **rest)
    value.backward()
    yield "value", value
    yield "gradient", p.grad


@transformation("strided, negative and expanded tensors")
def layouts(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    axes = per_item(loss, rest)
    every_other = x.repeat_interleave(2, 0)[::2]
    yield from backward_of(loss, every_other, {key: a.repeat_interleave(2, -1)[..., ::2] for key, a in rest.items()})
    yield from backward_of(loss, torch._neg_view(-x), rest)
    # Two batches of the same memory: the mean is that of one, in which every number stands twice.
    if any(a is None for a in axes.values()) or "axis" in loss.keywords or loss.func is polyloss.info_nce:
        return
    twice = x.detach().requires_grad_()
    value = loss(
        twice[:, None].expand(ITEMS, 2, *x.shape[1:]),
        **{k: a[:, None].expand(ITEMS, 2, *a.shape[1:]) for k, a in rest.items()},
    )
    value.backward()
    yield "value", value
    yield "gradient", twice.grad


@transformation("channels-last tensors", unless={"info_nce": TWO_AXES})
def channels_last(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of images, all of whose pixels are the same"""
    axis = x.ndim if "axis" in loss.keywords else 1  # where the pixels go
    more, axes = 4 - x.ndim, per_item(loss, rest)

    def image(a: Any) -> Any:
        at = min(axis, a.ndim)
        return a.reshape(*a.shape[:at], *(1,) * more, *a.shape[at:]).expand(*a.shape[:at], *(2,) * more, *a.shape[at:])

    pixels = image(x).contiguous(memory_format=torch.channels_last)
    assert pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous()
    leading = "weights", "where"  # which have the first axis alone, and hold for all that follow
    others = {key: a if axes[key] is None or key in leading else image(a) for key, a in rest.items()}
    found = dict(backward_of(loss, pixels, others))
    yield "value", found["value"]
    gradient = found["gradient"]
    yield "gradient", gradient.sum(tuple(range(axis, axis + more))) if more else gradient  # torch sums () over all axes


@transformation("pickled functools.partial")
def pickled(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    loss = pickle.loads(pickle.dumps(functools.partial(loss, weights=rest.pop("weights"))))
    yield from backward_of(loss, x, rest)


# Processes.


class Dataset(torch.utils.data.Dataset):  # type: ignore[misc]
    """Value and gradient of one call, computed by whoever asks."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {key: a.detach() for key, a in backward_of(*self.call)}


@transformation("DataLoader workers", processes=1)
def workers(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, computed in forked workers after the parent has computed them"""
    yield from backward_of(loss, x, rest)
    for found in DataLoader(Dataset(loss, x, rest), batch_size=None, num_workers=2):
        yield from found.items()


class Model(torch.nn.Module):  # type: ignore[misc]
    """Logits as parameters; each process has the loss of its own part of the batch."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(x)

    def forward(self, loss: Any, part: slice, rest: Any) -> Any:
        return loss(self.x[part], **rest, reduction="sum")


@transformation("DistributedDataParallel", processes=2, environment={"GLOO_SOCKET_IFNAME": "lo"})
def distributed(loss: Any, x: Any, rest: Any) -> Found:
    """sum and its gradient, half the batch in each of two processes (gloo)"""
    if not torch.distributed.is_initialized():
        store = torch.distributed.FileStore(os.environ["POLYLOSS_STORE"], 2)
        torch.distributed.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=2)
        atexit.register(torch.distributed.destroy_process_group)
    size, axes = ITEMS // 2, per_item(loss, rest)
    rank = torch.distributed.get_rank()
    part = slice(rank * size, (rank + 1) * size)
    model = torch.nn.parallel.DistributedDataParallel(Model(x))
    value = model(loss, part, {key: a if axes[key] is None else a[part] for key, a in rest.items()})
    (2 * value).backward()  # gradients are averaged over the processes
    total = value.detach()
    torch.distributed.all_reduce(total)
    yield "value over shards: 2", total
    yield "gradient over shards: 2", model.module.x.grad
