"""Laws of torch alone: its threads, and what its autograd multiplies a gradient with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import polyloss
from polyloss.conformance.compare import compare, same
from polyloss.conformance.laws import law, only
from polyloss.conformance.routes import DTYPES, Route, rounded, to_numpy
from polyloss.conformance.subject import Draw, Subject
from polyloss.dispatch import generic

__all__: list[str] = []

LARGE = 70_001
REPLAYED = ("softmax_cross_entropy", "sigmoid_cross_entropy", "bpr")


@law("threads", only("torch", path="kernel", dtypes=("float32",), device="cpu"), once=True)
def threads(subject: Subject, draw: Draw) -> None:
    """The number of threads changes no bit."""
    import torch

    n = 64 if subject.row.loss is polyloss.info_nce else LARGE  # whose matrix product is torch's own
    arguments = subject.draw(draw, n)
    before = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            value, gradients = subject.value_and_gradients(arguments)
        finally:
            torch.set_num_threads(before)
        found.append([to_numpy(value), *(to_numpy(g) for g in gradients.values())])
    for one, two in zip(*found):
        same(two, one, "the result of two threads")


def leaf(subject: Subject, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments as tensors, of which the first, by its name, needs a gradient."""
    given = subject.given(arguments, {})
    first = subject.row.floating(arguments)[0]
    given[first].requires_grad_()
    return given, first


@law("large backward", only("torch", path="kernel", dtypes=("float32",), but="info_nce"), once=True)
def large_backward(subject: Subject, draw: Draw) -> None:
    """The gradient of a large batch is multiplied by what comes from above."""
    arguments = subject.draw(draw, LARGE)
    given, first = leaf(subject, arguments)
    (3 * subject.row.loss(**given)).backward()
    _, slopes = subject.value_and_gradients(arguments)
    subject.close(given[first].grad / 3, slopes[first], f"the gradient in {first}", factor=10)


@law("curved", only("torch", dtypes=("float64",)), once=True)
def curved(subject: Subject, draw: Draw) -> None:
    """The second derivative of the square of a loss is that of the chain rule."""
    import torch

    given, first = leaf(subject, subject.draw(draw, 4))
    x = given[first]
    v = subject.route.array(draw.rng.standard_normal(tuple(x.shape)))

    def twice(value: Any) -> tuple[Any, Any]:
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        if not gradient.requires_grad:
            return gradient, torch.zeros_like(x)
        (along,) = torch.autograd.grad(torch.sum(gradient * v), x, allow_unused=True, materialize_grads=True)
        return gradient, along

    value = subject.row.loss(**given)
    gradient, along = twice(value)
    _, got = twice(subject.row.loss(**given) ** 2)
    expected = 2 * value * along + 2 * torch.sum(gradient * v) * gradient
    subject.close(got, expected, "the second derivative of the square", factor=100)


@law("batched backward", only("torch"), once=True)
def batched(subject: Subject, draw: Draw) -> None:
    """Gradients of several cotangents at once, which torch batches, are those of one at a time."""
    import torch

    given, first = leaf(subject, subject.draw(draw, 3))
    items = subject.row.loss(**given, reduction="none")
    several = subject.route.array(draw.rng.standard_normal((2, *items.shape)), subject.dtype)
    (got,) = torch.autograd.grad(items, given[first], several, retain_graph=True, is_grads_batched=True)
    for one, cotangent in zip(got, several):
        (expected,) = torch.autograd.grad(items, given[first], cotangent, retain_graph=True)
        subject.close(one, expected, f"the gradient in {first} of several cotangents", factor=10)


@law("mixed", only("torch", dtypes=("float64",)), once=True)
def mixed(subject: Subject, draw: Draw) -> None:
    """The derivative of the gradient in every other parameter is that of the formula's gradient, by differences."""
    import torch

    arguments = subject.draw(draw, 3)
    first, *others = subject.row.floating(arguments)
    rng = np.random.default_rng(draw.seed + 1)  # not that of the arguments: a gradient may have no part along them
    v = rng.standard_normal(arguments[first].shape)
    for key in others:
        x = arguments[key]
        direction = rng.standard_normal(x.shape) * _inside(key, x)
        given = subject.given(arguments, {})
        for name in (first, key):
            given[name].requires_grad_()
        (gradient,) = torch.autograd.grad(subject.row.loss(**given), given[first], create_graph=True)
        got = 0.0
        if gradient.requires_grad:
            along = torch.sum(gradient * subject.route.array(v))
            (slope,) = torch.autograd.grad(along, given[key], allow_unused=True, materialize_grads=True)
            got = float(np.sum(to_numpy(slope) * direction))
        step = 1e-6
        ahead, behind = (
            np.sum(v * to_numpy(subject.value_and_gradients(arguments | {key: x + s * step * direction})[1][first]))
            for s in (1, -1)
        )
        what = f"the derivative in {key} of the gradient in {first}"
        compare(np.asarray(got), (ahead - behind) / (2 * step), what, subject.dtype, 1e-6 * (1 + abs(got)), 1.0)


def _inside(key: str, x: np.ndarray) -> Any:
    """Targets at 0 stay there."""
    return x > 0 if key in ("targets", "similar") else 1.0


@law("detached", only("torch"), once=True)
def detached(subject: Subject, draw: Draw) -> None:
    """What `polyloss.value_and_grad` gives needs no gradient, whatever the arguments do, given by name or by place."""
    arguments = subject.draw(draw, 4)
    given = subject.given(arguments, {"weights": np.ones(4), "denominator": np.asarray(2.0)})
    for key in (*subject.row.floating(arguments), "weights", "denominator"):
        given[key].requires_grad_()
    both = polyloss.value_and_grad(subject.row.loss)
    first = next(iter(arguments))
    for found in (both(**given), both(given.pop(first), **given)):
        assert not any(x.requires_grad for x in found), "the value or the gradient needs a gradient"


@law("unusual calls", only("torch", path="kernel", dtypes=("float64",)), once=True, functions=REPLAYED)
def unusual(subject: Subject, draw: Draw) -> None:
    """What torch does to a call after three usual ones is what it does to a first one."""
    route, loss = subject.route, subject.row.loss
    x, *rest = route.arrays(subject.draw(draw, 4)).values()
    v = route.array(draw.rng.standard_normal(tuple(x.shape)))
    for name, way in UNUSUAL.items():
        with generic():
            expected = way(loss, x, v, rest)
        for _ in range(3):
            loss(x, *rest)
        for got, right in zip(way(loss, x, v, rest), expected):
            subject.close(got, right, f"what comes of {name}", factor=10)


def _forwards(loss: Any, x: Any, v: Any, rest: list[Any]) -> list[Any]:
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, v), *rest))
        return [value, value * 0 if tangent is None else tangent]


def _with_gradient(loss: Any, x: Any, rest: list[Any]) -> list[Any]:
    value = loss(x, *rest)
    value.backward()
    return [value, x.grad]


def _inferred(loss: Any, x: Any, v: Any, rest: list[Any]) -> list[Any]:
    import torch

    with torch.inference_mode():
        return [loss(x.clone(), *rest).clone()]


def _lowered(loss: Any, x: Any, v: Any, rest: list[Any]) -> list[Any]:
    import torch

    with torch.autocast(x.device.type, torch.bfloat16):
        return _with_gradient(loss, x.clone().requires_grad_(), rest)


def _traced(loss: Any, x: Any, v: Any, rest: list[Any]) -> list[Any]:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: loss(x, *rest))(x)
    return [graph(x), graph(x / 2)]


def _func(name: str) -> Callable[..., list[Any]]:
    def way(loss: Any, x: Any, v: Any, rest: list[Any]) -> list[Any]:
        import torch

        def of(x: Any) -> Any:
            return loss(x, *rest)

        if name == "jvp":
            return list(torch.func.jvp(of, (x,), (v,)))
        if name == "vmap":
            return [torch.func.vmap(of)(torch.stack([x, x / 2]))]
        return [torch.func.grad(of)(x)]

    return way


UNUSUAL: dict[str, Callable[..., list[Any]]] = {
    "forward-mode differentiation": _forwards,
    "func.grad": _func("grad"),
    "func.jvp": _func("jvp"),
    "func.vmap": _func("vmap"),
    "inference mode": _inferred,
    "tracing to a graph": _traced,
    "autocast": _lowered,
    "a parameter": lambda loss, x, v, rest: _with_gradient(loss, _parameter(x), rest),
    "a negative view": lambda loss, x, v, rest: [loss((-x)._neg_view(), *rest)],
    "a tensor that needs a gradient": lambda loss, x, v, rest: _with_gradient(loss, x.clone().requires_grad_(), rest),
}


def _any_float(route: Route, dtype: str, function: str) -> str:
    return only("torch", path="kernel", dtypes=DTYPES)(route, "float32", function)


def _parameter(x: Any) -> Any:
    import torch

    return torch.nn.Parameter(x.clone())


COMPILED = ("softmax_cross_entropy", "sigmoid_cross_entropy")


@law("huge arrays", _any_float, once=True, functions=("softmax_cross_entropy",))
def huge(subject: Subject, draw: Draw) -> None:
    """A gradient so large that its memory comes from elsewhere is, in its first rows, that of a few rows."""
    logits, labels = rounded(draw.rng.standard_normal((2, 32)), subject.dtype), np.array([3, 30])
    value, gradients = subject.value_and_gradients({"logits": logits, "targets": labels}, reduction="sum")
    times = 1 << 15  # 4 MiB in 16 bits
    many = {"logits": np.tile(logits, (times, 1)), "targets": np.tile(labels, times)}
    sum_of_many, slopes = subject.value_and_gradients(many, reduction="sum")
    wide = Subject(subject.row, subject.route, "float64" if subject.dtype == "float64" else "float32")
    wide.close(to_numpy(sum_of_many) / times, value, "the mean of copies")
    same(
        to_numpy(slopes["logits"]).reshape(times, 2, 32)[:: times - 1], [to_numpy(gradients["logits"])] * 2, "gradients"
    )


@law("compiled operations", only("torch", path="kernel", device="cpu"), once=True, functions=COMPILED)
def operations(subject: Subject, draw: Draw) -> None:
    """What torch.compile puts into its code for large inputs is the loss, with all options, and its gradient."""
    import torch

    from polyloss.backends.torch import LIBRARY, _items_op
    from polyloss.primitives import LseCrossEntropy, SoftplusCrossEntropy

    rng, n, k = draw.rng, 5, 4
    x, t, p = (rounded(rng.random((n, k)), subject.dtype) for _ in range(3))
    labels, mask = rng.integers(1, k, size=n), rng.random((n, k)) < 0.7
    mask[np.arange(n), labels] = True
    cases: list[Any] = [(SoftplusCrossEntropy(0.25), (t, p)), (SoftplusCrossEntropy(), (None,))]
    if subject.row.loss is polyloss.softmax_cross_entropy:
        c = np.broadcast_to(p[0], (n, k))
        cases = [(LseCrossEntropy(e, z), (y, w, m)) for e, z in ((0.25, 0.0), (0.0, 0.125))
                 for y, w, m in ((t, None, None), (labels, c, None), (labels, None, mask))]  # fmt: skip
    for primitive, others in cases:
        given = [None if a is None else subject.route.array(a.copy(), subject.dtype) for a in others]
        leaf = subject.route.array(x, subject.dtype).requires_grad_()
        items = _items_op(primitive, leaf, *given)
        cotangent = subject.route.array(rng.standard_normal(tuple(items.shape)), subject.dtype)
        items.backward(cotangent)
        with torch.no_grad():
            expected, _ = primitive.forward(LIBRARY, leaf, *given)
            slope = primitive.vjp(LIBRARY, cotangent, (True, False, False, False), None, leaf, *given)[0]
        subject.close(items, expected, f"the items of {primitive}")
        subject.close(leaf.grad, slope, f"the gradient of {primitive}", factor=10)

    if subject.row.loss is polyloss.softmax_cross_entropy:  # along another axis, where classes are far from each other
        far = subject.route.array(rng.standard_normal((2, 40, 64)), subject.dtype).mT.requires_grad_()
        plain: Any = LseCrossEntropy()
        items = _items_op(plain, far, torch.zeros((2, 64), dtype=torch.int64), None, None)
        (slopes,) = torch.autograd.grad(items.sum(), far)
        assert slopes.is_contiguous(), "the gradient lies otherwise in memory than the compiler has been told"


@law("checkpoint", only("torch", dtypes=("float64",)), once=True)
def checkpointed(subject: Subject, draw: Draw) -> None:
    """Under torch's checkpoint, which may unpack what was saved only once, every gradient is what it is without."""
    from torch.utils.checkpoint import checkpoint

    arguments = subject.draw(draw, 4)
    _, slopes = subject.value_and_gradients(arguments)
    given = subject.given(arguments, {})
    wrt = subject.row.floating(arguments)
    leaves = [given[key].requires_grad_() for key in wrt]

    def of(*arrays: Any) -> Any:
        return subject.row.loss(**given | dict(zip(wrt, arrays)))

    checkpoint(of, *leaves, use_reentrant=False).backward()
    for key, x in zip(wrt, leaves):
        subject.close(x.grad, slopes[key], f"the gradient in {key} under checkpoint", factor=10)


def _compiled(route: Route, dtype: str, function: str) -> str:
    asked = route.library == "torch" and route.path == "compiled" and dtype == "float32"
    return "" if asked else "it is asked of torch.compile in float32 alone"


@law("compiled gradients", _compiled, once=True)
def compiled_gradients(subject: Subject, draw: Draw) -> None:
    """torch.compile keeps every gradient, and torch.func's, of inputs so large that its code may call kernels."""
    import torch

    arguments = subject.draw(draw, 80 if subject.row.loss is polyloss.info_nce else 5000)
    formula = subject.on(Route("torch", "generic", subject.route.device))
    value, slopes = formula.value_and_gradients(arguments)
    given = subject.given(arguments, {})
    wrt = subject.row.floating(arguments)

    def of(*arrays: Any) -> Any:
        return subject.row.loss(**given | dict(zip(wrt, arrays)))

    torch._dynamo.reset()
    compiler = {"fullgraph": True, "dynamic": False, "backend": "aot_eager"}  # all but the writing of machine code
    has_kernels = subject.row.loss.__name__ in COMPILED  # for a gradient in the predictions alone
    for moving in dict.fromkeys((wrt, wrt[:1] if has_kernels else wrt)):
        leaves = [given[key].detach().requires_grad_(key in moving) for key in wrt]
        got = torch.compile(of, **compiler)(*leaves)
        got.backward()
        subject.close(got, value, "the value")
        for x, key in zip(leaves, moving):
            assert x.grad is not None, f"there is no gradient in {key}"
            subject.close(x.grad, slopes[key], f"the gradient in {key}", factor=10)
    if has_kernels:
        slope = torch.compile(torch.func.grad(of), **compiler)(*(given[key] for key in wrt))
        subject.close(slope, slopes[wrt[0]], "func.grad's gradient", factor=10)


def _narrow(route: Route, dtype: str, function: str) -> str:
    asked = route.library == "torch" and route.path == "kernel" and dtype in ("float16", "bfloat16")
    return "" if asked else "it is asked of the kernel path of torch in 16 bits alone"


@law("loss scale", _narrow, once=True, functions=("softmax_cross_entropy", "sigmoid_cross_entropy", "bpr"))
def loss_scale(subject: Subject, draw: Draw) -> None:
    """A gradient too small for 16 bits comes back whole, times a large number from above."""
    scale = 2.0**14
    x = {"softmax_cross_entropy": [[14.0, 0.0]], "sigmoid_cross_entropy": [14.0], "bpr": [14.0]}[
        subject.row.loss.__name__
    ]
    target = {"softmax_cross_entropy": np.array([0]), "sigmoid_cross_entropy": np.array([1.0]), "bpr": np.array([0.0])}
    given = subject.route.array(rounded(np.array(x), subject.dtype), subject.dtype).requires_grad_()
    other = subject.route.array(target[subject.row.loss.__name__], subject.dtype)
    (scale * subject.row.loss(given, other)).backward()
    small = 1 / (1 + np.exp(14.0))  # the probability of what is wrong
    expected = scale * small * (np.array([[-1.0, 1.0]]) if given.ndim == 2 else np.array([-1.0]))
    resolution = 2.0 ** (-10 if subject.dtype == "float16" else -7)
    compare(given.grad, expected, "the gradient, scaled", subject.dtype, resolution * np.abs(expected))
