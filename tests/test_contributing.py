"""The loss that CONTRIBUTING shows is complete: it works in every library, with every reduction, and is right.

And what mutmut gets is what is tested otherwise.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutate import undecorated

import polyloss
from polyloss import gradients
from polyloss.conformance.routes import from_numpy, installed, to_numpy

GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def squared_error() -> Iterator[Any]:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {"__name__": "toy"}
    exec(code, names)  # the guide's own text
    yield names["squared_error"]
    del gradients._FORMULAS[names["squared_error"]]


@pytest.mark.parametrize("library", installed())
def test_the_guides_loss_works_in_every_library(library: str, squared_error: Any) -> None:
    x, t = np.array([1.0, 2.0, np.nan, 5.0], "f"), np.array([0, 2, 1, 1])
    keep, weights = np.array([True, True, False, True]), np.array([1.0, 1.0, 7.0, 0.5], "f")
    given = [from_numpy(library, a) for a in (x, t)]
    options = {"where": from_numpy(library, keep), "weights": from_numpy(library, weights)}
    value, gradient = polyloss.value_and_grad(squared_error)(*given, **options)
    assert to_numpy(value) == np.float32(9.0 / 2.5)
    np.testing.assert_allclose(to_numpy(gradient), np.array([2.0, 0.0, 0.0, 4.0], "f") / 2.5, rtol=1e-6)
    none = squared_error(*given, **options, reduction="none")
    np.testing.assert_array_equal(to_numpy(none), [1.0, 0.0, 0.0, 8.0])


def test_the_guides_loss_is_differentiated_by_torch_and_jax(squared_error: Any) -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: squared_error(x, t), (x,))
    hessian = jax.hessian(lambda x: squared_error(x, jax.numpy.zeros(2), reduction="sum"))(jax.numpy.ones(2))
    np.testing.assert_array_equal(hessian, [[2.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="targets must have the shape of predictions"):
        squared_error(x, t[:1])


def test_the_copy_that_is_mutated_has_the_same_functions_decorated_later() -> None:
    for file in Path(polyloss.__file__).parent.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        before, after = ast.parse(source).body, ast.parse(undecorated(source)).body
        for node in (node for node in before if isinstance(node, ast.FunctionDef)):
            decorators, node.decorator_list = node.decorator_list, []
            place = [ast.unparse(one) for one in after].index(ast.unparse(node))
            if decorators:
                (decorator,) = map(ast.unparse, decorators)
                assert ast.unparse(after[place + 1]) == f"{node.name} = {decorator}({node.name})"
