"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOST", "KERNELS", "LIBRARIES", "Fault"]

LIBRARIES = ("numpy", "cupy", "torch", "jax", "dask")
"""Where a fault of a formula can show: everywhere."""

KERNELS = ("numpy", "torch", "jax", "dask")
"""Where a fault of a kernel for host memory can show: also in JAX's programs, and in the blocks of Dask."""

HOST = ("numpy", "torch", "dask")
"""Where a fault in what brings arrays to these kernels can show: JAX brings them by a way of its own."""


@dataclass(frozen=True)
class Fault:
    """A mistake that a programmer, a compiler or a platform could make, as a patch of one place in one file."""

    name: str
    """What is wrong, in words."""

    file: str
    """Within the package as it is installed: ``primitives.py``, ``backends/cpu/rows.py``."""

    old: str
    """What stands there, once in the file."""

    new: str
    """What takes its place."""

    lives: tuple[str, ...] = LIBRARIES
    """The libraries in which it can show; where none of them is installed there is nothing to be seen."""

    processors: int = 1
    """How many it takes for it to show."""

    def plant(self, package: Path, *, dry: bool = False) -> None:
        """Patches that file of a copy of the package, or with ``dry`` only looks whether it can.

        `ValueError` where the old text is not there exactly once.
        """
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} must contain {self.old!r} once, found {count} times")
        if not dry:
            path.write_text(text.replace(self.old, self.new), encoding="utf-8")
