"""``python -m benchmarks.out_of_core``: a loss of more rows than one wants in memory, read from disk by Dask.

It writes logits and labels to a temporary folder, block by block, and computes the mean softmax cross-entropy, alone
and with its gradient, of which the sum of squares is kept. Three contestants take turns, each in a process of its own:
polyloss on Dask arrays, the same loss in Dask's operations, and in NumPy's on each block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main"]

CLASSES = 10
LABEL = 8  # bytes
OURS = "polyloss"
WORK = ("value", "value and gradient")
ROOT = Path(__file__).parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where the contestants disagree."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.out_of_core", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rows", type=int, help="of logits (20 million)")
    parser.add_argument("--block", type=int, help="rows of a block (200,000)")
    parser.add_argument("--workers", type=int, default=2, help="threads of Dask (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (5)")
    parser.add_argument("--quick", action="store_true", help="few rows, one round: a smoke test, no result")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "CONTESTANT", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(_measure(*options.measure, options.workers)))
        return 0
    rows = options.rows or (50_000 if options.quick else 20_000_000)
    block = min(rows, options.block or (10_000 if options.quick else 200_000))
    with tempfile.TemporaryDirectory(prefix="polyloss") as folder:
        _write(Path(folder), rows, block)
        found = _turns(folder, options.workers, options.rounds or (1 if options.quick else 5))
    return _report(found, rows, block, options.workers)


# What is computed.


def _write(folder: Path, rows: int, block: int) -> None:
    for i, start in enumerate(range(0, rows, block)):
        n, rng = min(block, rows - start), np.random.default_rng(i)
        np.save(folder / f"logits{i}.npy", 3 * rng.standard_normal((n, CLASSES), dtype=np.float32))
        np.save(folder / f"labels{i}.npy", rng.integers(CLASSES, size=n))
    sizes = [min(block, rows - start) for start in range(0, rows, block)]
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="ascii")


def _read(folder: str, name: str, block_info: Any = None) -> np.ndarray:
    return np.load(f"{folder}/{name}{block_info[None]['chunk-location'][0]}.npy")


def _arrays(folder: str, first: int | None = None) -> tuple[Any, Any]:
    """Logits and labels, of so many blocks."""
    import dask.array as da

    sizes = tuple(json.loads(Path(folder, "sizes.json").read_text(encoding="ascii"))[:first])
    x = da.map_blocks(
        _read, folder, "logits", chunks=(sizes, (CLASSES,)), dtype=np.float32, meta=np.empty((0, 0), "f4")
    )
    y = da.map_blocks(_read, folder, "labels", chunks=(sizes,), dtype=np.int64, meta=np.empty(0, "i8"))
    return x, y


def _sum_of_squares(g: Any) -> Any:
    """In one pass over each block: it is the loss that is measured."""
    import dask.array as da

    return da.map_blocks(lambda block: np.vdot(block, block)[None, None], g, chunks=(1, 1), dtype=g.dtype).sum()


def _polyloss(x: Any, y: Any, gradient: bool) -> tuple[Any, ...]:
    import polyloss

    if not gradient:
        return (polyloss.softmax_cross_entropy(x, y),)
    value, g = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y)
    return value, _sum_of_squares(g)


def _dask(x: Any, y: Any, gradient: bool) -> tuple[Any, ...]:
    import dask.array as da

    top = x.max(axis=1, keepdims=True)
    exps = da.exp(x - top)
    total = exps.sum(axis=1, keepdims=True)
    hot = da.arange(CLASSES, chunks=-1) == y[:, None]
    value = (da.log(total[:, 0]) + top[:, 0] - da.where(hot, x, 0).sum(axis=1)).mean()
    if not gradient:
        return (value,)
    g = (exps / total - hot) / np.float32(x.shape[0])
    return value, _sum_of_squares(g)


def _numpy(x: Any, y: Any, gradient: bool) -> tuple[Any, ...]:
    import dask.array as da

    def items(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        top = x.max(axis=1)
        return np.log(np.exp(x - top[:, None]).sum(axis=1)) + top - x[np.arange(y.size), y]

    def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        g = np.exp(x - x.max(axis=1, keepdims=True))
        g /= g.sum(axis=1, keepdims=True)
        g[np.arange(y.size), y] -= 1
        return g

    value = da.blockwise(items, "i", x, "ij", y, "i", concatenate=True, dtype=x.dtype).mean()
    if not gradient:
        return (value,)
    g = da.map_blocks(lambda x, y: slope(x, y[:, 0]), x, y[:, None], dtype=x.dtype) / np.float32(x.shape[0])
    return value, _sum_of_squares(g)


CONTESTANTS: dict[str, Callable[[Any, Any, bool], tuple[Any, ...]]] = {
    OURS: _polyloss,
    "dask.array": _dask,
    "NumPy by blocks": _numpy,
}


# How it is measured.


def _measure(folder: str, contestant: str, work: str, workers: int) -> dict[str, Any]:
    """Seconds by the clock and of the processors, results, and the process's peak memory: before and after."""
    import dask

    from benchmarks.memory import highest

    def results(first: int | None = None) -> list[float]:
        computed = dask.compute(*CONTESTANTS[contestant](*_arrays(folder, first), work != WORK[0]))
        return [float(x) for x in computed]

    proc = Path("/proc/self/status").exists()
    with dask.config.set(scheduler="threads", num_workers=workers):
        before = highest() if proc else None
        results(2)  # compiles, or loads what was compiled
        start, busy = time.perf_counter(), time.process_time()
        found = results()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "busy": busy, "results": found, "memory": (before, highest()) if proc else None}


def _turns(folder: str, workers: int, rounds: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By work and contestant."""
    turns = [(work, contestant) for work in WORK for contestant in CONTESTANTS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {turn: [] for turn in turns}
    for number in range(rounds):
        for work, contestant in turns if number % 2 == 0 else reversed(turns):
            command = [sys.executable, "-m", "benchmarks.out_of_core", "--workers", str(workers), "--measure"]
            command += [folder, contestant, work]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                raise RuntimeError(f"{contestant}, {work}: {done.stderr}")
            found[work, contestant].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def _report(found: dict[tuple[str, str], list[dict[str, Any]]], rows: int, block: int, workers: int) -> int:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.report import STYLE, WIDTH, figure

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    megabytes = rows * (4 * CLASSES + LABEL) / 1e6
    table = Table(
        title=f"{rows:,} x {CLASSES} logits from disk ({figure(megabytes)} MB), {block:,} a block, {workers} threads",
        **STYLE,
    )
    for heading in (
        "work",
        "contestant",
        "median s",
        "range s",
        "time / ours",
        "CPU / ours",
        "MB before",
        "peak MB",
        "outputs",
    ):
        left = heading in ("work", "contestant", "outputs")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "outputs")
    wrong = False
    for (work, contestant), turns in found.items():
        ours, seconds = found[work, OURS], [turn["seconds"] for turn in turns]
        median = {key: statistics.median(turn[key] for turn in turns) for key in ("seconds", "busy")}
        ratio = {key: median[key] / statistics.median(turn[key] for turn in ours) for key in median}
        agree = np.allclose(turns[0]["results"], ours[0]["results"], rtol=1e-3)
        wrong |= not agree
        table.add_row(
            work,
            contestant,
            figure(median["seconds"]),
            f"{figure(min(seconds))} .. {figure(max(seconds))}",
            figure(ratio["seconds"]),
            figure(ratio["busy"]),
            *_memory(turns),
            "agree" if agree else f"WRONG: {turns[0]['results']} for {ours[0]['results']}",
            style="bold" if contestant == OURS else None,
        )
    console.print(table)
    return int(wrong)


def _memory(turns: Sequence[dict[str, Any]]) -> list[str]:
    """Before and at the end, the highest of the turns."""
    from benchmarks.report import NONE, figure

    pairs = [turn["memory"] for turn in turns]
    return [NONE, NONE] if None in pairs else [figure(max(column) / 1e6) for column in zip(*pairs)]


if __name__ == "__main__":
    sys.exit(main())
