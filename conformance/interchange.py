"""Every loss under every transformation of every framework: one table, which is tested and documented.

A transformation is a small function of a loss and its arrays, in the framework's own words. It yields pairs of a name
in `Reference` and an array, which must agree. The reference is NumPy's formula in float64, and for second derivatives
its central differences; no framework's autodiff has a part in it.

``python -m polyloss.conformance.interchange`` prints the page of documentation.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

import polyloss
from polyloss.conformance.compare import compare
from polyloss.conformance.losses import LOSSES, Row, of_seven_bits
from polyloss.conformance.routes import from_numpy, wide

__all__ = ["FRAMEWORKS", "PUBLIC", "Transformation", "applies", "check", "check_apart", "page", "registry", "table"]

FRAMEWORKS = ("torch", "jax", "dask", "numpy")
ITEMS = 8
"""Enough for four devices, and for two items on each: a query needs another one."""

STEP = 2.0**-12
ROUNDINGS = 64
"""What a derivative of a few dozen operations may lose, in units of its largest term."""

Found = Iterable[tuple[str, Any]]
Run = Callable[..., Found]

PUBLIC = tuple(dict.fromkeys(row.loss.__name__ for row in LOSSES.values()))
"""The losses, by the names that users know."""


@dataclass(frozen=True)
class Transformation:
    """One row of the table."""

    name: str
    run: Run  # (loss, x, rest) -> pairs of a name in `Reference` and an array
    dtype: str  # of the floating arrays that it gets
    compute: str  # dtype of the computation
    processes: int  # that it needs for itself; 0: none
    once: bool  # slow: with the first row of each loss instead of all its options
    unless: dict[str, str] = field(default_factory=dict)  # losses that it cannot be applied to, and why
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]


def registry(dtype: str) -> tuple[dict[str, Transformation], Callable[..., Callable[[Run], Run]]]:
    """A framework's table, and the decorator that fills it. ``dtype``: of the computation, where a row names none."""
    rows: dict[str, Transformation] = {}

    def transformation(
        name: str,
        *,
        dtype: str = dtype,
        compute: str | None = None,
        processes: int = 0,
        once: bool = False,
        unless: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Callable[[Run], Run]:
        def put(run: Run) -> Run:
            assert name not in rows and run.__doc__
            rows[name] = Transformation(
                name, run, dtype, compute or dtype, processes, once, unless or {}, environment or {}
            )
            return run

        return put

    return rows, transformation


def table(framework: str) -> dict[str, Transformation]:
    """The transformations of a framework, which must be installed."""
    found: dict[str, Transformation] = importlib.import_module(
        f"polyloss.conformance.interchange_{framework}"
    ).TRANSFORMATIONS
    return found


def applies(transformation: Transformation) -> list[str]:
    """The rows of `LOSSES` that a transformation is run with."""
    rows: dict[str, list[str]] = {}
    for name, row in LOSSES.items():
        rows.setdefault(row.loss.__name__, []).append(name)
    return [
        name
        for loss, names in rows.items()
        if loss not in transformation.unless
        for name in (names[:1] if transformation.once else names)
    ]


# The arrays, and what must come out.


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """``x`` in that dtype; bfloat16, which NumPy lacks, as float32."""
    if x.dtype.kind != "f" or dtype != "bfloat16":
        return x.astype(dtype) if x.dtype.kind == "f" else x
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return nearest.astype(np.uint32).view(np.float32)


def arguments(name: str, dtype: str) -> dict[str, np.ndarray]:
    """The arrays of a call, with weights and a mask; the first one is differentiated in."""
    found = LOSSES[name].arguments(3, ITEMS)
    if dtype == "bfloat16" and LOSSES[name].loss is polyloss.log_loss:  # whose rows must still sum to 1
        found["probabilities"] = of_seven_bits(LOSSES[name], found["probabilities"])
    found |= {"weights": np.linspace(0.5, 2, ITEMS), "where": np.arange(ITEMS) != 2}
    return {key: rounded(x, dtype) for key, x in found.items()}


def weave(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A tangent or a cotangent: small numbers of both signs that every dtype holds exactly."""
    return ((np.arange(np.prod(shape, dtype=int)) * 3 % 7 - 3) / 2).reshape(shape).astype(dtype)


class Reference:
    """Value and derivatives in the first argument, in float64."""

    ORDER: ClassVar = {  # how often it was differentiated
        "value": 0,
        "items": 0,
        "gradient": 1,
        "slope": 1,  # gradient along `weave`
        "pulled": 1,  # gradient of the items, weighted by `weave`
        "jacobian": 1,  # of the items
        "hessian": 2,
        "curvature": 2,  # hessian times `weave`
        "value over shards": 0,  # of the batch in equal parts, each alone: the sum of their sums
        "gradient over shards": 1,
    }

    def __init__(self, name: str, dtype: str) -> None:
        self.row: Row = LOSSES[name]
        self.arguments = {
            key: x.astype(np.float64) if x.dtype.kind == "f" else x for key, x in arguments(name, dtype).items()
        }
        self.first = next(iter(self.arguments))
        self.x = self.arguments[self.first]
        self.found: dict[str, np.ndarray] = {}

    def both(self, arguments: dict[str, np.ndarray], **options: Any) -> tuple[Any, np.ndarray]:
        value, gradient = polyloss.value_and_grad(self.row.loss)(**arguments | self.row.options | options)
        return value, gradient

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.found:
            name, _, shards = key.partition(": ")
            self.found[key] = np.asarray(self._compute(name, int(shards or 1)))
        return self.found[key]

    def _compute(self, name: str, shards: int) -> Any:
        match name:
            case "value":
                return self.both(self.arguments)[0]
            case "gradient":
                return self.both(self.arguments)[1]
            case "items":
                return self.both(self.arguments, reduction="none")[0]
            case "slope":
                return np.sum(self["gradient"] * weave(self.x.shape, "float64"))
            case "pulled":
                return np.tensordot(weave(self["items"].shape, "float64"), self["jacobian"], self["items"].ndim)
            case "jacobian":
                return self._jacobian()
            case "hessian":
                return self._hessian()
            case "curvature":
                return np.tensordot(self["hessian"], weave(self.x.shape, "float64"), self.x.ndim)
            case "value over shards":
                return sum(value for value, _ in self._shards(shards))
            case "gradient over shards":
                return np.concatenate([gradient for _, gradient in self._shards(shards)])
        raise KeyError(name)

    def _jacobian(self) -> np.ndarray:
        shape = self["items"].shape
        weights = self.arguments["weights"].reshape((-1,) + (1,) * (len(shape) - 1))
        rows = []
        for i in range(self["items"].size):
            one = np.zeros(shape)
            one.flat[i] = 1
            rows.append(self.both(self.arguments | {"weights": one * weights}, reduction="sum")[1])
        return np.stack(rows).reshape(shape + self.x.shape)

    def _hessian(self) -> np.ndarray:
        """By central differences of fourth order of the formula's gradient."""
        columns = []
        for i in range(self.x.size):
            step = STEP * (
                self.x.flat[i] if self.first == "probabilities" else 1
            )  # a logarithm's scale is its argument

            def gradient(steps: int, i: int = i, step: float = step) -> np.ndarray:
                x = self.x.copy()
                x.flat[i] += steps * step
                return self.both(self.arguments | {self.first: x})[1]

            near, far = gradient(1) - gradient(-1), gradient(2) - gradient(-2)
            columns.append((8 * near - far) / (12 * step))
        return np.stack(columns, axis=-1).reshape(self.x.shape * 2)

    def _shards(self, count: int) -> Iterator[tuple[Any, np.ndarray]]:
        size = ITEMS // count
        for i in range(count):
            part = self.row.take(self.arguments, slice(i * size, (i + 1) * size))
            part |= {key: self.arguments[key] for key in self.row.shared}
            yield self.both(part, reduction="sum")

    def tolerance(self, key: str, compute: str, own: str) -> Any:
        """How far an array of dtype ``own``, computed in dtype ``compute``, may be off.

        A derivative is made of terms of the size of the lower ones, which may cancel in it. Differences of gradients in
        float64 are exact to their rounding over the step. A 16-bit result is rounded once more.
        """
        name = key.partition(": ")[0]
        order = self.ORDER[name]
        terms = [*("items", "value", "gradient", "hessian")[: order + 2], key]
        size = max(float(np.max(np.abs(self[term]), initial=0.0)) for term in terms)
        resolution = ROUNDINGS * float(np.finfo(compute).eps)
        if order == 2:
            resolution += 4 * float(np.finfo("float64").eps) / STEP
        last = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(own, 0.0)
        return resolution * size + last * np.abs(self[key]) + (2.0**-25 if own == "float16" else 0.0)


@functools.cache
def reference(name: str, dtype: str) -> Reference:
    return Reference(name, dtype)


def check(framework: str, transformation: Transformation, name: str) -> None:
    """Runs one cell."""
    row, dtype = LOSSES[name], transformation.dtype
    expected = reference(name, dtype)
    with wide(framework, dtype):
        given = {key: from_numpy(framework, x) for key, x in arguments(name, dtype).items()}
        x = given.pop(next(iter(given)))
        loss = functools.partial(row.loss, **row.options)
        compared = 0
        for key, array in transformation.run(loss, x, given):
            own = str(array.dtype).removeprefix("torch.")
            assert own == transformation.compute or (own == dtype and expected.ORDER[key.partition(":")[0]]), key
            allowed, largest = expected.tolerance(key, transformation.compute, own), np.max(np.abs(expected[key]))
            compare(array, expected[key], key, own, allowed, largest)
            compared += 1
        assert compared, "nothing was compared"


# Transformations that need processes of their own.


def check_apart(framework: str, transformation: Transformation) -> dict[str, str | None]:
    """What came of each loss in fresh processes, as the first of them saw it: None, or a traceback."""
    code = "from polyloss.conformance.interchange import _all; import sys; _all(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        own = transformation.environment | {"POLYLOSS_STORE": os.path.join(folder, "store")}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, framework, transformation.name],
                env=os.environ | own | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(transformation.processes)
        ]
        try:
            outputs = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output
    found: dict[str, str | None] = json.loads(outputs[0].rpartition("\n")[2])
    return found


def _all(framework: str, name: str) -> None:
    transformation = table(framework)[name]
    found: dict[str, str | None] = {}
    for loss in applies(transformation):
        try:
            check(framework, transformation, loss)
            found[loss] = None
        except Exception:
            found[loss] = traceback.format_exc()
    print(end="\n" + json.dumps(found))


# Documentation.


def page() -> str:
    """The table as a document."""
    losses = [f"`{name}`" for name in PUBLIC]
    lines = [
        "# Transformations",
        "",
        "Made by `python -m polyloss.conformance.interchange > docs/transformations.md`; a test fails if it is stale.",
        "",
        "Each row is run with each loss, weights and a mask, and compared with NumPy's formula in float64: values,",
        'gradients, Jacobians, and Hessians by differences of the formula\'s gradient. "yes": they agree within the',
        "rounding of the dtype. A number stands for a note below the table. Rows that are quick to run are run",
        "with all options of a loss in `conformance/losses.py`, the others with the first.",
    ]
    for framework in FRAMEWORKS:
        notes: list[str] = []
        lines += ["", f"## {framework}", ""]
        lines += [f"| transformation | compared | {' | '.join(losses)} |", "|---|---|" + "---|" * len(losses)]
        for row in table(framework).values():
            cells = []
            for loss in PUBLIC:
                note = row.unless.get(loss)
                if note and note not in notes:
                    notes.append(note)
                cells.append(f"no ({notes.index(note) + 1})" if note else "yes")
            lines.append(f"| {row.name} | {row.summary} | {' | '.join(cells)} |")
        lines += [""] * bool(notes) + [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from polyloss.conformance import interchange  # the registered one, not this second copy

    sys.stdout.write(interchange.page())
