"""Mutation testing: ``python tests/mutate.py`` makes each small change of the formulas and asks whether a test notices.

mutmut does it, by its options in ``pyproject.toml``, and runs ``mutants.py`` on each change. It changes what is in one
folder, and no function with a decorator. So it gets a copy, ``build/mutation``, that is one tree with the losses
decorated below their definitions. Arguments are those of mutmut: ``run PATTERN``, ``results``, ``show NAME``.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "mutation"


def undecorated(source: str) -> str:
    """The same module; its functions are decorated below their definitions."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            decorated = node.name
            for decorator in reversed(node.decorator_list):
                decorated = f"{ast.unparse(decorator)}({decorated})"
            lines.insert(node.end_lineno or 0, f"\n\n{node.name} = {decorated}")
            del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def prepare() -> None:
    """The copy."""
    package = PLACE / "polyloss"
    for folder, to in (
        ("polyloss", package),
        ("backends", package / "backends"),
        ("conformance", package / "conformance"),
    ):
        shutil.copytree(ROOT / folder, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in package.glob("*.py"):
        file.write_text(undecorated(file.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copytree(ROOT / "tests", PLACE / "tests", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", PLACE)


if __name__ == "__main__":
    prepare()
    sys.exit(subprocess.call([sys.executable, "-m", "mutmut", *(sys.argv[1:] or ["run"])], cwd=PLACE))
