"""A call that is like an earlier one gives what it would have given as the first."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import textwrap
import warnings
import weakref
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import gradients, replay
from polyloss.dispatch import generic, library_of


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The replays that gave a result, and the shortcuts that were taken."""
    found: list[Any] = []
    serves = replay.Shortcut.serves

    def serve(self: replay.Shortcut, *arguments: Any) -> bool:
        served = serves(self, *arguments)
        if served:
            found.append(self)
        return served

    real = replay.Replay.__call__

    def call(self: replay.Replay, *arguments: Any) -> Any:
        result = real(self, *arguments)
        if result is not None:
            found.append(self)
        return result

    monkeypatch.setattr(replay.Replay, "__call__", call)
    monkeypatch.setattr(replay.Shortcut, "serves", serve)
    polyloss.bpr(X, X)  # the first call of all makes the library known
    return found


RNG = np.random.default_rng(0)
X, OTHER = RNG.standard_normal((2, 6, 5)).astype(np.float32) * 3
Y = np.array([0, 4, 1, 1, 3, 2])


def fresh(loss: Any, *args: Any, **options: Any) -> Any:
    gradients._with_gradients.cache_clear()
    return polyloss.value_and_grad(loss)(*args, **options)


def same(got: Any, expected: Any) -> None:
    for one, two in zip(got, expected):
        assert type(one) is type(two)
        assert one.dtype == two.dtype
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_a_replay_has_the_bits_of_a_first_call(options: dict[str, Any], replayed: list[Any]) -> None:
    for loss, targets in ((polyloss.softmax_cross_entropy, Y), (polyloss.sigmoid_cross_entropy, (X > 0) * 1.0)):
        compute = polyloss.value_and_grad(loss)
        compute(X, targets, **options)
        replayed.clear()
        same(compute(OTHER, targets, **options), fresh(loss, OTHER, targets, **options))
        assert len(replayed) == 1
        for layout in (np.asfortranarray(OTHER), OTHER[:, ::-1], np.repeat(OTHER, 2, axis=0)[::2]):
            same(compute(layout, targets, **options), fresh(loss, layout, targets, **options))


def test_a_first_call_by_the_formula_does_not_keep_the_next_from_being_replayed(replayed: list[Any]) -> None:
    compute = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    with generic():
        compute(X, Y)
    compute(X, Y)
    assert replayed == []
    compute(X, Y)
    assert len(replayed) == 1


def test_a_first_call_by_the_formula_does_not_keep_jax_from_compiling_the_next_as_a_whole(replayed: list[Any]) -> None:
    jnp = pytest.importorskip("jax.numpy")
    known = inspect.getclosurevars(polyloss.softmax_cross_entropy).nonlocals["replays"]
    x, y = jnp.asarray(X), jnp.asarray(Y)
    with generic():
        polyloss.softmax_cross_entropy(x, y)
    assert not known
    polyloss.softmax_cross_entropy(x, y)
    assert [type(one) for one in known.values()] == [replay.Whole]


def test_an_invalid_target_is_named_in_a_replay_too(replayed: list[Any]) -> None:
    compute = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    compute(X, Y)
    with pytest.raises(ValueError, match=r"targets must be class indices in \[0, 5\), got 9 at index \(2,\)"):
        compute(X, np.where(np.arange(6) == 2, 9, Y))
    assert replayed == []
    compute(X, Y)
    assert len(replayed) == 1


def test_what_differs_is_not_replayed(replayed: list[Any]) -> None:
    compute = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    unaligned = np.zeros(6, dtype=[("pad", "i1"), ("x", "5f4")])["x"]
    unaligned[...] = X
    compute(X, Y)
    for args, options in (
        ((X.astype(np.float64), Y), {}),
        ((X[:3], Y[:3]), {}),
        ((X, Y.astype(np.int32)), {}),
        ((X, Y), {"label_smoothing": 0.25}),
        ((X, Y), {"z_loss": 1}),
        ((X, Y), {"weights": np.ones(6)}),
        ((X, list(Y)), {}),
        ((unaligned, Y), {}),
        ((), {"logits": X, "targets": Y}),
    ):
        same(compute(*args, **options), fresh(polyloss.softmax_cross_entropy, *args, **options))
    assert replayed == []


def test_what_is_computed_from_the_arguments_is_not_replayed(replayed: list[Any]) -> None:
    for loss in (polyloss.bpr, polyloss.pairwise_hinge, polyloss.info_nce, polyloss.binary_log_loss):
        compute = polyloss.value_and_grad(loss)
        p = np.linspace(0.1, 0.9, 6).reshape(2, 3)
        for _ in range(3):
            compute(p, p[::-1])
    assert replayed == []


def test_the_generic_path_is_not_replayed(replayed: list[Any]) -> None:
    compute = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    compute(X, Y)
    with generic():
        compute(X, Y)
    assert replayed == []


def test_the_memory_of_calls_is_bounded() -> None:
    compute = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
    for n in range(1, replay.MOST + 20):
        compute(np.zeros(n), np.zeros(n))
    assert 0 < len(inspect.getclosurevars(compute).nonlocals["replays"]) <= replay.MOST


def test_a_loss_itself_is_replayed(replayed: list[Any]) -> None:
    for loss, targets in ((polyloss.softmax_cross_entropy, Y), (polyloss.sigmoid_cross_entropy, (X > 0) * 1.0)):
        for options in ({}, {"reduction": "none"}, {"denominator": 3.0, "label_smoothing": 0.1}):
            loss(X, targets, **options)
            replayed.clear()
            value = loss(OTHER, targets, **options)
            assert len(replayed) == ("denominator" not in options)
            with generic():
                np.testing.assert_allclose(value, loss(OTHER, targets, **options), rtol=1e-6)
    with pytest.raises(ValueError, match=r"targets must be class indices in \[0, 5\), got -1 at index \(0,\)"):
        polyloss.softmax_cross_entropy(X, Y - 1)


def test_a_replay_in_torch_is_differentiable_as_often_as_the_first_call(replayed: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    loss, y = polyloss.softmax_cross_entropy, torch.from_numpy(Y)
    library_of(y)  # what is not known yet is not recorded
    for options in ({}, {"reduction": "none"}, {"reduction": "sum", "z_loss": 0.1}):
        for rows in (6, backend_small() // 5 + 6):  # small ones keep their gradient
            x = torch.from_numpy(np.resize(X, (rows, 5)).astype(np.float64)).requires_grad_()
            labels = y.repeat(-(-rows // 6))[:rows]
            replayed.clear()
            derivatives = []
            for _ in range(2):
                value = loss(x, labels, **options)
                cotangent = torch.linspace(1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
                (g,) = torch.autograd.grad(value, x, cotangent, create_graph=True)
                (h,) = torch.autograd.grad((g**2).sum(), x)
                (plain,) = torch.autograd.grad(loss(x, labels, **options), x, cotangent)
                torch.testing.assert_close(plain, g)
                derivatives.append((value, g, h))
            assert len(replayed) == 3
            torch.testing.assert_close(*derivatives)
    with torch.no_grad():
        for _ in range(3):
            assert not loss(x, labels).requires_grad
    for _ in range(3):
        assert loss(x, labels).requires_grad


def test_targets_that_come_to_need_a_gradient_get_it(replayed: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    x, t = torch.from_numpy(X), torch.softmax(torch.from_numpy(OTHER), -1)
    library_of(x)
    for loss in (polyloss.softmax_cross_entropy, polyloss.sigmoid_cross_entropy):
        for first in (x, x.clone().requires_grad_()):
            loss(first, t)
            loss(first, t)
            own = t.clone().requires_grad_()
            loss(first, own).backward()
            torch.testing.assert_close(own.grad, polyloss.grad(loss, "targets")(x, t))


def backend_small() -> int:
    from polyloss.backends import torch as backend

    return int(backend.SMALL)


def test_torchs_modes_are_not_replayed(replayed: list[Any]) -> None:
    torch = pytest.importorskip("torch")

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    loss, x, y = polyloss.softmax_cross_entropy, torch.from_numpy(X), torch.from_numpy(Y)
    library_of(x)
    loss(x, y)
    loss(x, y)
    assert len(replayed) == 1
    torch.func.grad(loss)(x, y)
    torch.func.vmap(loss)(torch.stack([x, x]), torch.stack([y, y]))
    torch.func.jvp(lambda x: loss(x, y), (x,), (x,))
    with Watching():
        loss(x, y)
    loss(torch._neg_view(x), y)
    assert len(replayed) == 1


def test_a_gradient_by_a_small_ones_product_keeps_sixteen_bits(replayed: list[Any]) -> None:
    """A scaled loss must not meet a gradient that has vanished in half precision already."""
    torch = pytest.importorskip("torch")
    x = torch.tensor([[12.0, 0.0, -3.0]] * 100, dtype=torch.float16, requires_grad=True)
    for _ in range(2):
        x.grad = None
        (2.0**15 * polyloss.softmax_cross_entropy(x, torch.zeros(100, dtype=torch.int64))).backward()
        exact = 2.0**15 / 100 * np.exp(-15) / (1 + np.exp(-12) + np.exp(-15))
        np.testing.assert_allclose(x.grad[0, 2].item(), exact, rtol=1e-3)


def test_a_kernel_that_was_not_available_once_is_not_replayed_as_another(
    replayed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The items then came from a kernel after all, and the reduction from elsewhere."""
    from polyloss.backends import Unavailable
    from polyloss.backends.cpu.lse import Lse

    real, calls = Lse.value, []

    def value(self: Any, work: Any, **options: Any) -> Any:
        calls.append(work.divisor)
        if len(calls) == 1:
            raise Unavailable("once")
        return real(self, work, **options)

    monkeypatch.setattr(Lse, "value", value)
    first = polyloss.softmax_cross_entropy(X, Y)
    assert calls == [6, None]
    second = polyloss.softmax_cross_entropy(X, Y)
    assert np.ndim(second) == 0
    np.testing.assert_allclose(second, first, rtol=1e-6)


def shortcuts(found: list[Any]) -> int:
    return sum(isinstance(one, replay.Shortcut) for one in found)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_shortcut_has_the_bits_of_a_first_call(library: str, dtype: str, replayed: list[Any]) -> None:
    asarray = np.asarray if library == "numpy" else pytest.importorskip("torch").from_numpy
    x, other = X.astype(dtype), OTHER.astype(dtype)
    soft = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    library_of(asarray(x))
    for loss, targets, options in (
        (polyloss.softmax_cross_entropy, Y, {}),
        (polyloss.softmax_cross_entropy, Y.astype(np.int32), {"reduction": "sum", "z_loss": 0.25}),
        (polyloss.softmax_cross_entropy, Y, {"label_smoothing": 0.1}),
        (polyloss.softmax_cross_entropy, soft, {}),
        (polyloss.sigmoid_cross_entropy, soft, {"label_smoothing": 0.1}),
        (polyloss.sigmoid_cross_entropy, x > 0, {"reduction": "sum"}),
    ):
        compute, y = polyloss.value_and_grad(loss), asarray(targets)
        for _ in range(2):
            compute(asarray(x), y, **options)
            loss(asarray(x), y, **options)
        replayed.clear()
        value, gradient = compute(asarray(other), y, **options)
        alone = loss(asarray(other), y, **options)
        assert shortcuts(replayed) == 2
        first, expected = fresh(loss, asarray(other), y, **options)
        assert type(value) is type(first) is type(alone)
        assert value.dtype == first.dtype
        assert gradient.dtype == expected.dtype
        assert float(value) == float(first) == float(alone)
        np.testing.assert_array_equal(np.asarray(gradient), np.asarray(expected))


def test_an_invalid_target_is_named_in_a_shortcut_too(replayed: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    for asarray in (np.asarray, torch.from_numpy):
        x, bad = asarray(X), asarray(np.where(np.arange(6) == 2, 9, Y))
        library_of(x)
        for loss in (polyloss.softmax_cross_entropy, polyloss.value_and_grad(polyloss.softmax_cross_entropy)):
            for _ in range(3):
                loss(x, asarray(Y))
            replayed.clear()
            with pytest.raises(ValueError, match=r"targets must be class indices in \[0, 5\), got 9 at index \(2,\)"):
                loss(x, bad)
            assert shortcuts(replayed) == 1


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_differs_in_anything_takes_no_shortcut(library: str, replayed: list[Any]) -> None:
    asarray = np.asarray if library == "numpy" else pytest.importorskip("torch").from_numpy
    loss = polyloss.softmax_cross_entropy
    x, y = asarray(X), asarray(Y)
    library_of(x)
    for _ in range(3):
        loss(x, y, label_smoothing=0, z_loss=0.0)
    assert shortcuts(replayed) == 1
    square = asarray(np.ascontiguousarray(X[:5].T)).T
    for args, options in (
        ((x, y), {}),
        ((x, y), {"label_smoothing": 0.0, "z_loss": 0.0}),
        ((x, y), {"label_smoothing": 0, "z_loss": 0.5}),
        ((x, y), {"label_smoothing": 0, "z_loss": 0.0, "reduction": "sum"}),
        ((x, y), {"label_smoothing": 0, "weights": asarray(np.ones(6, np.float32))}),
        ((x,), {"label_smoothing": 0, "targets": y}),
        ((asarray(X.astype(np.float64)), y), {"label_smoothing": 0, "z_loss": 0.0}),
        ((x[:3], y[:3]), {"label_smoothing": 0, "z_loss": 0.0}),
        ((x, asarray(Y.astype(np.int32))), {"label_smoothing": 0, "z_loss": 0.0}),
        ((asarray(np.asfortranarray(X)), y), {"label_smoothing": 0, "z_loss": 0.0}),
        ((x, asarray(np.repeat(Y, 2))[::2]), {"label_smoothing": 0, "z_loss": 0.0}),
        ((square, y[:5]), {"label_smoothing": 0, "z_loss": 0.0}),
    ):
        replayed.clear()
        loss(*args, **options)
        assert shortcuts(replayed) == 0
        loss(x, y, label_smoothing=0, z_loss=0.0)  # so that it is the latest again
        loss(x, y, label_smoothing=0, z_loss=0.0)
        assert shortcuts(replayed)
    replayed.clear()
    with generic():
        loss(x, y, label_smoothing=0, z_loss=0.0)
    assert replayed == []
    np.testing.assert_allclose(float(loss(square, y[:5])), float(loss(np.asarray(square), Y[:5])), rtol=1e-6)


def test_torch_says_what_is_unlike_for_a_shortcut(replayed: list[Any]) -> None:
    """The look at the arrays is torch's own affair: what it must tell apart is told here."""
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd import forward_ad

    backend = pytest.importorskip("polyloss.backends.torch")
    assert backend._guards(), (
        "this version of torch has no such guards, so small losses take longer: see backends/torch.py"
    )

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    class Own(torch.Tensor):
        pass

    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    asked = x.clone().requires_grad_()
    for like in (x, asked):
        fits = backend.LIBRARY.guard(like, y)
        assert fits(like, y)
        assert fits(like.detach().clone().requires_grad_(like.requires_grad), y.clone())
        unlike = (
            asked if like is x else x,
            like.double(),
            like[:3],
            like.detach().t().contiguous().t(),
            torch._neg_view(like),
            like.detach().as_subclass(Own),
            torch.nn.Parameter(x),
            like.to("meta"),
            like.detach().to_sparse(),
        )
        assert [fits(other, y) for other in unlike] == [False] * len(unlike)
        assert not fits(like, y.int())
        seen = []

        def look(x: Any, fits: Any = fits, seen: list[bool] = seen, like: Any = like) -> Any:
            seen.extend([fits(x, y), fits(like, y)])
            return x.sum()

        torch.func.grad(look)(x)
        torch.func.vmap(look)(torch.stack([x, x]))
        torch.func.jvp(look, (x,), (x,))
        with Watching():
            look(like)
        with torch.inference_mode():
            look(like)
        with FakeTensorMode() as mode:
            seen.append(fits(mode.from_tensor(x), mode.from_tensor(y)))
        with forward_ad.dual_level():
            look(forward_ad.make_dual(x, x))
        with torch.set_grad_enabled(False):
            seen.append(fits(asked, y))
        assert seen == [False] * len(seen)
        assert len(seen) == 14
    assert backend.LIBRARY.guard(x.t(), y) is None


def test_a_shortcut_in_torch_is_differentiable_as_often_as_a_first_call(replayed: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    loss, y = polyloss.softmax_cross_entropy, torch.from_numpy(Y)
    library_of(y)
    x = torch.from_numpy(X.astype(np.float64)).requires_grad_()
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        found = []
        for _ in range(4):
            replayed.clear()
            (g,) = torch.autograd.grad(3 * loss(x, y, **options), x, create_graph=True)
            (h,) = torch.autograd.grad((g**2).sum(), x)
            (plain,) = torch.autograd.grad(3 * loss(x, y, **options), x, retain_graph=True)
            found.append((g, h, plain))
        assert shortcuts(replayed) == 2
        torch.testing.assert_close(found[-1], found[0])
        assert torch.autograd.gradcheck(lambda x: loss(x, y, **options), (x,))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda x: loss(x, y, **options), (x,))  # noqa: B023


def test_an_array_in_two_places_is_not_taken_for_one_in_a_later_call() -> None:
    p, a, b = np.random.default_rng(1).random((3, 4, 5))
    loss = polyloss.sigmoid_cross_entropy
    loss(p, p)
    loss(a, b, pos_weight=b)
    for options in ({}, {"pos_weight": p}):
        with generic():
            expected = loss(a, b, **options)
        np.testing.assert_allclose(loss(a, b, **options), expected, rtol=1e-12)


def test_a_replay_holds_no_array_of_its_first_call() -> None:
    x = X.copy()
    seen = weakref.ref(x)
    polyloss.softmax_cross_entropy(x, Y)
    del x
    gc.collect()
    assert seen() is None


def test_a_shortcut_is_not_taken_while_torch_traces_a_graph() -> None:
    torch = pytest.importorskip("torch")
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y, other = torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(OTHER)
    for _ in range(3):
        polyloss.softmax_cross_entropy(x, y)
    graph = make_fx(lambda x, y: polyloss.softmax_cross_entropy(x, y))(x, y)
    torch.testing.assert_close(graph(other, y), polyloss.softmax_cross_entropy(other, y))


@pytest.mark.parametrize("unusual", ["autocast", "inference mode", "a Parameter"])
def test_a_shortcut_that_serves_no_more_is_made_anew(unusual: str, replayed: list[Any]) -> None:
    """What it looks at is more than what a signature tells apart."""
    torch = pytest.importorskip("torch")
    loss, x, y = polyloss.softmax_cross_entropy, torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)
    library_of(y)
    if unusual == "autocast":
        with torch.autocast("cpu"):
            loss(x, y)
            loss(x, y)
    elif unusual == "inference mode":
        x = x.detach()
        with torch.inference_mode():
            loss(x, y)
            loss(x, y)
    else:
        parameter = torch.nn.Parameter(x.detach())
        loss(parameter, y)
        loss(parameter, y)
    replayed.clear()
    for _ in range(3):
        loss(x, y)
    assert shortcuts(replayed) == 2


def test_an_argument_of_torchs_tracer_is_not_made_a_constant() -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(3):
        polyloss.softmax_cross_entropy(x, y)
    other = torch.from_numpy(OTHER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its trace does not generalise over
        traced = torch.jit.trace(polyloss.softmax_cross_entropy, (x, y))
    torch.testing.assert_close(traced(other, y), polyloss.softmax_cross_entropy(other, y))


@pytest.mark.parametrize(
    "transform", ["torch.func.jvp(loss, (x,), (x,))", "torch.func.vmap(loss)(torch.stack([x, x]))"]
)
def test_the_first_call_of_all_may_be_one_under_a_transformation(transform: str) -> None:
    pytest.importorskip("torch")
    program = f"""
        import torch, polyloss
        x, y = torch.zeros(8, 10), torch.zeros(8, dtype=torch.int64)
        loss = lambda x: polyloss.softmax_cross_entropy(x, y)
        {transform}
        from polyloss.backends.torch import _guards
        assert _guards()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
