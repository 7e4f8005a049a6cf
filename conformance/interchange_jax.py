"""JAX: every transformation, one inside another, on one device and on four."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import polyloss
from polyloss.conformance.interchange import ITEMS, Found, registry, weave
from polyloss.conformance.losses import LOSSES

__all__ = ["TRANSFORMATIONS"]

TRANSFORMATIONS, transformation = registry("float32")

DEVICES = 4
FOUR = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}", "JAX_PLATFORMS": "cpu"}


def along(x: Any) -> Any:
    """The tangent or cotangent of the reference."""
    return jnp.asarray(weave(x.shape, str(x.dtype)))


def of_first(loss: Any, rest: Any, **options: Any) -> Any:
    """The loss as a function of its first array."""
    return lambda x: loss(x, **rest, **options)


def per_item(loss: Any, rest: Any) -> dict[str, int | None]:
    """The axis of the items in each array; None where all items share it."""
    shared = {key for row in LOSSES.values() if row.loss is loss.func for key in row.shared}
    return {key: None if key in shared and len(a) != ITEMS else 0 for key, a in rest.items()}


@transformation("call", once=True)
def call(loss: Any, x: Any, rest: Any) -> Found:
    """value and items, without jit"""
    yield "value", loss(x, **rest)
    yield "items", loss(x, **rest, reduction="none")


@transformation("jit", once=True)
def jit(loss: Any, x: Any, rest: Any) -> Found:
    """value; the second call compiles nothing"""
    run = jax.jit(loss)
    yield "value", run(x, **rest)
    yield "value", run(x + 0, **rest)
    assert run._cache_size() == 1


@transformation("grad", once=True)
def grad(loss: Any, x: Any, rest: Any) -> Found:
    """gradient, without jit and with it"""
    yield "gradient", jax.grad(of_first(loss, rest))(x)
    yield "gradient", jax.jit(jax.grad(loss))(x, **rest)


@transformation("value_and_grad")
def value_and_grad(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, with jit"""
    yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(loss))(x, **rest))


@transformation("grad with an upstream gradient, vjp")
def upstream(loss: Any, x: Any, rest: Any) -> Found:
    """gradients of a multiple of the loss and of weighted items"""
    yield "gradient", jax.jit(jax.grad(lambda x: -3 * loss(x, **rest)))(x) / -3
    items, pull = jax.vjp(jax.jit(of_first(loss, rest, reduction="none")), x)
    yield "items", items
    yield "pulled", pull(along(items))[0]


@transformation("jvp", once=True)
def jvp(loss: Any, x: Any, rest: Any) -> Found:
    """value and slope"""
    yield from zip(("value", "slope"), jax.jit(lambda x: jax.jvp(of_first(loss, rest), (x,), (along(x),)))(x))


@transformation("linearize", once=True)
def linearize(loss: Any, x: Any, rest: Any) -> Found:
    """value and slope"""
    value, push = jax.linearize(jax.jit(of_first(loss, rest)), x)
    yield "value", value
    yield "slope", push(along(x))


@transformation("jacfwd")
def jacfwd(loss: Any, x: Any, rest: Any) -> Found:
    """Jacobian of the items"""
    yield "jacobian", jax.jit(jax.jacfwd(of_first(loss, rest, reduction="none")))(x)


@transformation("jacrev", once=True)
def jacrev(loss: Any, x: Any, rest: Any) -> Found:
    """Jacobian of the items"""
    yield "jacobian", jax.jit(jax.jacrev(of_first(loss, rest, reduction="none")))(x)


@transformation("hessian")
def hessian(loss: Any, x: Any, rest: Any) -> Found:
    """Hessian; Hessian times a vector, of a curved function of the loss"""
    value = of_first(loss, rest)

    def curved(x: Any) -> Any:
        here, slope = jax.value_and_grad(value)(x)
        _, found = jax.jvp(jax.grad(lambda x: value(x) + (value(x) - here) ** 2 / 2), (x,), (along(x),))
        return found - slope * jnp.sum(slope * along(x))

    yield "hessian", jax.jit(jax.hessian(value))(x)
    yield "curvature", jax.jit(curved)(x)


@transformation("nested transformations", once=True)
def nested(loss: Any, x: Any, rest: Any) -> Found:
    """Hessian by jacrev of jacrev; Hessian times a vector by jvp of grad, and by grad of jvp"""
    value = of_first(loss, rest)
    yield "hessian", jax.jit(jax.jacrev(jax.jacrev(value)))(x)
    yield "curvature", jax.jit(lambda x: jax.jvp(jax.grad(value), (x,), (along(x),))[1])(x)
    yield "curvature", jax.jit(jax.grad(lambda x: jax.jvp(value, (x,), (along(x),))[1]))(x)


@transformation("vmap", once=True)
def vmap(loss: Any, x: Any, rest: Any) -> Found:
    """values of a batch of logits alone"""
    yield "value", jax.jit(jax.vmap(of_first(loss, rest)))(jnp.stack([x[::-1], x]))[1]


@transformation("vmap over weights and labels")
def vmap_all(loss: Any, x: Any, rest: Any) -> Found:
    """values and gradients of a batch of all arrays"""
    axes = per_item(loss, rest)
    pair = {key: a if axes[key] is None else jnp.stack([a, a[::-1]]) for key, a in rest.items()}
    both = jax.vmap(jax.value_and_grad(lambda x, rest: loss(x, **rest)), in_axes=(0, axes))
    values, gradients = jax.jit(both)(jnp.stack([x, x[::-1]]), pair)
    yield "value", values[0]
    yield "value", values[1]
    yield "gradient", gradients[0]
    yield "gradient", gradients[1][::-1]


@transformation("checkpoint", once=True)
def checkpoint(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient"""
    yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(jax.checkpoint(of_first(loss, rest))))(x))


@transformation("scan", once=True)
def scan(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of the sum over three steps"""

    def total(x: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            value = loss(x, **rest)
            return carry + value, value

        return jax.lax.scan(step, jnp.zeros((), x.dtype), None, length=3)[0]

    value, gradient = jax.jit(jax.value_and_grad(total))(x)
    yield "value", value / 3
    yield "gradient", gradient / 3


@transformation("donated buffers", once=True)
def donated(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, which may take the place of the logits"""
    run = jax.jit(lambda x, rest: jax.value_and_grad(loss)(x, **rest), donate_argnums=0)
    mine = x + 0
    value, gradient = run(mine, rest)
    assert mine.is_deleted()
    yield "value", value
    yield "gradient", gradient


@transformation("x64", once=True, dtype="float64")
def wide(loss: Any, x: Any, rest: Any) -> Found:
    """value, gradient and Hessian in float64"""
    value = of_first(loss, rest)
    yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(value))(x))
    yield "hessian", jax.jit(jax.hessian(value))(x)


@transformation("bfloat16 logits", once=True, dtype="bfloat16", compute="float32")
def half(loss: Any, x: Any, rest: Any) -> Found:
    """value in float32, gradient in bfloat16"""
    yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(loss))(x.astype(jnp.bfloat16), **rest))


@transformation("eval_shape", once=True)
def eval_shape(loss: Any, x: Any, rest: Any) -> Found:
    """shapes and dtypes of value and gradient; beside them the value"""
    value, gradient = jax.eval_shape(jax.value_and_grad(loss), x, **rest)
    assert value.shape == () and gradient.shape == x.shape and value.dtype == gradient.dtype == x.dtype
    yield "value", jax.jit(loss)(x, **rest)


@transformation("checking_leaks", once=True)
def leaks(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient; no tracer is left behind"""
    with jax.checking_leaks():
        yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(of_first(loss, rest)))(x))


@transformation("transfer_guard", once=True)
def transfer_guard(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient; compiled, nothing goes from the host to the device or back"""
    with jax.transfer_guard("disallow"):
        yield from zip(("value", "gradient"), jax.jit(jax.value_and_grad(loss))(x, **rest))


@transformation("polyloss.value_and_grad", once=True)
def formula(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient, without jit and with it"""
    both = polyloss.value_and_grad(loss)
    yield from zip(("value", "gradient"), both(x, **rest))
    yield from zip(("value", "gradient"), jax.jit(both)(x, **rest))


@transformation("pickled functools.partial", once=True)
def pickled(loss: Any, x: Any, rest: Any) -> Found:
    """value"""
    loss = pickle.loads(pickle.dumps(functools.partial(loss, reduction="mean")))
    yield "value", jax.jit(loss)(x, **rest)


# Four devices.


def shards(loss: Any, rest: Any) -> tuple[Any, dict[str, Any]]:
    """A mesh over all devices, and how each array lies on it: the batch in parts."""
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    axes = per_item(loss, rest)
    return mesh, {key: PartitionSpec() if axes[key] is None else PartitionSpec("batch") for key in rest}


@transformation("pmap over four devices", once=True, processes=1, environment=FOUR)
def pmap(loss: Any, x: Any, rest: Any) -> Found:
    """sums of a quarter of the batch each, and their gradients"""
    axes = per_item(loss, rest)

    def parts(a: Any) -> Any:
        return a.reshape(DEVICES, -1, *a.shape[1:])

    one = jax.value_and_grad(lambda x, rest: loss(x, **rest, reduction="sum"))
    given = {key: a if axes[key] is None else parts(a) for key, a in rest.items()}
    values, gradients = jax.pmap(one, in_axes=(0, axes))(parts(x), given)
    assert len(values.devices()) == DEVICES
    yield f"value over shards: {DEVICES}", jnp.asarray(np.sum(values))
    yield f"gradient over shards: {DEVICES}", gradients.reshape(x.shape)


@transformation("shard_map over four devices", once=True, processes=1, environment=FOUR)
def shard_map(loss: Any, x: Any, rest: Any) -> Found:
    """sum over all devices of a quarter of the batch each, and its gradient"""
    mesh, places = shards(loss, rest)
    batch = PartitionSpec("batch")

    def one(x: Any, rest: Any) -> Any:
        return jax.lax.psum(loss(x, **rest, reduction="sum"), "batch")

    total = jax.shard_map(one, mesh=mesh, in_specs=(batch, places), out_specs=PartitionSpec())
    value, gradient = jax.jit(jax.value_and_grad(total))(x, rest)
    yield f"value over shards: {DEVICES}", value
    yield f"gradient over shards: {DEVICES}", gradient


@transformation("jit, the batch sharded over four devices", once=True, processes=1, environment=FOUR)
def sharded(loss: Any, x: Any, rest: Any) -> Found:
    """value and gradient of the whole batch, without jit and with it; the gradient lies as the logits do"""
    mesh, places = shards(loss, rest)
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    rest = {key: jax.device_put(a, NamedSharding(mesh, places[key])) for key, a in rest.items()}
    yield "value", loss(x, **rest)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x, **rest)
    assert gradient.sharding.is_equivalent_to(x.sharding, x.ndim)
    yield "value", value
    yield "gradient", gradient
