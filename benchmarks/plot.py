"""The picture that README shows: time over the rows and over the classes, both axes logarithmic.

``python -m benchmarks.plot RESULTS.json PICTURE.svg`` draws it again from what ``--json`` kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contestants import OURS

__all__ = ["draw"]

Curve = tuple[list[float], list[float]]

WIDTH = 9.0  # inches at 100 dots: the 900 pixels of a README
GAP = 0.052  # between two labels, as a part of the panel's height
PANELS = {"N": ("rows N, of 1000 classes", 0), "K": ("classes K, of 1024 rows", 1)}

OURS_STYLE = {"color": "#c0261c", "linewidth": 3.0, "zorder": 5}
STYLES: Mapping[str, Mapping[str, Any]] = {
    OURS.name: OURS_STYLE,
    "polyloss, torch": {"color": "#e8837b", "linewidth": 1.8, "zorder": 4},
    "polyloss, torch.compile": {"color": "#e8837b", "linewidth": 1.8, "linestyle": (0, (4, 1.5)), "zorder": 4},
    "polyloss, JAX jit": {"color": "#e8837b", "linewidth": 1.8, "linestyle": (0, (1, 1)), "zorder": 4},
    "torch": {"color": "#1f5fa8"},
    "torch.compile": {"color": "#1f5fa8", "linestyle": (0, (4, 1.5))},
    "JAX jit": {"color": "#2b8a5a"},
    "scikit-learn": {"color": "#b8741a"},
    "SciPy": {"color": "#7a5aa6"},
    "NumPy": {"color": "#444444"},
    "copy": {"color": "#888888", "linestyle": (0, (1, 1.5))},
}


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draws the part ``plot`` of the JSON into an SVG or PNG file."""
    with rc_context({"font.size": 10.5, "svg.hashsalt": "polyloss"}):
        figure = Figure(figsize=(WIDTH, 5.2))
        panels = figure.subplots(1, 2, sharey=True)
        for letter, (heading, index) in PANELS.items():
            curves = _curves(document["plot"][letter], index)
            panel = panels[index]
            _lines(panel, curves)
            panel.set_xlabel(heading)
        panels[0].set_ylabel("time of a call", labelpad=1)
        for panel, letter in zip(panels, PANELS, strict=True):
            _labels(panel, _curves(document["plot"][letter], PANELS[letter][1]))
        figure.suptitle("Softmax cross-entropy with its gradient", x=0.012, ha="left", fontweight="bold")
        figure.text(0.012, 0.907, _subtitle(document["header"]), ha="left", color="#555555", fontsize=9)
        figure.subplots_adjust(left=0.088, right=0.868, top=0.865, bottom=0.105, wspace=0.37)
        _save(figure, path)


def _curves(sweep: Sequence[Mapping[str, Any]], index: int) -> dict[str, Curve]:
    """Sizes and seconds of each contestant that ran."""
    curves: dict[str, Curve] = {}
    for result in sweep:
        for found in result["contestants"]:
            if found["name"] in STYLES and found["median ms"] is not None and not found["wrong"]:
                sizes, seconds = curves.setdefault(found["name"], ([], []))
                sizes.append(result["shape"][index])
                seconds.append(found["median ms"] / 1e3)
    return curves


def _lines(panel: Axes, curves: Mapping[str, Curve]) -> None:
    for name, (sizes, seconds) in curves.items():
        style = {"linewidth": 1.3, "zorder": 3, **STYLES[name]}
        panel.plot(sizes, seconds, marker="o", markersize=2 * style["linewidth"], label=name, **style)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(which="major", alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}".replace(",", " "))
    panel.yaxis.set_major_formatter(lambda t, _: _duration(t))
    panel.minorticks_off()
    panel.tick_params(labelsize=9)


def _labels(panel: Axes, curves: Mapping[str, Curve]) -> None:
    """The names at the curves' right ends, moved apart where they would overlap."""
    panel.figure.canvas.draw()  # settles the limits that both panels share
    low, high = map(math.log, panel.get_ylim())
    ends = sorted((((math.log(seconds[-1]) - low) / (high - low)), name) for name, (_, seconds) in curves.items())
    for height, (end, name) in zip(_apart([end for end, _ in ends]), ends, strict=True):
        style = STYLES[name]
        x = curves[name][0][-1]
        start = panel.transAxes.inverted().transform(panel.transData.transform((x, 1)))[0]
        panel.annotate(
            name.replace(", NumPy", ""),
            xy=(start, end),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=style["color"],
            fontsize=9,
            fontweight="bold" if name == OURS.name else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": style["color"],
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """The nearest heights, in order, of which no two are nearer than the gap: neighbours that touch share a middle."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _span(groups[-2])[1] + GAP > _span(groups[-1])[0]:
            upper = groups.pop()
            groups[-1] += upper
    return [_span(group)[0] + i * GAP for group in groups for i in range(len(group))]


def _span(group: Sequence[float]) -> tuple[float, float]:
    half = GAP * (len(group) - 1) / 2
    middle = min(sum(group) / len(group), 1 - half)  # not above the panel
    return middle - half, middle + half


def _duration(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.999 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds * 1e9:.0f} ns"


def _subtitle(header: Mapping[str, Any]) -> str:
    quick = "; a quick run, no result" if header["quick"] else ""
    return f"float32, median; {header['threads']} threads of {header['cpu']}; outputs allocated in the call{quick}"


def _save(figure: Figure, path: Path) -> None:
    svg = path.suffix == ".svg"
    figure.savefig(path, dpi=200, metadata={"Date": None} if svg else None, facecolor="white")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
