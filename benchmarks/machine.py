"""On what the figures were measured: the header of the output."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import polyloss
from benchmarks.options import Options
from benchmarks.process import unset_variables

__all__ = ["describe", "sentence"]

PACKAGES = ("numpy", "numba", "torch", "jax", "jaxlib", "optax", "scikit-learn", "scipy")


def describe(options: Options) -> dict[str, object]:
    """For JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "huge pages": _huge_pages(),
        "unset environment variables": unset_variables(),
        "quick": options.quick,
        "versions": {"python": platform.python_version(), "polyloss": polyloss.__version__}
        | {package: _version(package) for package in PACKAGES},
    }


def sentence(header: dict[str, object]) -> str:
    """For readers."""
    versions = header["versions"]
    assert isinstance(versions, dict)
    parts = [
        f"{header['cpu']} ({header['architecture']})",
        f"threads: {header['threads']} on {header['cores']} cores",
        str(header["date"]),
        *(f"{name} {number}" for name, number in versions.items()),
    ]
    if header["unset environment variables"]:
        parts.append(f"unset, because they slow OpenBLAS: {header['unset environment variables']}")
    if header["quick"]:
        parts.append("a quick run: no result")
    return ", ".join(parts) + "."


def _cpu() -> str:
    """The model's name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _huge_pages() -> str:
    """When Linux backs an array by huge pages: always, never, or on request, which NumPy makes and torch does not."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists():
        return "unknown"
    return setting.read_text(encoding="ascii").partition("[")[2].partition("]")[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
