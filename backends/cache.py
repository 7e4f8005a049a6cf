"""Compiled kernels on disk, in files that are never stale.

Numba's own cache would not do: it takes a kernel for unchanged when a helper in another file was edited, fails where no
folder can be written, and needs Numba itself to be imported (0.3 s) and set up (0.3 s) to load anything. Here a file's
name holds the hash of everything that its contents depend on: the sources of the kernel, which are the modules of one
package and what they import from it; Python, the compilers and their settings; and the processor. A file that is
damaged, or cannot be written, is made anew.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["Sources", "folder", "surroundings", "whereabouts"]


def folder() -> Path | None:
    """Where compiled kernels are kept; None where there is no such place."""
    if given := os.environ.get("POLYLOSS_CACHE_DIR"):
        return Path(given)
    try:
        if sys.platform == "win32":
            base = Path(os.environ["LOCALAPPDATA"])
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except (KeyError, RuntimeError):  # no home
        return None
    return base / "polyloss"


def whereabouts() -> str:
    """What becomes of compiled kernels, for a report."""
    where = folder()
    return f"kept in {where}" if where is not None else "compiled anew in every process (no cache folder)"


_HARMLESS = ("NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CACHE_DIR")
"""Numba's settings that change no machine code."""


def surroundings(*facts: Any) -> bytes:
    """What compiled code depends on beside its sources: these facts, the system, Python, and Numba's settings."""
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k not in _HARMLESS)
    return repr((facts, platform.machine(), sys.platform, platform.python_version(), settings)).encode()


class Sources:
    """The files of a package, if there are any, as they were when this process imported it."""

    def __init__(self, package: Path) -> None:
        self.texts = {path: path.read_bytes() for path in package.glob("*.py")}

    def of(self, modules: Iterable[str]) -> list[Path]:
        """The files of these modules of the package, and of what they import from it."""
        found: set[Path] = set()
        named = frozenset(modules)
        while new := {path for path in self.texts if path.stem in named} - found:
            found |= new
            named = frozenset().union(*(_imports(self.texts[path]) for path in new))
        return sorted(found)

    def fingerprint(self, modules: Iterable[str], given: bytes) -> str:
        """A hash of the sources of these modules, and of what is given beside them."""
        digest = hashlib.sha256(given)
        for path in self.of(modules):
            digest.update(self.texts[path])
        return digest.hexdigest()[:32]

    def kept(
        self, key: Iterable[object], suffix: str, modules: Iterable[str], given: bytes, make: Callable[[], bytes]
    ) -> bytes:
        """What ``make`` makes of these modules for that key: from its file, or made and, if possible, written there."""
        where, made_of = folder(), self.of(modules)
        if where is None or not made_of:
            return make()
        path = where / f"{'-'.join(map(str, key))}-{self.fingerprint(modules, given)}{suffix}"
        try:
            checksum, code = (content := path.read_bytes())[:32], content[32:]
            if hashlib.sha256(code).digest() == checksum:
                return code
        except OSError:
            pass
        code = make()
        with contextlib.suppress(OSError):  # a read-only file system, a full disk: made anew in every process
            if all(source.read_bytes() == self.texts[source] for source in made_of):  # else it is of an edit
                _write(path, hashlib.sha256(code).digest() + code)
        return code


@functools.cache
def _imports(text: bytes) -> frozenset[str]:
    """Every name in a file's imports, also in those of its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update((getattr(node, "module", None) or "").split("."))
            names.update(word for alias in node.names for word in alias.name.split("."))
    return frozenset(names)


def _write(path: Path, content: bytes) -> None:
    """Writes the file at once, so that no other process ever sees a part of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
