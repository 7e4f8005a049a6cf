"""Where compiled kernels are kept, and which files they count as made of. `test_compiled` has the files themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polyloss.backends.cache import Sources, folder, whereabouts


def test_an_import_of_any_form_counts_and_so_does_what_it_imports(tmp_path: Path) -> None:
    forms = (
        "from polyloss.backends.cpu.helper import (\n    exp,\n    log,\n)",
        "from polyloss.backends.cpu import (\n    other,\n    helper as h,\n)",
        "import os, polyloss.backends.cpu.helper as h",
        "from . import helper",
        "from .helper import exp",
        "def build():\n    from polyloss.backends.cpu import helper",
        "if True:\n    from polyloss.backends.cpu \\\n        import helper",
    )
    for name in ("compiled", "beside"):
        (tmp_path / f"{name}.py").touch()
    for text in (*forms, "import deep", "import kernel"):  # a circle, at last
        (tmp_path / "kernel.py").write_text(text if text in forms else forms[0])
        (tmp_path / "helper.py").write_text("" if text in forms else text)
        (tmp_path / "deep.py").touch()
        expected = {"compiled", "kernel", "helper", *(["deep"] if text == "import deep" else [])}
        assert {path.stem for path in Sources(tmp_path).of(["compiled", "kernel"])} == expected, text


def test_the_folder_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("POLYLOSS_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert folder() == tmp_path / ".cache" / "polyloss"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "polyloss"
    assert whereabouts() == f"kept in {folder()}"
    monkeypatch.setenv("POLYLOSS_CACHE_DIR", str(tmp_path / "own"))
    assert folder() == tmp_path / "own"
    monkeypatch.delenv("POLYLOSS_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert folder() == tmp_path / "Library" / "Caches" / "polyloss"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert folder() == tmp_path / "local" / "polyloss"
    monkeypatch.delenv("LOCALAPPDATA")
    assert folder() is None
    assert whereabouts() == "compiled anew in every process (no cache folder)"
