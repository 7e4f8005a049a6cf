"""Where a report was made: versions, devices, processor, threads."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

__all__ = ["describe"]


@functools.cache
def describe() -> dict[str, Any]:
    """The environment, as the report has it."""
    from polyloss.dispatch import kernels
    from polyloss.environment import paths
    from polyloss.version import __version__

    host = kernels("host")
    libraries = []
    for path in paths():
        found = asdict(path)
        found["paths"] = found.pop("taken")
        libraries.append(found)
    return {
        "polyloss": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "kernels": "" if host is None else host.report(),
        "libraries": libraries,
    }


def _processor() -> str:
    """As Linux calls it; the standard library knows no name there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
