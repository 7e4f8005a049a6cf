"""How fast the metrics that sort are, beside scikit-learn's.

Run ``python -m benchmarks.metrics [--items N] [--rounds R]`` in the root of the repository, on a quiet machine.

Scores are normal, without ties, a third of the targets is 1, and the relevance is 0 to 4. Both take their turns; the
figure is the median. scikit-learn's is the public function, with its checks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import polyloss

__all__ = ["measure", "table"]


def measure(items: int, dtype: str, rounds: int) -> dict[str, tuple[float, float, float]]:
    """For each metric: our median time and theirs in seconds, and how far the results differ."""
    from sklearn import metrics as theirs

    random = np.random.default_rng(0)
    scores = random.standard_normal(items).astype(dtype)
    targets, relevance = (random.random(items) < 0.3).astype(np.int64), random.integers(0, 5, items)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "roc_auc": (
            lambda: polyloss.roc_auc(scores, targets),
            lambda: theirs.roc_auc_score(targets, scores),
        ),
        "average_precision": (
            lambda: polyloss.average_precision(scores, targets),
            lambda: theirs.average_precision_score(targets, scores),
        ),
        "ndcg": (
            lambda: polyloss.ndcg(scores, relevance),
            lambda: theirs.ndcg_score(relevance[None], scores[None]),
        ),
    }
    found = {}
    for name, contestants in pairs.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            results = []
            for taken, run in zip(times, contestants):
                start = time.perf_counter()
                results.append(float(run()))
                taken.append(time.perf_counter() - start)
        found[name] = statistics.median(times[0]), statistics.median(times[1]), abs(results[0] - results[1])
    return found


def table(items: int, rounds: int) -> str:
    """The figures as Markdown."""
    lines = [f"| {items:,} scores | ours, s | scikit-learn, s | difference |", "| --- | ---: | ---: | ---: |"]
    for dtype in ("float64", "float32"):
        for name, (ours, theirs, difference) in measure(items, dtype, rounds).items():
            lines.append(f"| {name}, {dtype} | {ours:.2g} | {theirs:.2g} | {difference:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(table(options.items, options.rounds))


if __name__ == "__main__":
    main()
