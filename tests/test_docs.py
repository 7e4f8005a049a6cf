"""What the documentation says is true: every example in it runs, and every public name has a complete docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import polyloss
from polyloss import diagnostics

ROOT = Path(__file__).parent.parent
MODULES = """calibration classification contrastive evaluation gradients metrics ranking retrieval transforms
    diagnostics.change diagnostics.reliability diagnostics.shares""".split()
BLOCKS = re.compile(r"```(python|pycon)\n(.*?)```", re.S)
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
FUNCTIONS = {
    f.__name__: f
    for module in (polyloss, diagnostics)
    for f in (getattr(module, name) for name in module.__all__)
    if inspect.isfunction(f)
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"polyloss.{name}"))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_docstring_is_complete(name: str) -> None:
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"\n{section}\n---" in text, section
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^([\w, ]+, )?[*]*{parameter}(, [\w, ]+)?( :|$)", text, re.M), parameter
    assert not re.search(r"\{[a-z]+\}", text), "a placeholder is left"


@pytest.mark.parametrize("path", [path for path, text in DOCUMENTS.items() if BLOCKS.search(text)])
def test_the_code_in_the_documents_runs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one document run in order, in one namespace, as a reader would run them; output is compared."""
    torch, *_ = (pytest.importorskip(name) for name in ("torch", "jax", "optax", "dask", "sklearn", "matplotlib"))
    module = ModuleType("document")  # what pickle and Dynamo look up by name, as in a reader's session
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = module.__dict__
    with np.printoptions(precision=6, suppress=False), torch.random.fork_rng():  # recipes seed torch
        for kind, code in BLOCKS.findall(DOCUMENTS[path]):
            if kind == "python":
                exec(compile(code, path, "exec"), names)
                continue
            test = doctest.DocTestParser().get_doctest(code, names, path, path, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            runner.run(test, clear_globs=False)
            names.update(test.globs)
            assert not runner.failures, code


@pytest.mark.parametrize("path", ["README.md", "docs/recipes.md", "docs/loss-and-metric.md"])
def test_a_document_with_code_is_found(path: str) -> None:
    assert BLOCKS.search(DOCUMENTS[path])


def test_a_section_that_a_link_names_exists() -> None:
    """By the name that GitHub gives to a heading."""
    for name, text in DOCUMENTS.items():
        for target, section in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", text):
            page = ((ROOT / name).parent / target).read_text("utf-8") if target else text
            headings = re.findall(r"^#+ (.*)$", page, re.M)
            assert section in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], (name, section)


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
