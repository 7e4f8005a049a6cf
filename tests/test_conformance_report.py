"""The report of conformance: its JSON is what it says, and its page shows all of it, in light and in dark."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from elements import Element, parsed
from reports import realistic

from polyloss.conformance import colours, html, markup, report
from polyloss.conformance.report import Cell, Failure, Report

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;]]>"


def hostile() -> Report:
    """Every text of it would run a script, if it were not escaped."""
    failure = Failure(*[HOSTILE] * 6, ulps=math.inf, budget=6.0)
    failed = Cell(*[HOSTILE] * 6, status="failed", reason=HOSTILE, share=math.inf, failures=(failure,))
    silent = dataclasses.replace(failed, check="silent", share=None, failures=())
    idle = dataclasses.replace(silent, status="not run")
    machine = {"polyloss": HOSTILE, HOSTILE: HOSTILE, "libraries": [{"library": HOSTILE, "paths": {HOSTILE: HOSTILE}}]}
    return Report((failed, silent, idle), machine, {HOSTILE: [HOSTILE], "seed": HOSTILE}, HOSTILE)


@pytest.fixture(scope="module")
def found() -> Report:
    return realistic()


@pytest.fixture(scope="module")
def root(found: Report) -> Element:
    return parsed(html.page(found))


# JSON.


@pytest.mark.parametrize("made", [realistic, hostile])
def test_what_is_read_is_what_was_written(made: Any, tmp_path: Path) -> None:
    found = made()
    assert Report.from_json(found.to_json()) == found
    found.save(tmp_path / "report.json")
    assert Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8")) == found


def test_every_key_of_the_json_is_documented(found: Report) -> None:
    written = json.loads(found.to_json())
    failed = next(cell for cell in written["cells"] if cell["failures"])
    library = written["environment"]["libraries"][0]
    for part in (written, written["counts"], written["environment"], library, failed, failed["failures"][0]):
        for key in part:
            assert f'"{key}"' in (report.__doc__ or "")
    assert f'"{written["schema"]}"' in (report.__doc__ or "")


@pytest.mark.parametrize("text", ['{"schema": "polyloss-conformance/0", "cells": []}', "{}", "[]", "no JSON"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema|Expecting value"):
        Report.from_json(text)


# What the page says.


def test_it_is_well_formed_and_each_link_leads_somewhere(root: Element) -> None:
    ids = Counter(element.attributes["id"] for element in root.all() if "id" in element.attributes)
    assert set(ids.values()) == {1}
    links = [element.attributes["href"] for element in root.all("a")]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    for table in root.all("table"):
        assert len(list(table.all("caption"))) == 1
        assert all("scope" in head.attributes for head in table.all("th"))


@pytest.mark.parametrize("made", [realistic, hostile])
def test_it_stands_by_itself_and_runs_nothing(made: Any) -> None:
    page = html.page(made())
    root = parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {element.tag for element in root.all()}
    for element in root.all():
        assert not any(name == "src" or name.startswith("on") for name in element.attributes)
        assert element.attributes.get("href", "#").startswith("#")
    (style,) = root.all("style")
    assert not re.search(r"url\(|@import|https?:", style.text)
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_every_text_is_escaped_and_kept() -> None:
    found = hostile()
    root = parsed(html.page(found))
    for section in ("failures", "map", "extremes", "reasons", "checks", "environment"):
        assert HOSTILE in root.one(section).text, section
    assert root.one("failures").text.count(HOSTILE) >= len(dataclasses.fields(Failure)) - 2


@pytest.mark.parametrize("faults", [0, 1, 40])
def test_the_verdict_has_the_counts(faults: int) -> None:
    found = realistic(faults=faults)
    (verdict,) = parsed(html.page(found)).all("h1")
    said = re.findall(r"([\d,]+) (passed|failed|NOT RUN|not applicable)", verdict.text)
    assert {status.lower(): int(count.replace(",", "")) for count, status in said} == found.counts
    assert found.counts["failed"] == faults
    assert verdict.text.startswith(f"{faults} of " if faults else "Every cell that was checked conforms")


def test_a_run_that_checked_nothing_does_not_conform() -> None:
    idle = [cell for cell in realistic().cells if cell.status == "not run"]
    for cells in ((), tuple(idle)):
        root = parsed(html.page(Report(cells, {})))
        assert next(root.all("h1")).text.startswith("Nothing was checked: 0 passed")
        assert "does not conform" in next(root.all("title")).text


def test_every_failure_is_told_in_full() -> None:
    found = realistic(faults=40)
    section = parsed(html.page(found)).one("failures")
    articles = list(section.all("details"))
    assert len(articles) == len(found.failed) == 40
    for article, cell in zip(articles, found.failed):
        (failure,) = cell.failures
        for said in (
            failure.law,
            failure.where,
            failure.input,
            failure.expected,
            failure.got,
            cell.function,
            cell.dtype,
        ):
            assert said in article.text
        assert next(article.all("pre")).text == failure.reproduce
        if failure.ulps is not None:
            assert f"{failure.ulps:.4g} ulp, budget {failure.budget:.4g} ulp" in article.text


def test_every_reason_is_said_with_its_count(found: Report, root: Element) -> None:
    rows = {tuple(cell.text for cell in row.children[:3]) for row in root.one("reasons").all("tr")}
    for status, label in (("not run", "NOT RUN"), ("not applicable", "not applicable")):
        for reason, count in found.reasons(status).items():
            assert (reason, label, f"{count:,}") in rows
    titles = " ".join(td.attributes.get("title", "") for td in root.one("map").all("td"))
    legend = " ".join(li.text for li in root.one("map").all("li"))
    for reason in found.reasons("not run"):
        assert reason in titles
        assert reason in legend


def test_a_cell_of_the_map_has_the_largest_share_of_its_checks(found: Report, root: Element) -> None:
    spots: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found.cells:
        device = "" if cell.device == "cpu" else f" {cell.device}"
        spots.setdefault((cell.function, cell.library, cell.path + device, cell.dtype), []).append(cell)
    seen = 0
    for row, columns in rows_of(root.one("map")):
        function, *cells = row
        assert len(cells) == len(columns)
        for (kind, shown), place in zip(cells, columns):
            checks = spots.pop((function[1], *place), [])
            status = {cell.status for cell in checks}
            shares = [cell.share for cell in checks if cell.share is not None]
            seen += 1
            if "failed" in status:
                assert "failed" in kind and shown.startswith("✗")
            elif "passed" in status and shares:
                assert float(shown) == pytest.approx(max(shares), abs=0.0051)
                assert f"s{round(20 * max(shares))} " in f"{kind} "
                assert ("partly" in kind) == ("not run" in status)
            else:
                expected = "✓" if "passed" in status else "NOT RUN" if "not run" in status else "·" if status else ""
                assert shown == expected
    assert not spots
    assert seen == 16 * 48


def rows_of(section: Element) -> Iterator[tuple[list[tuple[str, str]], list[tuple[str, ...]]]]:
    """The rows of the map, as (class, text) of each cell, and the library, path and dtype of its columns."""
    (table,) = section.all("table")
    heads: list[list[str]] = []
    for row in list(table.all("tr"))[:3]:
        heads.append([])
        for head in row.all("th"):
            if "rowspan" not in head.attributes:
                heads[-1] += [head.text] * int(head.attributes["colspan"])
    columns = list(zip(*heads))
    for row in list(table.all("tr"))[3:]:
        cells = [x for x in row.children if isinstance(x, Element)]
        yield [(x.attributes.get("class", ""), x.text) for x in cells], columns


def test_the_closest_and_the_slowest_are_listed_in_order(found: Report, root: Element) -> None:
    near, slow = root.one("extremes").all("tbody")
    shares = sorted((cell.share for cell in found.cells if cell.share is not None), reverse=True)[:15]
    times = sorted((cell.seconds for cell in found.cells), reverse=True)[:15]
    assert [last_of(row) for row in near.all("tr")] == [markup.share(share) for share in shares]
    assert [last_of(row) for row in slow.all("tr")] == [markup.duration(seconds) for seconds in times]


def last_of(row: Element) -> str:
    return list(row.all("td"))[-1].text


def test_the_checks_are_counted(found: Report, root: Element) -> None:
    for row in next(root.one("checks").all("tbody")).all("tr"):
        check, *counts = [cell.text.replace(",", "") for cell in row.children if isinstance(cell, Element)]
        expected = Counter(cell.status for cell in found.cells if cell.check == check)
        assert list(map(int, counts[:4])) == [expected[status] for status in found.counts]


def test_the_environment_is_told(found: Report, root: Element) -> None:
    told = root.one("environment").text
    for library in found.environment["libraries"]:
        for value in (library["library"], library["version"], library["device"], library["reason"]):
            assert value in told
        assert all(path in told for path in library["paths"].values())
    for name in ("python", "processor", "cores", "kernels"):
        assert str(found.environment[name]) in told
    assert "bpr, info_nce" in told


def test_a_page_of_the_json_is_the_page_of_the_report(found: Report) -> None:
    assert html.page(Report.from_json(found.to_json())) == html.page(found)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (0.004, "0"),
        (0.31, ".31"),
        (0.994, ".99"),
        (0.999, "1.0"),
        (1.04, "1.0"),
        (2.84, "2.8"),
        (17.2, "17"),
        (999.0, "999"),
        (5.2e5, "5e5"),
        (1e300, "1e300"),
        (math.inf, "∞"),
        (math.nan, "NaN"),
    ],
)
def test_a_share_is_short(share: float | None, shown: str) -> None:
    assert markup.share(share) == shown


# How it looks.


@pytest.mark.parametrize("stops", [colours.LIGHT, colours.DARK])
def test_the_colours_are_even_in_lightness(stops: tuple[str, ...]) -> None:
    lightness = [116 * ((colours.contrast(c, "#000000") - 1) / 20) ** (1 / 3) - 16 for c in colours.ramp(stops)]
    steps = np.diff(lightness)
    assert len(lightness) == colours.STEPS
    assert np.all(np.sign(steps) == np.sign(steps[0]))
    assert np.max(np.abs(steps / np.mean(steps) - 1)) < 0.25


SCHEMES = {"light": colours.LIGHT, "dark": colours.DARK}

CONTRASTS = """(() => {
  const found = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement
    const style = getComputedStyle(parent)
    if (!text || style.fontSize == '0px' || !parent.checkVisibility()) continue
    let behind = parent
    while (getComputedStyle(behind).backgroundColor == 'rgba(0, 0, 0, 0)') behind = behind.parentElement
    found[style.color + ' on ' + getComputedStyle(behind).backgroundColor] = text
  }
  return Object.entries(found)
})()"""

BOXES = """[...document.querySelectorAll('.map td, .map th')].map(cell => {
  const box = cell.getBoundingClientRect(), range = document.createRange()
  const edge = parseFloat(getComputedStyle(cell).borderLeftWidth)
  range.selectNodeContents(cell)
  const ink = range.getBoundingClientRect()
  return {kind: cell.className, text: cell.innerText, left: box.left + edge + scrollX, right: box.right + scrollX,
          top: box.top + scrollY, bottom: box.bottom + scrollY, ink: [ink.left + scrollX, ink.right + scrollX]}
})"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_looks_right_in_a_browser(scheme: str, found: Report, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "report.html"
    file.write_text(html.page(found), encoding="utf-8")
    with Browser() as browser:
        for width in (1280, 390):
            browser.show(file, scheme=scheme, width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        browser.show(file, scheme=scheme)
        pairs = browser.evaluate(CONTRASTS)
        boxes = browser.evaluate(BOXES)
        room = browser.evaluate("(m => [m.clientWidth, m.scrollWidth])(document.querySelector('.scroll:has(.map)'))")
        with Image.open(browser.screenshot(tmp_path / f"{scheme}.png")) as opened:
            picture = np.asarray(opened.convert("RGB")).astype(int)
    assert len(pairs) > 20
    for pair, text in pairs:
        ink, behind = (hexadecimal(colour) for colour in pair.split(" on "))
        assert colours.contrast(ink, behind) >= 4.5, (pair, text)
    assert room[1] <= room[0]  # the whole map is seen, without scrolling
    assert_apart(boxes)
    assert_painted(boxes, picture, colours.ramp(SCHEMES[scheme]))


def hexadecimal(colour: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*map(int, re.findall(r"\d+", colour)[:3]))


def assert_apart(boxes: list[dict[str, Any]]) -> None:
    """No two cells of the map overlap, and what is written in one stays in it."""
    edges = np.array([[box[side] for side in ("left", "right", "top", "bottom")] for box in boxes])
    left, right, top, bottom = edges.T
    assert np.all(right - left > 8) and np.all(bottom - top > 8)
    beside = (left[:, None] >= right - 0.5) | (left >= right[:, None] - 0.5)
    above = (top[:, None] >= bottom - 0.5) | (top >= bottom[:, None] - 0.5)
    assert np.all(beside | above | np.eye(len(boxes), dtype=bool))
    for box in boxes:
        if box["text"]:
            assert box["left"] - 0.5 <= box["ink"][0] and box["ink"][1] <= box["right"] + 0.5, box


def assert_painted(boxes: list[dict[str, Any]], picture: np.ndarray, ramp: list[str]) -> None:
    """The picture has each cell's colour; what was not run is hatched, and a failure has a colour of its own."""
    failed = set()
    for box in boxes:
        left, right, top, bottom = (round(box[side]) for side in ("left", "right", "top", "bottom"))
        corner = "#{:02x}{:02x}{:02x}".format(*picture[bottom - 3, right - 4])
        if step := re.search(r"\bs(\d+)\b", box["kind"]):
            assert corner == ramp[int(step[1])], box
        elif "failed" in box["kind"]:
            failed.add(corner)
        elif "not-run" in box["kind"]:
            inside = picture[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3)
            assert len(np.unique(inside, axis=0)) >= 2, box
    (colour,) = failed
    assert min(colours.contrast(colour, "#ffffff"), 9) >= 4.5
    nearest = min(np.abs(np.subtract(rgb(colour), rgb(step))).sum() for step in ramp)
    assert nearest > 150


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
