"""What must be settled before NumPy and its peers are imported: the number of threads, and a sound environment.

Nothing here may import more than the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

__all__ = ["cores", "prepare", "unset_variables"]

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""They make OpenBLAS choose kernels or blocks for another processor, which slows NumPy's matrix products alone."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
REMEMBERED = "POLYLOSS_BENCHMARKS_UNSET"


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(threads: int) -> None:
    """Gives every library the same number of threads; starts Python anew where the environment would slow one.

    XLA has no option for its number of threads: it takes as many as the process has cores. So a smaller number confines
    the whole process, and every contestant with it, to so many cores.
    """
    found = {name: os.environ[name] for name in SLOWING if name in os.environ}
    if found:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _without(found))
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no compiler may run beside a measurement
    if threads < cores() and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _without(found: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in found}
    return kept | {REMEMBERED: ", ".join(f"{name}={value}" for name, value in found.items())}


def unset_variables() -> str:
    """The variables that `prepare` took out of the environment, with their values, or an empty string."""
    return os.environ.get(REMEMBERED, "")
