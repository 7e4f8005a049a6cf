"""An array library that polyloss has never heard of works, by the array API standard alone."""

from __future__ import annotations

import io
import re
import sys
import tokenize
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss.conformance.losses import LOSSES

STANDARD = """
abs all any arange argmax astype broadcast_to clip concat exp expand_dims finfo full full_like isdtype log log1p
matmul matrix_transpose max maximum min minimum ones ones_like permute_dims reshape sqrt sum where zeros zeros_like
bool float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 asarray
""".split()


class Array:
    """A wrapper around NumPy's array that knows the standard's operators and nothing else."""

    def __init__(self, inner: np.ndarray) -> None:
        self._inner = np.asarray(inner)

    dtype = property(lambda self: self._inner.dtype)
    shape = property(lambda self: self._inner.shape)
    ndim = property(lambda self: self._inner.ndim)
    device = property(lambda self: "somewhere")

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return sys.modules["quokka"]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise AssertionError("a copy to NumPy")

    def __bool__(self) -> bool:
        raise AssertionError("a value was looked at")

    def __getitem__(self, key: Any) -> Array:
        return Array(self._inner[key])


def _operator(name: str) -> Any:
    def apply(self: Array, *others: Any) -> Array:
        if not all(isinstance(x, (Array, int, float, bool)) for x in others):
            return NotImplemented
        return Array(getattr(self._inner, name)(*(unwrapped(x) for x in others)))

    return apply


for _name in ["add", "sub", "mul", "truediv", "pow", "neg", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "invert"]:
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ["add", "sub", "mul", "truediv", "pow", "and", "or"]:
    setattr(Array, f"__r{_name}__", _operator(f"__r{_name}__"))


def unwrapped(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(unwrapped(v) for v in x)
    return x._inner if isinstance(x, Array) else x


def _function(name: str) -> Any:
    def call(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        assert device in (None, "somewhere")
        result = getattr(np, name)(*(unwrapped(x) for x in args), **{key: unwrapped(x) for key, x in kwargs.items()})
        return Array(result) if isinstance(result, (np.ndarray, np.generic)) else result

    return call


@pytest.fixture
def quokka(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The library, under its own name in sys.modules."""
    module = types.ModuleType("quokka")
    for name in STANDARD:
        found = getattr(np, name)
        setattr(module, name, found if isinstance(found, type) or name in ("isdtype", "finfo") else _function(name))
    monkeypatch.setitem(sys.modules, "quokka", module)
    return module


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_gradient(name: str, quokka: types.ModuleType) -> None:
    row = LOSSES[name]
    arguments = row.arguments(0, 4, "float32")
    wrt = row.floating(arguments)
    options = {"where": np.array([True, False, True, True]), "weights": np.array([1.0, 2.0, 3.0, 4.0], "f")}
    expected, slopes = polyloss.value_and_grad(row.loss, wrt)(**arguments, **options, **row.options)
    given = {key: Array(x) for key, x in (arguments | options).items()}
    value, gradients = polyloss.value_and_grad(row.loss, wrt)(**given, **row.options)
    assert isinstance(value, Array)
    np.testing.assert_allclose(value._inner, expected, rtol=2e-6)
    for gradient, slope in zip(gradients, slopes):
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient._inner, slope, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"])
def test_every_transform(name: str, quokka: types.ModuleType) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    transform = getattr(polyloss, name)
    np.testing.assert_allclose(transform(Array(x))._inner, transform(x), rtol=2e-6)


def test_values_that_cannot_be_looked_at_make_their_own_item_nan(quokka: types.ModuleType) -> None:
    """Nothing says where this library's numbers live, so none is looked at."""
    logits = Array(np.zeros((3, 2), np.float32))
    items = polyloss.softmax_cross_entropy(logits, Array(np.array([0, 5, 1])), reduction="none")
    np.testing.assert_array_equal(np.isnan(items._inner), [False, True, False])


def test_nothing_outside_the_backends_names_an_array_library() -> None:
    """But for the table of dispatch, NumPy's own reading of Python numbers, and the report and the demo on top."""
    names = re.compile(r"\b(torch|jax|jaxlib|cupy|dask)\b")
    folder = Path(polyloss.__file__).parent
    for path in folder.glob("*.py"):
        if path.stem in ("dispatch", "environment"):
            continue
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.NAME or (token.type == tokenize.STRING and not token.string.startswith('"""')):
                assert not names.search(token.string), f"{path.name} line {token.start[0]}"


def test_a_library_with_an_entry_point_is_asked(monkeypatch: pytest.MonkeyPatch, quokka: types.ModuleType) -> None:
    from polyloss import backends, dispatch

    class Known(backends.Library):
        def scope(self, x: Any) -> Any:
            entered.append(True)
            return super().scope(x)

    class Point:
        def load(self) -> backends.Library:
            return Known(quokka)

    class Other(Array):
        pass

    entered: list[bool] = []
    Other.__module__ = "quokka.arrays"
    monkeypatch.setattr(dispatch, "entry_points", lambda group, name: [Point()] if name == "quokka" else [])
    polyloss.sigmoid_cross_entropy(Other(np.zeros(3, np.float32)), [0, 1, 1])
    assert entered
