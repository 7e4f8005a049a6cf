"""What conformance found: cells, failures, and the report that holds them, as Python objects and as JSON.

The JSON is `Report.to_json`, with one key for each field below::

    {
      "schema": "polyloss-conformance/1",
      "created": "2026-11-24T18:00:00+00:00",     when the run began, UTC
      "seconds": 41.3,
      "options": {"level": "quick", "seed": 0, ...},
      "environment": {
        "polyloss": "0.1.0", "python": "3.11.9", "system": "Linux", "machine": "x86_64", "processor": "...",
        "cores": 2, "kernels": "how host kernels are cached, and on how many threads they run",
        "libraries": [{"library", "version", "device", "memory", "paths": {primitive: path}, "reason"}]
      },
      "counts": {"passed": 0, "failed": 0, "not run": 0, "not applicable": 0},
      "conforms": true,                            nothing failed, and something passed
      "cells": [{
        "check": "accuracy", "function": "bpr", "library": "torch", "path": "kernel", "dtype": "float32",
        "device": "cpu", "status": "passed", "reason": "", "share": 0.31, "cases": 412, "seconds": 0.02,
        "failures": [{
          "law": "what should hold", "where": "the case", "input": "the smallest failing input that was found",
          "reproduce": "a line of Python", "expected": "...", "got": "...", "ulps": 17.0, "budget": 6.0
        }]
      }]
    }

``share`` is the largest part of its budget that a cell has used: above 1 it failed, null where a check has no budget.
A status of "not run" or "not applicable" always has its ``reason``; where a check is applicable to no function, that of
its cell is ``*``. Infinity, which JSON lacks, is the text "Infinity".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = ["SCHEMA", "Cell", "Failure", "Report", "Status"]

SCHEMA = "polyloss-conformance/1"

Status = Literal["passed", "failed", "not run", "not applicable"]


@dataclass(frozen=True)
class Failure:
    """What should have held and did not, on the smallest input that was found."""

    law: str
    where: str  # the case, in words
    input: str
    reproduce: str  # a line of Python
    expected: str = ""
    got: str = ""
    ulps: float | None = None  # how far off; None where no numbers were compared
    budget: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.law} ({self.where})", f"input      {self.input}"]
        lines += [f"{name:10} {text}" for name, text in (("expected", self.expected), ("got", self.got)) if text]
        lines += [f"error      {self.ulps:.4g} ulp, budget {self.budget:.4g}"] if self.ulps is not None else []
        return "\n    ".join([*lines, f"reproduce  {self.reproduce}"])


@dataclass(frozen=True)
class Cell:
    """One check of one function, in one library, on one path and device, in one dtype."""

    check: str
    function: str
    library: str
    path: str
    dtype: str
    device: str
    status: Status
    reason: str = ""
    share: float | None = None
    cases: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()

    @property
    def name(self) -> str:
        place = self.library if self.device in ("cpu", "") else f"{self.library} {self.device}"
        return f"{self.check}: {self.function}, {place} {self.path} {self.dtype}"


@dataclass(frozen=True)
class Report:
    """All cells of a run."""

    cells: tuple[Cell, ...]
    environment: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0

    @cached_property
    def counts(self) -> dict[Status, int]:
        """How many cells there are of each status."""
        found = Counter(cell.status for cell in self.cells)
        return {status: found[status] for status in get_args(Status)}

    @property
    def conforms(self) -> bool:
        """Whether nothing failed, and something passed."""
        return self.counts["failed"] == 0 and self.counts["passed"] > 0

    @property
    def failed(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.status == "failed")

    def reasons(self, status: Status) -> dict[str, int]:
        """Why cells have that status, and how many for each reason."""
        return dict(Counter(cell.reason for cell in self.cells if cell.status == status).most_common())

    def to_json(self) -> str:
        """The report in the form that the module's docstring describes."""
        head = {"schema": SCHEMA, "created": self.created, "seconds": round(self.seconds, 3)}
        found = {"options": dict(self.options), "environment": dict(self.environment)}
        outcome = {"counts": self.counts, "conforms": self.conforms}
        cells = [asdict(cell) for cell in self.cells]
        return json.dumps(_finite(head | found | outcome | {"cells": cells}), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report of that JSON. Raises ValueError if it is none, or one of another schema."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"not a report of schema {SCHEMA!r}")
        cells = tuple(
            Cell(**_numbers(cell) | {"failures": tuple(Failure(**_numbers(failure)) for failure in cell["failures"])})
            for cell in found["cells"]
        )
        return cls(cells, found["environment"], found["options"], found["created"], found["seconds"])

    def save(self, file: str | Path) -> None:
        """Writes the JSON."""
        Path(file).write_text(self.to_json() + "\n", encoding="utf-8")


def _finite(x: Any) -> Any:
    """With texts for the numbers that JSON lacks."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return ("NaN" if x != x else "Infinity" if x > 0 else "-Infinity") if _is_special(x) else x


def _is_special(x: Any) -> bool:
    return isinstance(x, float) and not math.isfinite(x)


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """Texts back as numbers, in the fields that are numbers."""
    numbers = {key: float(found[key]) for key in ("share", "ulps", "budget") if isinstance(found.get(key), str)}
    return {**found, **numbers}
