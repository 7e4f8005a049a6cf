"""What the documentation says is true: every example in it runs, and every public name has a complete docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import polyloss

ROOT = Path(__file__).parent.parent
MODULES = ["classification", "contrastive", "evaluation", "gradients", "ranking", "retrieval", "transforms"]
FUNCTIONS = [name for name in polyloss.__all__ if callable(getattr(polyloss, name))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"polyloss.{name}"))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_docstring_is_complete(name: str) -> None:
    function = getattr(polyloss, name)
    text = inspect.getdoc(function) or ""
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"\n{section}\n---" in text, section
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^([\w, ]+, )?{parameter}(, [\w, ]+)?( :|$)", text, re.M), parameter
    assert not re.search(r"\{[a-z]+\}", text), "a placeholder is left"


@pytest.mark.parametrize("path", ["README.md", "docs/dask.md"])
def test_the_code_in_the_documents_runs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one document run in order, in one namespace, as a reader would run them; output is compared."""
    for library in ("torch", "jax", "dask"):
        pytest.importorskip(library)
    text = (ROOT / path).read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": path}
    blocks = re.findall(r"```(python|pycon)\n(.*?)```", text, re.S)
    assert blocks
    with np.printoptions(precision=6, suppress=False):
        for kind, code in blocks:
            if kind == "python":
                exec(compile(code, path, "exec"), names)
                continue
            test = doctest.DocTestParser().get_doctest(code, names, path, path, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            runner.run(test, clear_globs=False)
            names.update(test.globs)
            assert not runner.failures, code


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
