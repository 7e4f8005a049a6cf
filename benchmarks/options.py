"""The options of ``python -m benchmarks``. Nothing here may import NumPy: `process.prepare` comes first."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import cores

__all__ = ["Options", "parse"]

PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class Options:
    only: re.Pattern[str]
    peers: re.Pattern[str]
    threads: int
    seconds: float  # for the rounds of a workload
    turn: float  # seconds that a contestant's turn lasts at least
    pause: float  # seconds before each turn
    quick: bool
    memory: bool
    markdown: bool
    json: Path | None
    plot: Path | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Reads the command line; ends the process with a message where it is not understood."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory of polyloss beside every installed peer, in one run."
    )
    parser.add_argument("--only", type=_pattern, default="", metavar="PATTERN", help="workloads whose name matches")
    parser.add_argument(
        "--peers", type=_pattern, default="", metavar="PATTERN", help="contestants whose name matches, beside polyloss"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="for every contestant (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="to measure each workload for, at least five rounds (15)")
    parser.add_argument("--quick", action="store_true", help="small budgets and a small plot: a smoke test, no result")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--markdown", action="store_true", help="print tables for GitHub, all else to standard error")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, unrounded, and all versions")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="measure the time over N and over K, draw it (.svg, .png)"
    )
    given = parser.parse_args(arguments)
    if not 1 <= given.threads <= cores():
        parser.error(f"--threads must be from 1 to {cores()}, the cores that this process may use")
    if given.plot and given.plot.suffix not in PICTURES:
        parser.error(f"--plot must end in {' or '.join(PICTURES)}, got {given.plot}")
    for path in filter(None, (given.json, given.plot)):
        if not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    return Options(
        only=given.only,
        peers=given.peers,
        threads=given.threads,
        seconds=given.seconds if given.seconds is not None else 0.2 if given.quick else 15.0,
        turn=0.001 if given.quick else 0.02,
        pause=0.001 if given.quick else 0.02,
        quick=given.quick,
        memory=not given.no_memory,
        markdown=given.markdown,
        json=given.json,
        plot=given.plot,
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
