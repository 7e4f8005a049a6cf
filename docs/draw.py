"""Runs the code of docs/loss-and-metric.md and saves its pictures: the figure of ``axes`` where an image stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

PAGE = Path(__file__).parent / "loss-and-metric.md"
PARTS = re.compile(r"```python\n(.*?)```|!\[[^\]]*\]\(([^)]*)\)", re.S)


def main() -> None:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": PAGE.name, "font.family": "sans-serif"})
    names: dict[str, Any] = {}
    for code, picture in PARTS.findall(PAGE.read_text(encoding="utf-8")):
        if code:
            exec(compile(code, PAGE.name, "exec"), names)
        else:
            names["axes"].figure.savefig(PAGE.parent / picture, metadata={"Date": None})
            print(picture, file=sys.stderr)


if __name__ == "__main__":
    main()
