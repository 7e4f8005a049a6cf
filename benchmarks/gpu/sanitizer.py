"""NVIDIA's compute-sanitizer on a short run of every kernel: memory and races."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.correctness import Check
from benchmarks.gpu.libraries import Device

__all__ = ["main", "sanitized"]

TOOLS = ("memcheck", "racecheck")
SHAPES = (5, 3), (5, 24), (5, 100), (5, 127), (5, 333), (5, 1500), (3, 20_001), (70, 20_001), (70, 80_003)


def sanitized(devices: list[Device], dry: bool, seconds: float) -> Iterator[Check]:
    """Each tool on this module, run as a program with the first library that can be used; all in so many seconds."""
    begun = time.perf_counter()
    library = next((device.name for device in devices if not device.reason and device.name in ("cupy", "torch")), None)
    program = shutil.which("compute-sanitizer")
    for number, tool in enumerate(TOOLS):
        name = f"compute-sanitizer {tool}"
        if dry:
            yield Check(name, "NOT RUN: a dry run (the simulator checks memory and races itself)")
        elif program is None:
            yield Check(name, "NOT RUN: compute-sanitizer is not on the path")
        elif library is None:
            yield Check(name, "NOT RUN: neither CuPy nor torch can be used")
        else:
            start = time.perf_counter()
            limit = max(0.0, seconds - (start - begun)) / (len(TOOLS) - number)
            command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", __name__, library]
            try:
                # Out of bounds is seen where each array is an allocation of its own.
                env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env)
            except subprocess.TimeoutExpired:
                yield Check(
                    name, f"NOT RUN: it took more than the {limit:.0f} s that were left", time.perf_counter() - start
                )
                continue
            outcome = "passed" if done.returncode == 0 else f"FAILED: {(done.stdout + done.stderr)[-600:]}"
            yield Check(name, outcome, time.perf_counter() - start)


def main(library: str) -> None:
    """Every kernel once, on arrays of a few rows: what a sanitizer looks at."""
    import numpy as np

    import polyloss
    from benchmarks.gpu.libraries import devices

    if library == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)
    device = next(d for d in devices(dry=False) if d.name == library)
    rng = np.random.default_rng(0)
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    for dtype in ("float32", "float64", "float16"):
        for rows, classes in SHAPES:
            if classes > 50_000 and dtype != "float16":
                continue
            x, y = rng.standard_normal((rows, classes)).astype(dtype), rng.integers(-1, classes + 1, rows)
            given = device.to_device(x), device.to_device(y)
            both(*given)
            polyloss.softmax_cross_entropy(*given, reduction="none")
            if classes < 50_000:
                t = device.to_device(np.full((rows, classes), 1 / classes, dtype))
                both(given[0], t, class_weights=t[0] * classes)
                both(*given, label_smoothing=0.1)
                polyloss.softmax(given[0])
        x = device.to_device(rng.standard_normal((100, 33)).astype(dtype))
        both_binary = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
        both_binary(x, x > 0)
        both_binary(x, device.to_device(np.ones((100, 33), dtype)))
        both_binary(x, x > 0, weights=abs(x[:, 0]), pos_weight=abs(x[0]), where=x[:, 1] > 0)
        polyloss.sigmoid(x)
    device.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
