"""Who computes a workload: polyloss, and its peers as their users call them. What is missing is named."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.libraries import Device
from benchmarks.gpu.workloads import Workload

__all__ = ["COPIES", "OURS", "Contestant", "contestants", "release"]

OURS = "polyloss, CuPy", "polyloss, torch", "polyloss, torch, value_and_grad"
COPIES = "device-to-device copy, CuPy", "device-to-device copy, torch"
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Contestant:
    """A function of one set of inputs, which ``make(seed)`` allocates; or the reason why there is none."""

    name: str
    library: str
    reason: str = ""
    make: Callable[[int], Inputs] = lambda seed: ()
    call: Callable[..., Any] = lambda *inputs: None


def contestants(workload: Workload, devices: list[Device]) -> Iterator[Contestant]:
    """All of them, whether they can run or not."""
    here = {"cupy" if device.name == "simulator" else device.name: device for device in devices}
    for name, library, build in TABLE:
        device = here[library]
        if device.reason:
            yield Contestant(name, library, device.reason)
            continue
        try:
            make, call = build(workload, device)
        except Exception as error:  # not for this workload, not installed, or not as we know it
            reason = str(error).splitlines()[0] if str(error) else ""
            yield Contestant(name, library, f"NOT RUN: {type(error).__name__}: {reason}")
        else:
            yield Contestant(name, library, "", make, call)


class Unfit(Exception):
    """Not for this workload."""


# Inputs, allocated by the library itself; nothing large comes from the host.


def _host_inputs(w: Workload, device: Device) -> Callable[[int], Inputs]:
    """For the simulator."""

    def make(seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(w.shape).astype(np.float32)
        if w.loss == "softmax":
            return device.to_device(x), device.to_device(rng.integers(0, w.shape[1], w.shape[0]))
        return device.to_device(x), device.to_device(rng.random(w.shape).astype(np.float32))

    return make


def _cupy_inputs(w: Workload, device: Device) -> Callable[[int], Inputs]:
    if device.name == "simulator":
        return _host_inputs(w, device)
    import cupy

    if w.dtype == "bfloat16":
        raise Unfit("CuPy has no bfloat16 that makes random numbers")

    def make(seed: int) -> Inputs:
        rng = cupy.random.default_rng(seed)
        x = rng.standard_normal(w.shape, dtype=cupy.float32).astype(w.dtype, copy=False)
        if w.loss == "softmax":
            return x, rng.integers(0, w.shape[1], w.shape[0])
        return x, rng.random(w.shape, dtype=cupy.float32)

    return make


def _torch_inputs(w: Workload, grad: bool = True, shared: bool = True) -> Callable[[int], Inputs]:
    """``shared``: the same memory for all that leave their inputs alone, as a large workload needs."""

    def make(seed: int) -> Inputs:
        x, y = _torch_numbers(w, seed) if shared else _torch_numbers.__wrapped__(w, seed)
        return x.detach().requires_grad_(grad), y

    return make


@functools.lru_cache(maxsize=64)
def _torch_numbers(w: Workload, seed: int) -> Inputs:
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)
    options = {"device": "cuda", "dtype": getattr(torch, w.dtype), "generator": generator}
    x = torch.randn(w.shape, **options)
    if w.loss == "softmax":
        return x, torch.randint(0, w.shape[1], w.shape[:1], device="cuda", generator=generator)
    return x, torch.rand(w.shape, **options)


def release() -> None:
    """Lets go of the inputs."""
    _torch_numbers.cache_clear()


def _jax_inputs(w: Workload, device: Device) -> Callable[[int], Inputs]:
    import jax

    def make(seed: int) -> Inputs:
        one, two = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(one, w.shape, w.dtype)
        if w.loss == "softmax":
            return x, jax.random.randint(two, w.shape[:1], 0, w.shape[1])
        return x, jax.random.uniform(two, w.shape, w.dtype)

    return make


# polyloss.


def _loss(w: Workload) -> Any:
    import polyloss

    return {
        "softmax": polyloss.softmax_cross_entropy,
        "sigmoid": polyloss.sigmoid_cross_entropy,
        "info_nce": polyloss.info_nce,
    }[w.loss]


def _ours_cupy(w: Workload, device: Device) -> Any:
    import polyloss

    both = polyloss.value_and_grad(_loss(w))

    def call(*inputs: Any) -> Any:
        with device.scope():
            return both(*inputs)

    return _cupy_inputs(w, device), both if device.name == "cupy" else call


def _ours_torch(w: Workload, device: Device) -> Any:
    return _torch_inputs(w), _backward(_loss(w))


def _ours_torch_at_once(w: Workload, device: Device) -> Any:
    import polyloss

    return _torch_inputs(w, grad=False), polyloss.value_and_grad(_loss(w))


def _backward(loss: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, *rest: Any) -> Any:
        loss(x, *rest).backward()
        gradient, x.grad = x.grad, None
        return gradient

    return call


# Peers.


def _copy(w: Workload, device: Device) -> Any:
    import torch

    # Into new memory: everybody else allocates a gradient too.
    return lambda seed: _torch_numbers(w, seed)[:1], torch.clone


def _copy_cupy(w: Workload, device: Device) -> Any:
    if device.name == "simulator":
        raise Unfit("there is no device to copy on")
    import cupy

    return lambda seed: (cupy.zeros(w.unit, cupy.uint8),), cupy.copy


def _torch_loss(w: Workload) -> Callable[..., Any]:
    import torch
    import torch.nn.functional as F

    if w.loss == "softmax":
        return F.cross_entropy
    if w.loss == "sigmoid":
        return F.binary_cross_entropy_with_logits

    def info_nce(q: Any, p: Any) -> Any:
        scores = F.normalize(q, dim=1) @ F.normalize(p, dim=1).T / 0.07
        return F.cross_entropy(scores, torch.arange(len(q), device=q.device))

    return info_nce


def _torch(w: Workload, device: Device) -> Any:
    return _torch_inputs(w), _backward(_torch_loss(w))


def _compiled(w: Workload, device: Device) -> Any:
    import torch

    return _torch_inputs(w), _backward(torch.compile(_torch_loss(w), dynamic=False))


def _jax(w: Workload, device: Device) -> Any:
    import jax
    import optax

    if w.loss == "info_nce":
        raise Unfit("optax has no such loss")
    of = {
        "softmax": optax.softmax_cross_entropy_with_integer_labels,
        "sigmoid": optax.sigmoid_binary_cross_entropy,
    }[w.loss]
    both = jax.jit(jax.value_and_grad(lambda x, y: of(x, y).mean()))
    return _jax_inputs(w, device), lambda *inputs: jax.block_until_ready(both(*inputs))


def _compiling_cupy(device: Device) -> Any:
    if device.name == "simulator":
        raise Unfit("CuPy's own compiler needs a GPU")
    import cupy

    return cupy


def _cupy_by_hand(w: Workload, device: Device) -> Any:
    cupy = _compiling_cupy(device)
    if w.loss == "softmax":
        shifted = cupy.ReductionKernel("T x, T m", "T s", "exp(x - m)", "a + b", "s = a", "0", "polyloss_bench_sum")
        slope = cupy.ElementwiseKernel(
            "T x, T m, T s, int64 k, int64 y, T n",
            "T g",
            "g = (exp(x - m) / s - (k == y ? 1 : 0)) / n",
            "polyloss_bench",
        )

        def softmax(x: Any, y: Any) -> Any:
            m = x.max(axis=1, keepdims=True)
            s = shifted(x, m, axis=1, keepdims=True)
            rows = cupy.arange(len(x))
            loss = (cupy.log(s) + m)[:, 0] - x[rows, y]
            return loss.mean(), slope(x, m, s, cupy.arange(x.shape[1]), y[:, None], cupy.float32(len(x)))

        return _cupy_inputs(w, device), softmax
    if w.loss == "sigmoid":

        @cupy.fuse()
        def items(x: Any, t: Any) -> Any:
            return cupy.maximum(x, 0) - x * t + cupy.log1p(cupy.exp(-abs(x)))

        @cupy.fuse()
        def slopes(x: Any, t: Any, n: Any) -> Any:
            return (1 / (1 + cupy.exp(-x)) - t) / n

        return _cupy_inputs(w, device), lambda x, t: (items(x, t).mean(), slopes(x, t, cupy.float32(x.size)))
    raise Unfit("nobody writes that by hand")


def _cupy_fused(w: Workload, device: Device) -> Any:
    cupy = _compiling_cupy(device)
    if w.loss != "softmax":
        raise Unfit("the other one is fused already")

    @cupy.fuse()
    def exponentials(x: Any, m: Any) -> Any:
        return cupy.exp(x - m)

    @cupy.fuse()
    def slopes(e: Any, s: Any, hot: Any, n: Any) -> Any:
        return (e / s - hot) / n

    def softmax(x: Any, y: Any) -> Any:
        m = x.max(axis=1, keepdims=True)
        e = exponentials(x, m)
        s = e.sum(axis=1, keepdims=True)
        loss = (cupy.log(s) + m)[:, 0] - x[cupy.arange(len(x)), y]
        return loss.mean(), slopes(e, s, y[:, None] == cupy.arange(x.shape[1]), cupy.float32(len(x)))

    return _cupy_inputs(w, device), softmax


def _cupy_jit(w: Workload, device: Device) -> Any:
    cupy = _compiling_cupy(device)
    from benchmarks.gpu.cupy_softmax import cross_entropy

    if w.loss != "softmax" or w.dtype != "float32":
        raise Unfit("written for the softmax in float32 alone")
    return _cupy_inputs(w, device), cross_entropy(cupy)


def _liger(w: Workload, device: Device) -> Any:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    if w.loss != "softmax":
        raise Unfit("Liger-Kernel has no such loss")
    # It writes the gradient into the logits: a copy is what a loss that leaves its inputs alone would pay.
    loss = LigerCrossEntropyLoss()
    return _torch_inputs(w), _backward(lambda x, y: loss(x.clone(), y))


def _liger_in_place(w: Workload, device: Device) -> Any:
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    if w.loss != "softmax":
        raise Unfit("Liger-Kernel has no such loss")

    def call(x: Any, y: Any) -> Any:
        return cross_entropy_forward(x, y, None, -100, 0.0, 0.0, "mean", None, False)

    return _torch_inputs(w, grad=False, shared=False), call


def _triton(w: Workload, device: Device) -> Any:
    from benchmarks.gpu.triton_softmax import cross_entropy

    if w.loss != "softmax":
        raise Unfit("written for the softmax alone")
    return _torch_inputs(w, grad=False), cross_entropy


TABLE: tuple[tuple[str, str, Callable[[Workload, Device], Any]], ...] = (
    (OURS[0], "cupy", _ours_cupy),
    (OURS[1], "torch", _ours_torch),
    (OURS[2], "torch", _ours_torch_at_once),
    (COPIES[0], "cupy", _copy_cupy),
    (COPIES[1], "torch", _copy),
    ("torch", "torch", _torch),
    ("torch.compile", "torch", _compiled),
    ("JAX jit, optax", "jax", _jax),
    ("CuPy by hand", "cupy", _cupy_by_hand),
    ("CuPy by hand, fused", "cupy", _cupy_fused),
    ("CuPy by hand, cupyx.jit", "cupy", _cupy_jit),
    ("Liger-Kernel", "torch", _liger),
    ("Liger-Kernel, in place", "torch", _liger_in_place),
    ("Triton by hand", "torch", _triton),
)
