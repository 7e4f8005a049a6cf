"""Pieces of the report's page: texts, numbers, tables, and what several sections say of a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from polyloss.conformance.report import Cell, Report, Status

__all__ = [
    "CLASSES",
    "LABELS",
    "UNKNOWN",
    "anchors",
    "duration",
    "gauge",
    "name",
    "number",
    "place_of",
    "section",
    "share",
    "share_of",
    "table",
    "text",
    "why",
]

LABELS: Mapping[Status, str] = {
    "passed": "passed",
    "failed": "failed",
    "not run": "NOT RUN",
    "not applicable": "not applicable",
}
CLASSES: Mapping[Status, str] = {"passed": "passed", "failed": "failed", "not run": "not-run", "not applicable": "none"}
UNKNOWN = "no reason given"


def text(x: object) -> str:
    """``x`` as text of the page or of an attribute, whatever it holds."""
    return escape(str(x)).replace("\n", "&#10;")


def name(x: str) -> str:
    """A name as text, which may be broken behind an underscore."""
    return text(x).replace("_", "_<wbr>")


def share(x: float | None) -> str:
    """A share of a budget in at most four characters, without the zero before the point."""
    if x is None:
        return ""
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞"
    if x < 0.995:
        return "0" if x < 0.005 else f"{x:.2f}"[1:]
    return f"{x:.1f}" if x < 9.95 else f"{x:.0f}" if x < 999.5 else f"{x:.0e}".replace("e+0", "e").replace("e+", "e")


def duration(seconds: float) -> str:
    """Seconds, as one says them."""
    if seconds >= 60:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def number(x: int) -> str:
    """A count with thousands set apart."""
    return f"{x:,}"


def section(key: str, title: str, content: str) -> str:
    """A section of the page, with ``key`` as its id."""
    return f'<section id="{key}"><h2>{title}</h2>\n{content}</section>\n'


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: str = "", kind: str = "") -> str:
    """A table of cells that are HTML already, the first of a row its head. An n in ``numeric`` marks numbers."""
    sides = [' class="n"' if mark == "n" else "" for mark in numeric.ljust(len(heads))]
    head = "".join(f'<th scope="col"{side}>{h}</th>' for h, side in zip(heads, sides))
    body = "".join(
        f'<tr><th scope="row"{sides[0]}>{row[0]}</th>'
        + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(row[1:], sides[1:]))
        + "</tr>\n"
        for row in rows
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{kind or "list"}">
<caption>{caption}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody></table></div>
"""


def gauge(part: float, label: str, status: Status = "passed") -> str:
    """A bar of that part of its room, with its label."""
    width = 100 * min(max(part, 0.0), 1.0)
    return (
        f'<span class="gauge {CLASSES[status]}"><i style="width:{width:.0f}%"></i></span><span class="n">{label}</span>'
    )


# Of cells.


def share_of(cell: Cell) -> float:
    """For sorting: a share that is not a number is above all."""
    if cell.share is None:
        return -1.0
    return math.inf if math.isnan(cell.share) else cell.share


def place_of(cell: Cell) -> str:
    """Where a cell was computed; the CPU is not said."""
    return " ".join(filter(None, (cell.library, cell.path, "" if cell.device == "cpu" else cell.device)))


def anchors(report: Report) -> dict[Cell, str]:
    """The id of each failed cell's first failure."""
    return {cell: f"failure-{i}" for i, cell in enumerate(report.failed, 1)}


def why(report: Report, status: Status) -> Iterator[tuple[str, int, list[str]]]:
    """Each reason for a status, its count, and the libraries that it concerns."""
    concerned: dict[str, dict[str, None]] = {}
    for cell in report.cells:
        if cell.status == status:
            concerned.setdefault(cell.reason, {})[cell.library] = None
    for reason, count in report.reasons(status).items():
        yield reason, count, list(concerned[reason])
