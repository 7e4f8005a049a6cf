"""``python -m benchmarks.gpu``: correctness, speed, sanitizers. ``--dry-run`` needs no GPU."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

MEASURED, COMPARED = 0.55, 0.8
"""The parts of the time after which no further workload, and no further cell of conformance, is begun."""

RESULTS = Path(__file__).parent.parent / "results"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="in the simulator, in small sizes: no result")
    parser.add_argument("--level", choices=("quick", "standard", "thorough"), default="quick", help="of conformance")
    parser.add_argument("--only", default="", help="a regular expression that chooses workloads")
    parser.add_argument("--seconds", type=float, default=12, help="for each workload")
    parser.add_argument("--minutes", type=float, default=10, help="for everything")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu", help="without the suffix")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something is wrong."""
    options = _parse(arguments)
    if options.dry_run:  # before anything of the kernels is imported
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of the memory for itself
    from benchmarks.gpu import report
    from benchmarks.gpu.contestants import contestants, release
    from benchmarks.gpu.correctness import Check, checks, conforming
    from benchmarks.gpu.libraries import devices
    from benchmarks.gpu.sanitizer import sanitized
    from benchmarks.gpu.timing import measure
    from benchmarks.gpu.workloads import WORKLOADS

    start = time.perf_counter()
    libraries = devices(options.dry_run)
    head = report.header(libraries, options.dry_run)
    found: list[Check] = []
    results: list[tuple[object, object]] = []

    def left(part: float) -> float:
        return max(0.0, 60 * options.minutes * part - (time.perf_counter() - start))

    def save() -> None:  # after every step, so that an interrupted run keeps what it has
        options.output.parent.mkdir(parents=True, exist_ok=True)
        for suffix, make in ((".json", report.as_json), (".html", report.as_html), (".txt", report.as_text)):
            options.output.with_suffix(suffix).write_text(make(head, found, results), encoding="utf-8")  # type: ignore[arg-type]

    report_at = options.output.with_name(options.output.name + "-conformance")

    def ask(asked: Iterable[Check]) -> None:
        for check in asked:
            found.append(check)
            print(f"{check.outcome[:60]:12} {check.name} ({check.seconds:.1f} s)", flush=True)
        save()

    ask(itertools.chain(*map(checks, libraries)))
    for workload in WORKLOADS:
        if not re.search(options.only, workload.name):
            continue
        given = workload.small() if options.dry_run else workload
        if not left(MEASURED):
            found.append(Check(workload.name, "NOT RUN: the time is up"))
            continue
        results.append((given, measure(given, contestants(given, libraries), options.seconds, options.dry_run)))
        release()
        _release()
        save()
    ask(conforming(libraries, options.level, options.dry_run, report_at, left(COMPARED)))
    ask(sanitized(libraries, options.dry_run, left(1)))
    print(report.as_text(head, found, results))  # type: ignore[arg-type]
    return int(any(check.outcome.startswith("FAILED") for check in found))


def _release() -> None:
    """Gives the pools of one workload back, for the next one may be another library's."""
    for name, release in (("torch", "cuda.empty_cache"), ("cupy", "get_default_memory_pool")):
        module = sys.modules.get(name)
        if module is None:
            continue
        target = module
        for part in release.split("."):
            target = getattr(target, part)
        pool = target()  # type: ignore[operator]
        if pool is not None:
            pool.free_all_blocks()


if __name__ == "__main__":
    sys.exit(main())
