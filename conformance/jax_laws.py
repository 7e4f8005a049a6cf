"""Laws of JAX alone: derivatives by its rules for the kernels, and the loops that it has where there are none."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.laws import law, only
from polyloss.conformance.routes import Route, to_numpy
from polyloss.conformance.special_laws import INVALID
from polyloss.conformance.subject import Draw, Subject

__all__: list[str] = []

COMPILED = ("softmax_cross_entropy", "sigmoid_cross_entropy")


def _on_kernels(route: Route, dtype: str, function: str) -> str:
    """Only some versions of JAX call kernels. It is not imported to find out which it is."""
    if reason := only("jax", path="kernel", dtypes=("float32",))(route, dtype, function):
        return reason
    try:
        from polyloss.backends.cpu.ffi import TESTED

        found = version("jaxlib")
    except (ImportError, PackageNotFoundError):
        return ""  # without JAX it is not run, and without kernels the formulas are compared
    return "" if found in TESTED else f"kernels are called by jaxlib {', '.join(TESTED)} alone"


@law("rules of the kernels", _on_kernels, once=True, functions=COMPILED)
def rules(subject: Subject, draw: Draw) -> None:
    """With options, values and derivatives by JAX's rules are the formula's, in targets too, forwards, twice, mixed."""
    import jax.numpy as jnp

    from polyloss.primitives import LseCrossEntropy, SoftplusCrossEntropy

    rng = draw.rng
    x, t, p, v, w = (jnp.asarray(rng.random((130, 4)), jnp.float32) for _ in range(5))  # more than a block
    cases: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = [(SoftplusCrossEntropy(0.25), (x, t, p), ())]
    if subject.row.loss is polyloss.softmax_cross_entropy:
        labels = jnp.asarray(rng.integers(4, size=130), jnp.int32)
        cases = [(LseCrossEntropy(0.25, 0.125), (x, t), ()), (LseCrossEntropy(0.25), (x,), (labels,))]
    for primitive, arrays, rest in cases:
        _follows(subject, primitive, arrays, rest, (v, w, v)[: len(arrays)])


def _follows(
    subject: Subject, primitive: Any, arrays: tuple[Any, ...], rest: tuple[Any, ...], along: tuple[Any, ...]
) -> None:
    """Raises AssertionError where a derivative in one of the arrays, at first or twice, is not the formula's."""
    import jax

    from polyloss.backends.jax import LIBRARY
    from polyloss.backends.jax_kernels import items

    def found(by: Any) -> Any:
        """The items; the gradient in every array; the slope; the slope of the slope, in all arrays at once."""

        def of(*arrays: Any) -> Any:
            return by(*arrays, *rest)

        value, pull = jax.vjp(of, *arrays)
        slope = functools.partial(_slope, of, along)
        return value, pull(value), *jax.jvp(slope, arrays, along)

    got = jax.jit(found, static_argnums=0)(functools.partial(items, LIBRARY, primitive))
    expected = jax.jit(found, static_argnums=0)(functools.partial(primitive.differentiable, LIBRARY))
    names = "the items", *(f"the gradient in array {i}" for i in range(len(arrays))), "the slope", "its own slope"
    for name, one, other in zip(names, jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        subject.close(one, other, name, factor=10)


@law("large programs", _on_kernels, once=True, functions=COMPILED[:1])
def large(subject: Subject, draw: Draw) -> None:
    """XLA waits for all threads of a kernel: the results are NumPy's as soon as they can be read."""
    numpy = subject.on(Route("numpy", "kernel"))
    for shape in ((20_001, 9), (9, 100_001)):  # of few long rows one thread has more than the other
        calls = []
        for _ in range(3):
            logits, labels = draw.rng.standard_normal(shape), draw.rng.integers(shape[1], size=shape[0])
            arguments = {"logits": logits.astype(np.float32), "targets": labels}
            calls.append((arguments, *numpy.value_and_gradients(arguments, reduction="none")))
        for arguments, expected, slopes in 2 * calls:  # a race is not always lost, and memory may be that of before
            found, gradients = subject.value_and_gradients(arguments, reduction="none")
            gradient, items = to_numpy(gradients["logits"])[::-1].copy(), to_numpy(found).copy()  # the last rows first
            subject.close(items, expected, f"the items of shape {shape}", factor=10)
            subject.close(gradient[::-1], slopes["logits"], f"the gradient of shape {shape}", factor=10)


@law("invalid in programs", only("jax", path="kernel", dtypes=("float32",)), once=True, functions=tuple(INVALID))
def invalid_in_programs(subject: Subject, draw: Draw) -> None:
    """Where no error can be raised, an invalid value makes its own item NaN, with its gradient, and no other one."""
    import jax

    key, values = INVALID[subject.row.loss.__name__]
    arguments, first = subject.draw(draw, 4), subject.row.floating(subject.draw(draw, 4))[0]
    cases: list[dict[str, Any]] = [{}]
    if subject.row.loss is polyloss.softmax_cross_entropy:
        cases += [{"label_smoothing": 0.25}, {"class_weights": np.array([0.5, 1.0, 2.0, 0.25])}]
    for options in cases:
        given = subject.given(arguments, options | {"reduction": "none"})

        def both(x: Any, suspect: Any, given: dict[str, Any] = given) -> Any:
            items, pull = jax.vjp(lambda x: subject.row.loss(**given | {key: suspect} | {first: x}), x)
            return items, pull(jax.numpy.ones_like(items))[0]

        program = jax.jit(both) if key != first else jax.jit(lambda x, suspect: both(suspect, suspect))
        expected = program(given[first], given[key])
        for bad in values:
            broken = arguments[key].copy()
            broken[2] = bad
            found = program(given[first], subject.route.array(broken, subject.dtype))
            for got, clean, what in zip(found, expected, ("the item", "the gradient")):
                array = to_numpy(clean).copy()
                array[2] = np.nan
                if key == first and what == "the gradient":  # of which that of an invalid distance is not said
                    continue
                subject.close(got, array, f"{what} of {bad} in {key}, with {', '.join(options) or 'no options'}")


@law("debugging of NaN", only("jax", path="kernel", dtypes=("float32",)), once=True)
def debugging(subject: Subject, draw: Draw) -> None:
    """Where JAX is told to raise at every NaN, a call whose numbers are all finite does not meet one."""
    import jax

    arguments = subject.draw(draw, 4)
    first = subject.row.floating(arguments)[0]
    for options in ({}, {"weights": np.arange(1.0, 5), "where": np.arange(4) != 1}):
        given = subject.given(arguments, options)
        with jax.debug_nans(True):
            value = jax.grad(lambda x, given=given: subject.row.loss(**given | {first: x}))(given[first])
            assert np.all(np.isfinite(to_numpy(value))), f"the gradient in {first} is not finite"
            polyloss.value_and_grad(subject.row.loss)(**given)
            for transform in (polyloss.logsumexp, polyloss.softmax, polyloss.log_softmax):
                transform(given[first])


def _slope(of: Any, along: tuple[Any, ...], *arrays: Any) -> Any:
    import jax

    return jax.jvp(of, arrays, along)[1]


@law("loops of labels", only("jax", path="kernel", dtypes=("float32",)), once=True, functions=COMPILED[:1])
def loops(subject: Subject, draw: Draw) -> None:
    """Where XLA may not call the kernels, its own loops over labels have the formula's items, gradients, and theirs."""
    import jax
    import jax.numpy as jnp

    from polyloss.backends import jax_labels
    from polyloss.backends.jax import LIBRARY
    from polyloss.primitives import LseCrossEntropy

    rng = draw.rng
    logits = rng.standard_normal((5, 4))
    logits[1] = [2, 2, 0, 1]  # a tie at the top
    x, v = (jnp.asarray(a, jnp.float32) for a in (logits, rng.standard_normal((5, 4))))
    labels = jnp.asarray([0, 1, 2, 3, 1])

    def found(of: Any) -> Any:
        value, pull = jax.vjp(of, x)
        return value, pull(value)[0], jax.jvp(lambda x: jax.jvp(of, (x,), (v,))[1], (x,), (v,))[1]

    primitive: Any = LseCrossEntropy()
    got = jax.jit(lambda: found(lambda x: jax_labels.items(LIBRARY, primitive, x, labels)))()
    expected = jax.jit(lambda: found(lambda x: primitive.differentiable(LIBRARY, x, labels)))()
    for name, one, other in zip(("items", "gradient", "slope of the slope"), got, expected):
        subject.close(one, other, f"the {name} of loops of labels", factor=10)
    cotangent = jnp.asarray(np.arange(1.0, 6), jnp.float32)
    _, slopes = jax_labels.items_and_slopes(LIBRARY, primitive, cotangent, x, labels)
    expected = primitive.vjp(LIBRARY, cotangent, (True, False), None, x, labels)[0]
    subject.close(slopes, expected, "the slopes of loops of labels", factor=10)
    _in_a_shard(subject, logits, np.asarray(labels))


def _in_a_shard(subject: Subject, logits: np.ndarray, labels: np.ndarray) -> None:
    """Raises AssertionError where a shard, in which no kernel is called, is given these loops for what they are not."""
    import jax

    options: list[dict[str, Any]] = [{}, {"label_smoothing": 0.25}, {"z_loss": 0.125}]
    options += [{"class_weights": np.array([0.5, 2.0, 1.0, 0.25])}, {"class_mask": np.ones(4, bool)}]
    own = [subject.route.arrays(given, "float32") for given in options]
    x, y = (subject.route.array(a, "float32") for a in (logits, labels))
    nowhere = jax.sharding.PartitionSpec()

    def both(x: Any, y: Any) -> Any:
        return [jax.value_and_grad(functools.partial(subject.row.loss, targets=y, **given))(x) for given in own]

    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("shards",))
    home = jax if hasattr(jax, "shard_map") else importlib.import_module("jax.experimental.shard_map")  # before 0.6.1
    found = jax.jit(home.shard_map(both, mesh=mesh, in_specs=nowhere, out_specs=nowhere))(x, y)
    formula = subject.on(Route("numpy", "generic"))
    for given, (value, gradient) in zip(options, found):
        expected, slopes = formula.value_and_gradients({"logits": logits, "targets": labels}, **given)
        what = f"in a shard, with {', '.join(given) or 'no options'}"
        subject.close(value, expected, f"the value {what}", factor=10)
        subject.close(gradient, slopes["logits"], f"the gradient {what}", factor=10)
