"""How many digits survive: worst errors in ulp of float32 losses and gradients, for polyloss and its peers.

Run ``python -m benchmarks.accuracy [--json FILE] [--markdown]`` in the root of the repository.

Measured are the two losses that everybody has, where training spends most of its time: on items that the model is
already sure of. ``softmax`` is cross-entropy whose label leads the best other logit by so much, for several numbers of
classes and offsets common to all logits; ``sigmoid`` is binary cross-entropy whose logit agrees with its target, with
logits of the size given and up to one beyond. Each cell is the worst over its cases of the loss, and of the gradient in
the label's logit. The truth is computed by mpmath with 60 digits from the logits as float32 holds them, so that only
the losses' own rounding counts.

One ulp is the distance between two float32 numbers at the truth. About 1.7e7 of them (2^24) is 100 %: no digit is left.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

import polyloss

LEADS = (0, 5, 10, 20, 40)
CLASSES = (2, 10, 1000)
OFFSETS = (0.0, 100.0, 1e4)
SEEDS = 8
SIZES = (0, 5, 10, 20, 40, 80)
DIGITS = 60
PACKAGES = ("numpy", "torch", "jax", "optax", "scikit-learn", "mpmath")

Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From logits and targets to the losses per item and the gradient of their sum in the logits."""


@dataclass(frozen=True)
class Case:
    """One item: what goes in, and what should come out."""

    column: int  # of the table: the lead or the size of the logit
    logits: np.ndarray  # [K], or 0-d
    target: float  # the label, or the target in [0, 1]
    loss: mpmath.mpf
    slope: mpmath.mpf  # in the label's logit
    budget: float  # what SPEC 6 allows, in ulp: 6 + s + log2 K


def softmax_cases() -> Iterator[Case]:
    for lead in LEADS:
        for classes in CLASSES:
            for offset in OFFSETS:
                for seed in range(SEEDS):
                    rng = np.random.default_rng((lead, classes, int(offset), seed))
                    logits = rng.standard_normal(classes)
                    label = int(rng.integers(classes))
                    logits[label] = np.delete(logits, label).max() + lead
                    yield _softmax_case(lead, (logits + offset).astype(np.float32), label)


def _softmax_case(lead: int, logits: np.ndarray, label: int) -> Case:
    """The sum runs over the classes beside the label, so that the oracle cancels nothing either."""
    gaps = [mpmath.mpf(float(x)) - mpmath.mpf(float(logits[label])) for x in np.delete(logits, label)]
    others = mpmath.fsum(map(mpmath.exp, gaps))
    wide = logits.astype(np.float64)
    gap = wide.max() - np.delete(wide, wide.argmax())  # s of SPEC 6: how far the exponents of the others reach
    reach = float(np.average(gap, weights=np.exp(gap.min() - gap)))
    budget = 6 + reach + math.log2(logits.size)
    return Case(lead, logits, label, mpmath.log1p(others), -others / (1 + others), budget)


def sigmoid_cases() -> Iterator[Case]:
    for size in SIZES:
        for seed in range(64):
            beyond = np.random.default_rng((size, seed)).uniform(0, 1) if seed else 0.0  # the size itself comes first
            x = np.float32(size + beyond)
            far = mpmath.exp(-mpmath.mpf(float(x)))
            slope = far / (1 + far)
            yield Case(size, np.asarray(x), 1.0, mpmath.log1p(far), -slope, 6.0)
            yield Case(size, np.asarray(-x), 0.0, mpmath.log1p(far), slope, 6.0)


# The contestants. Each is imported when it is asked for, and gives its softmax and its sigmoid loss.


def _polyloss(run: Callable[[Callable[..., Any]], Run]) -> tuple[Run, Run]:
    return (
        run(lambda x, t: polyloss.softmax_cross_entropy(x, t, reduction="none")),
        run(lambda x, t: polyloss.sigmoid_cross_entropy(x, t, reduction="none")),
    )


def polyloss_on_numpy() -> tuple[Run, Run]:
    def run(loss: Callable[..., Any]) -> Run:
        return lambda x, t: polyloss.value_and_grad(loss)(x, t, reduction="none")

    return run(polyloss.softmax_cross_entropy), run(polyloss.sigmoid_cross_entropy)


def _in_torch(loss: Callable[..., Any]) -> Run:
    import torch

    def run(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = torch.tensor(x, requires_grad=True)
        losses = loss(logits, torch.tensor(t))
        losses.sum().backward()
        assert logits.grad is not None
        return losses.detach().numpy(), logits.grad.numpy()

    return run


def polyloss_on_torch() -> tuple[Run, Run]:
    import torch  # noqa: F401

    return _polyloss(_in_torch)


def torch_itself() -> tuple[Run, Run]:
    import torch.nn.functional as F

    return (
        _in_torch(lambda x, t: F.cross_entropy(x, t, reduction="none")),
        _in_torch(lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none")),
    )


def _in_jax(loss: Callable[..., Any]) -> Run:
    import jax
    import jax.numpy as jnp

    def run(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, pullback = jax.vjp(lambda logits: loss(logits, jnp.asarray(t)), jnp.asarray(x))
        return np.asarray(losses), np.asarray(pullback(jnp.ones_like(losses))[0])

    return run


def polyloss_on_jax() -> tuple[Run, Run]:
    import jax  # noqa: F401

    return _polyloss(_in_jax)


def optax_itself() -> tuple[Run, Run]:
    import optax

    return _in_jax(optax.softmax_cross_entropy_with_integer_labels), _in_jax(optax.sigmoid_binary_cross_entropy)


def scikit_learn() -> tuple[Run, Run]:
    from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss

    def multinomial(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, gradients = HalfMultinomialLoss(n_classes=x.shape[1]).loss_gradient(t.astype(np.float32), x)
        return losses, gradients

    return multinomial, lambda x, t: HalfBinomialLoss().loss_gradient(t, x)


CONTESTANTS: dict[str, Callable[[], tuple[Run, Run]]] = {
    "polyloss, NumPy": polyloss_on_numpy,
    "polyloss, torch": polyloss_on_torch,
    "polyloss, JAX": polyloss_on_jax,
    "torch": torch_itself,
    "optax": optax_itself,
    "scikit-learn": scikit_learn,
}


# Measuring.


@dataclass(frozen=True)
class Table:
    """One problem: worst errors (loss, gradient) by contestant and column; None for one that is not installed."""

    title: str
    heading: str
    columns: tuple[int, ...]
    errors: dict[str, dict[int, tuple[float, float]] | None]
    shares: dict[str, float | None]  # worst error as a share of the budget of its case


def ulps(found: float, truth: mpmath.mpf) -> float:
    if not math.isfinite(found):
        return math.inf
    return float(abs(mpmath.mpf(float(found)) - truth) / mpmath.mpf(float(np.spacing(np.float32(abs(truth))))))


def measure(run: Run, cases: Iterable[Case], softmax: bool) -> tuple[dict[int, tuple[float, float]], float]:
    """The worst errors by column, and the worst share of a budget. Items of one shape are computed in one call."""
    by_shape: dict[tuple[int, ...], list[Case]] = {}
    for case in cases:
        by_shape.setdefault(case.logits.shape, []).append(case)
    worst: dict[int, tuple[float, float]] = {}
    share = 0.0
    for batch in by_shape.values():
        targets = np.array([case.target for case in batch], dtype=np.int64 if softmax else np.float32)
        losses, gradients = run(np.stack([case.logits for case in batch]), targets)
        for i, case in enumerate(batch):
            slope = gradients[i, int(case.target)] if softmax else gradients[i]
            loss_error, slope_error = ulps(losses[i], case.loss), ulps(slope, case.slope)
            before = worst.get(case.column, (0.0, 0.0))
            worst[case.column] = max(before[0], loss_error), max(before[1], slope_error)
            share = max(share, loss_error / case.budget, slope_error / case.budget)
    return worst, share


def tables() -> list[Table]:
    """Everything, measured."""
    problems = (
        ("softmax cross-entropy", "the label's logit leads by", LEADS, list(softmax_cases())),
        ("sigmoid cross-entropy", "the logit is ±", SIZES, list(sigmoid_cases())),
    )
    measured = [Table(title, heading, columns, {}, {}) for title, heading, columns, _ in problems]
    for name, load in CONTESTANTS.items():
        try:
            runs = load()
        except ImportError:
            runs = None
        for i, (table, problem) in enumerate(zip(measured, problems, strict=True)):
            table.errors[name], table.shares[name] = (
                (None, None) if runs is None else measure(runs[i], problem[3], softmax=i == 0)
            )
    return measured


# Showing.


def cells(table: Table) -> Iterator[list[str]]:
    """The rows of a table: the contestant, its errors by column, its share of the budget."""
    for name, errors in table.errors.items():
        share = table.shares[name]
        if errors is None or share is None:
            yield [name, *["not installed"] * len(table.columns), ""]
        else:
            yield [name, *[" / ".join(map(figure, errors[c])) for c in table.columns], figure(share)]


def figure(error: float) -> str:
    """Two digits are plenty for a worst case."""
    if error == 0 or not math.isfinite(error):
        return f"{error:g}"
    return f"{error:.2g}" if error < 100 else f"{error:.1e}".replace("e+0", "e").replace("e+", "e")


def header(table: Table) -> list[str]:
    return [table.heading, *map(str, table.columns), "share of the budget"]


def caption(table: Table) -> str:
    return f"{table.title}, float32: worst error in ulp, loss / gradient (1.7e7: no digit is left)"


def markdown(table: Table) -> str:
    rows = [header(table), ["---"] * (len(table.columns) + 2), *cells(table)]
    return "\n".join([f"{caption(table)}", "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def show(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    rich = RichTable(title=caption(table))
    for i, name in enumerate(header(table)):
        rich.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    for row in cells(table):
        rich.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(rich)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine(), "polyloss": polyloss.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def as_json(measured: list[Table]) -> str:
    return json.dumps(
        {"versions": versions(), "unit": "ulp of float32", "tables": [vars(t) for t in measured]}, indent=2
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, unrounded, and all versions")
    parser.add_argument("--markdown", action="store_true", help="print tables for GitHub")
    options = parser.parse_args()
    with mpmath.workdps(DIGITS):
        measured = tables()
    for table in measured:
        if options.markdown:
            print(markdown(table))
        else:
            show(table)
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    if options.json:
        options.json.write_text(as_json(measured) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
