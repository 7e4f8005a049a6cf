"""The heat map of the report's page: functions down; libraries, paths and dtypes across; colour is share of a budget.

The number in a cell says what its colour says, and what has no number differs in shape too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from polyloss.conformance.colours import STEPS, level
from polyloss.conformance.markup import (
    CLASSES,
    LABELS,
    UNKNOWN,
    anchors,
    name,
    number,
    place_of,
    section,
    share,
    share_of,
    text,
    why,
)
from polyloss.conformance.report import Cell, Report, Status

__all__ = ["DTYPES", "heat_map"]

TELLING: tuple[Status, ...] = ("failed", "passed", "not run", "not applicable")
DTYPES = ("float32", "float64", "float16", "bfloat16")
MOST = 8  # reasons in the legend; a table below has them all


class Place(NamedTuple):
    """A column of the heat map."""

    library: str
    path: str  # and the device, where it is not the CPU
    dtype: str


def heat_map(report: Report) -> str:
    """The section with the map and its legend."""
    spots: dict[tuple[str, Place], list[Cell]] = defaultdict(list)
    for cell in report.cells:
        path = place_of(cell).removeprefix(cell.library).strip()
        spots[cell.function, Place(cell.library, path, cell.dtype)].append(cell)
    if not spots:
        return ""
    columns = _columns(place for _, place in spots)
    functions = list(dict.fromkeys(function for function, _ in spots if function != "*")) or ["*"]
    starts, links = _starts(columns), anchors(report)
    # A column without a number needs no room for one.
    checked = {place for (_, place), cells in spots.items() if any(c.status in ("passed", "failed") for c in cells)}
    cols = "".join(
        f'<col class="{start and "start-" + start}{"" if place in checked else " thin"}">'
        for start, place in zip(starts, columns)
    )
    numbers = {
        "wide": max(len(checked), 1),
        "thin": len(columns) - len(checked),
        "paths": starts.count("path"),
        "libraries": starts.count("library"),
    }
    sizes = ";".join(f"--{key}:{value}" for key, value in numbers.items())
    body = "".join(
        f'<tr><th scope="row">{name(function or "all functions")}</th>'
        + "".join(
            _spot(spots.get((function, place)) or spots.get(("*", place), []), start, links)
            for place, start in zip(columns, starts)
        )
        + "</tr>\n"
        for function in functions
    )
    content = f"""<div class="scroll" tabindex="0" role="region" aria-label="Heat map">
<table class="map" style="{sizes}">
<caption><span>The largest share over all checks of a function, by library, path and dtype</span></caption>
<colgroup><col class="name">{cols}</colgroup>
<thead>
{_heads(columns)}</thead>
<tbody>
{body}</tbody></table></div>
{_legend(report)}"""
    return section("map", "Share of the error budget", content)


def _columns(places: Iterable[Place]) -> list[Place]:
    """Libraries and paths as they came, dtypes in the usual order."""
    found = dict.fromkeys(places)
    libraries = list(dict.fromkeys(place.library for place in found))
    paths = list(dict.fromkeys(place[:2] for place in found))
    dtypes = [*DTYPES, *dict.fromkeys(place.dtype for place in found if place.dtype not in DTYPES)]
    return sorted(found, key=lambda p: (libraries.index(p.library), paths.index(p[:2]), dtypes.index(p.dtype)))


def _starts(columns: Sequence[Place]) -> list[str]:
    """For each column, whether a library or a path begins there."""
    before: tuple[Place | None, ...] = (None, *columns)
    return [
        "" if old and old[:2] == new[:2] else "path" if old and old.library == new.library else "library"
        for old, new in zip(before, columns)
    ]


def _heads(columns: Sequence[Place]) -> str:
    """Three rows: libraries, paths, dtypes."""
    lines = []
    for depth, kind in ((1, "library"), (2, "path"), (3, "dtype")):
        groups: dict[tuple[str, ...], int] = {}
        for place in columns:
            groups[place[:depth]] = groups.get(place[:depth], 0) + 1
        starts = _starts([Place(*(*key, "", "")[:3]) for key in groups] if depth < 3 else columns)
        scope = "col" if depth == 3 else "colgroup"
        cells = "".join(
            f'<th scope="{scope}" colspan="{span}" class="{kind} {start and "start-" + start}">'
            f"<span>{name(key[-1] or 'any')}</span></th>"
            for (key, span), start in zip(groups.items(), starts)
        )
        corner = '<th scope="col" rowspan="3">function</th>' if depth == 1 else ""
        lines.append(f'<tr class="{kind}">{corner}{cells}</tr>\n')
    return "".join(lines)


def _spot(cells: Sequence[Cell], start: str, links: Mapping[Cell, str]) -> str:
    """One cell of the map: the most telling status of its checks, and the largest share with that status."""
    edge = f" start-{start}" if start else ""
    if not cells:
        return f'<td class="blank{edge}"></td>'
    status = next(status for status in TELLING if any(cell.status == status for cell in cells))
    largest = max((c for c in cells if c.status == status), key=share_of)
    kind, shown = CLASSES[status], share(largest.share)
    if status == "failed":
        shown = f'<a href="#{links[largest]}"><b>✗</b>{shown}</a>'
    elif status == "passed":
        kind = "passed" if largest.share is None else f"share s{level(largest.share)}"
        kind += " partly" if any(c.status == "not run" for c in cells) else ""
        shown = shown or "✓"
    else:
        shown = "·" if status == "not applicable" else "<span>NOT RUN</span>"
    return f'<td class="{kind}{edge}" title="{_title(cells)}">{shown}</td>'


def _title(cells: Sequence[Cell]) -> str:
    lines = [f"{cells[0].function}, {place_of(cells[0])} {cells[0].dtype}"]
    for cell in cells:
        used = "" if cell.share is None else f", {share(cell.share)} of the budget"
        count = f", {number(cell.cases)} cases" if cell.cases else ""
        lines.append(f"{cell.check}: {LABELS[cell.status]}{used}{count}{cell.reason and f' ({cell.reason})'}")
    return text("\n".join(lines))


def _legend(report: Report) -> str:
    steps = "".join(f'<i class="s{i}"></i>' for i in range(STEPS))
    scale = f'0 <span class="ramp" aria-hidden="true">{steps}</span> 1'
    keys = [
        f'<span class="scale">{scale}</span> share of the budget',
        '<b class="key failed">✗</b> failed, with its share if it has one',
        '<b class="key passed">✓</b> passed; its checks have no budget',
        '<b class="key not-run"></b> NOT RUN',
        '<b class="key passed partly">✓</b> some checks NOT RUN',
        '<b class="key none">·</b> not applicable',
        '<b class="key blank"></b> not part of this run',
    ]
    listed = "".join(f"<li>{key}</li>" for key in keys)
    told = [
        f"<li>{text(reason or UNKNOWN)} <small>{text(', '.join(libraries))}, {number(count)} cells</small></li>"
        for reason, count, libraries in why(report, "not run")
    ]
    more = f'<li><a href="#reasons">{len(told) - MOST} more reasons</a></li>' if len(told) > MOST else ""
    reasons = "".join(told[:MOST]) + more
    return f'<ul class="legend">{listed}</ul>\n' + (
        f'<div class="why"><p>NOT RUN here:</p><ul>{reasons}</ul></div>\n' if reasons else ""
    )
