"""The report as one page of HTML, which stands by itself: no script, nothing to load, in light, in dark and on paper.

`page` renders what `Report` holds, so a page can be made of a JSON that came from another machine. The style sheet
stands beside this module in ``report.css``. A content security policy in the page forbids scripts and all that comes
from outside, so that even a mistake in the escaping here would run nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, get_args

from polyloss.conformance.colours import ramps
from polyloss.conformance.heat_map import heat_map
from polyloss.conformance.markup import (
    CLASSES,
    LABELS,
    UNKNOWN,
    anchors,
    duration,
    gauge,
    name,
    number,
    place_of,
    section,
    share,
    share_of,
    table,
    text,
    why,
)
from polyloss.conformance.report import SCHEMA, Cell, Failure, Report, Status

__all__ = ["page"]

OPEN = 10  # failures that are shown in full; the others are one click away
TOP = 15


def page(report: Report) -> str:
    """The whole page."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8") + ramps()
    sections = [
        _failures(report),
        heat_map(report),
        _extremes(report),
        _reasons(report),
        _checks(report),
        _environment(report),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>polyloss conformance: {text("conforms" if report.conforms else "does not conform")}</title>
<style>
{style}</style>
</head>
<body>
{_verdict(report)}<main>
{"".join(sections)}</main>
<footer><p>Rendered from a report of schema <code>{SCHEMA}</code>.</p></footer>
</body>
</html>
"""


# The verdict, and what failed.


def _verdict(report: Report) -> str:
    counts = report.counts
    checked = counts["passed"] + counts["failed"]
    if report.conforms:
        mark, kind, claim = "✓", "passed", "Every cell that was checked conforms"
    elif checked:
        mark, kind = "✗", "failed"
        claim = f"{number(counts['failed'])} of {number(checked)} checked cells do not conform"
    else:
        mark, kind, claim = "?", "not-run", "Nothing was checked"
    outcome = ", ".join(_count(status, counts[status], f" {LABELS[status]}") for status in counts)
    parts = "".join(
        f'<i class="{CLASSES[status]}" style="flex-grow:{counts[status]}"></i>' for status in counts if counts[status]
    )
    facts = [
        f"polyloss {report.environment.get('polyloss', '?')}",
        report.options.get("level"),
        f"seed {report.options['seed']}" if "seed" in report.options else None,
        duration(report.seconds),
        report.created.replace("T", " ").removesuffix("+00:00") + " UTC" if report.created else None,
    ]
    return f"""<header>
<p class="brand">polyloss conformance</p>
<div class="verdict {kind}"><span class="mark" aria-hidden="true">{mark}</span>
<h1>{claim}: <span class="outcome">{outcome}.</span></h1></div>
<div class="bar" aria-hidden="true">{parts}</div>
<p class="run">{" · ".join(text(fact) for fact in facts if fact)}</p>
<p class="note">A cell is one check of one function in one library, on one path, in one dtype. Its share is the largest
part of its error budget that it used: above 1 it fails.</p>
</header>
"""


def _count(status: Status, count: int, label: str = "") -> str:
    return f'<span class="{CLASSES[status] if count else "zero"}">{number(count)}{label}</span>'


def _failures(report: Report) -> str:
    found: list[tuple[Cell, Failure | None]] = []
    for cell in report.failed:
        found += [(cell, failure) for failure in cell.failures or (None,)]
    if not found:
        return section("failures", "Failures", '<p class="good">✓ None.</p>\n')
    links = anchors(report)
    articles = [_failure(cell, failure, links.pop(cell, ""), i < OPEN) for i, (cell, failure) in enumerate(found)]
    note = f"<p>The first {OPEN} are open.</p>\n" if len(found) > OPEN else ""
    return section("failures", f"Failures <small>{number(len(found))}</small>", note + "".join(articles))


def _failure(cell: Cell, failure: Failure | None, anchor: str, shown: bool) -> str:
    law, rows, line = "Failed", [("reason", text(cell.reason or UNKNOWN))], ""
    if failure is not None:
        law, rows = text(failure.law), list(_particulars(failure))
        line = f'<p>Reproduce it:</p>\n<pre tabindex="0"><code>{text(failure.reproduce)}</code></pre>\n'
    if cell.share is not None:
        rows.append(("share", f"{share(cell.share)} times the budget, the largest in {number(cell.cases)} cases"))
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>\n" for key, value in rows)
    place = " · ".join(text(part) for part in (cell.function, place_of(cell), cell.dtype, cell.check) if part)
    return f"""<details class="failure"{" open" if shown else ""}>
<summary><strong>{law}</strong> <span>{place}</span></summary>
<dl{anchor and f' id="{anchor}"'}>
{listed}</dl>
{line}</details>
"""


def _particulars(failure: Failure) -> Iterator[tuple[str, str]]:
    yield "case", text(failure.where)
    yield "input", f"<code>{text(failure.input)}</code>"
    for who, found in (("expected", failure.expected), ("got", failure.got)):
        if found:
            yield who, f"<code>{text(found)}</code>"
    error = "" if failure.ulps is None else f"<strong>{failure.ulps:.4g} ulp</strong>"
    budget = "" if failure.budget is None else f"budget {failure.budget:.4g} ulp"
    if error or budget:
        yield "error", ", ".join(filter(None, (error, budget)))


# The tables.


def _extremes(report: Report) -> str:
    closest = sorted((c for c in report.cells if c.share is not None), key=share_of, reverse=True)[:TOP]
    slowest = sorted((c for c in report.cells if c.seconds > 0), key=lambda c: c.seconds, reverse=True)[:TOP]
    longest = max((c.seconds for c in slowest), default=1.0)
    near = [(*_who(c), gauge(share_of(c), share(c.share), c.status)) for c in closest]
    slow = [(*_who(c), gauge(c.seconds / longest, duration(c.seconds))) for c in slowest]
    heads = ("function", "where", "dtype", "check")
    parts = table("The largest shares of a budget", (*heads, "share"), near, kind="list ranking") if near else ""
    parts += table("The longest times", (*heads, "time"), slow, kind="list ranking") if slow else ""
    return section("extremes", "Closest and slowest", f'<div class="pair">{parts}</div>\n') if parts else ""


def _who(cell: Cell) -> tuple[str, str, str, str]:
    return name(cell.function), name(place_of(cell)), text(cell.dtype), text(cell.check)


def _reasons(report: Report) -> str:
    wanted: tuple[Status, ...] = ("not run", "not applicable")
    rows = [
        (text(reason or UNKNOWN), LABELS[status], number(count), text(", ".join(libraries)))
        for status in wanted
        for reason, count, libraries in why(report, status)
    ]
    heads = ("reason", "status", "cells", "libraries")
    reasons = table("Why cells have no result", heads, rows, "  n", "list sentences")
    return section("reasons", "Not run, and not applicable", reasons) if rows else ""


def _checks(report: Report) -> str:
    rows = []
    for check in dict.fromkeys(cell.check for cell in report.cells):
        cells = [cell for cell in report.cells if cell.check == check]
        largest = max(cells, key=share_of).share
        counted = [_count(status, sum(cell.status == status for cell in cells)) for status in get_args(Status)]
        cases, seconds = sum(cell.cases for cell in cells), sum(cell.seconds for cell in cells)
        rows.append((text(check), *counted, share(largest) or "-", number(cases), duration(seconds)))
    heads = ("check", *LABELS.values(), "largest share", "cases", "time")
    return section("checks", "Checks", table("How many cells have which status", heads, rows, " nnnnnnn"))


def _environment(report: Report) -> str:
    machine = dict(report.environment)
    libraries: Sequence[Mapping[str, Any]] = machine.pop("libraries", ())
    rows = [
        (
            name(library.get("library", "")),
            text(library.get("version") or "-"),
            text(library.get("device") or "-"),
            text(library.get("memory") or "-"),
            _paths(library.get("paths", {})),
            text(library.get("reason", "")),
        )
        for library in libraries
    ]
    heads = ("library", "version", "device", "memory", "path taken", "why not faster")
    known = table("Array libraries", heads, rows) if rows else ""
    facts = machine | {"begun": report.created, "duration": duration(report.seconds)}
    pair = f'<div class="pair">{_facts("Machine", facts)}{_facts("Options", report.options)}</div>\n'
    return section("environment", "Environment", pair + known)


def _paths(paths: Mapping[str, str]) -> str:
    """The path of each primitive, or the one that all take."""
    if len(set(paths.values())) <= 1:
        return "".join(f"<code>{name(path)}</code>" for path in set(paths.values())) or "-"
    return "<br>".join(f"{text(primitive)}: <code>{name(path)}</code>" for primitive, path in paths.items())


def _facts(caption: str, facts: Mapping[str, Any]) -> str:
    def value(x: Any) -> str:
        found = ", ".join(map(str, x)) if isinstance(x, (list, tuple)) else "" if x is None else str(x)
        return text(found or "-")

    rows = "".join(f'<tr><th scope="row">{text(key)}</th><td>{value(x)}</td></tr>\n' for key, x in facts.items())
    return f'<table class="list facts"><caption>{caption}</caption><tbody>\n{rows}</tbody></table>\n'
