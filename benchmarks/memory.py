"""Peak memory beside the inputs, in a process of its own for each contestant and workload.

``python -m benchmarks.memory CONTESTANT WORKLOAD THREADS`` prints the bytes, as `peak` reads them. The first call is
not counted, since it compiles. Then the kernel is told to forget the peak so far, and what it says after one more call
is the highest resident memory during that call, outputs included. This needs Linux.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.contestants import CONTESTANTS, Contestant, Run
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["LEAST", "MemoryUnknown", "highest", "peak"]

LEAST = 2_000_000
"""Bytes of logits below which nothing is measured: the kernel counts pages in batches of some 100 kB."""

CALLS = 3
TIMEOUT = 600

# glibc keeps freed memory of up to 32 MB for the next allocation, where a peak could hide.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}

ROOT = Path(__file__).parent.parent


class MemoryUnknown(Exception):
    """Why there is no number."""


def peak(contestant: Contestant, workload: Workload, threads: int) -> int:
    """The median over a few calls, in bytes. Raises `MemoryUnknown`."""
    if not Path("/proc/self/clear_refs").exists():
        raise MemoryUnknown("peak memory is measured on Linux only")
    command = [sys.executable, "-m", "benchmarks.memory", contestant.name, workload.name, str(threads)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=os.environ | ALLOCATOR, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise MemoryUnknown(f"it took more than {TIMEOUT} s") from None
    if done.returncode:
        raise MemoryUnknown((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return int(done.stdout.split()[-1])


def _peak_of(run: Run) -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = highest()
    result = run()
    after = highest()
    del result
    return after - before


def highest() -> int:
    """The highest resident memory since it was last forgotten, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _main(name: str, workload_name: str, threads: str) -> None:
    contestant = next(c for c in CONTESTANTS if c.name == name)
    workload = next(w for w in WORKLOADS if w.name == workload_name)
    run = contestant.prepare(workload, *workload.inputs(), int(threads))
    run()
    print(int(statistics.median(_peak_of(run) for _ in range(CALLS))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
