"""What was found: as text, as JSON, and as a page."""

from __future__ import annotations

import html
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import polyloss
from benchmarks.gpu.contestants import COPIES, OURS
from benchmarks.gpu.correctness import Check
from benchmarks.gpu.libraries import Device
from benchmarks.gpu.timing import Measurement
from benchmarks.gpu.workloads import Workload

__all__ = ["Results", "as_html", "as_json", "as_text", "header", "rows", "verdicts"]

Results = Sequence[tuple[Workload, Sequence[Measurement]]]
PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-bindings", "torch", "triton", "jax", "optax", "liger-kernel")
CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")


def header(devices: Sequence[Device], dry: bool) -> dict[str, Any]:
    """On what all this was found."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dry run": dry,
        "device": _asked("name"),
        "driver": _asked("driver_version"),
        "memory": _asked("memory.total"),
        "clocks": _asked("clocks.max.sm"),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), "polyloss": polyloss.__version__}
        | {name: _version(name) for name in (*PACKAGES, *CUPY)},
        "libraries": {device.name: device.reason or f"version {device.version}" for device in devices},
    }


def _asked(field: str) -> str:
    """A property of the first device."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def bandwidth(workload: Workload, found: Measurement) -> float:
    """Bytes a second. torch's backward reads the logits of a softmax again; that of the binary loss is not excused."""
    name, moved = found.contestant.name, workload.moved
    if name in COPIES:
        moved = 2 * workload.unit
    elif name == OURS[1] and workload.loss == "softmax":
        moved += workload.unit
    return moved / found.median


def _copy(workload: Workload, measurements: Sequence[Measurement]) -> float:
    """The bandwidth of a copy within the device, by whoever copies fastest."""
    copies = [bandwidth(workload, m) for m in measurements if m.contestant.name in COPIES and m.seconds]
    return max(copies, default=math.nan)


def verdicts(results: Results) -> list[tuple[str, str]]:
    """Each bar, and whether it holds."""
    found = []
    for workload, measurements in results:
        copy = _copy(workload, measurements)
        uncopied = next((m.reason for m in measurements if m.contestant.name in COPIES and m.reason), "")
        for m in measurements:
            if m.contestant.name not in OURS:
                continue
            if not math.isnan(workload.share):
                share = bandwidth(workload, m) / copy if m.seconds else math.nan
                found.append(
                    _verdict(
                        workload,
                        m,
                        share >= workload.share,
                        f"{share:.0%} of {workload.share:.0%} of a copy",
                        share,
                        uncopied,
                    )
                )
            for peer, factor in workload.factors.get(m.contestant.name, {}).items():
                found.append(_over(workload, m, peer, factor, measurements))
            if not math.isnan(workload.microseconds):
                taken = 1e6 * m.returns
                found.append(
                    _verdict(
                        workload,
                        m,
                        taken < workload.microseconds,
                        f"{taken:.1f} of {workload.microseconds:.0f} us a call",
                        taken,
                    )
                )
    return found


def _over(
    workload: Workload, m: Measurement, peer: str, factor: float, measurements: Sequence[Measurement]
) -> tuple[str, str]:
    """How many times as fast as a peer, in the fastest of its forms ("peer, ...")."""
    forms = [other for other in measurements if other.contestant.name.partition(",")[0] == peer]
    times = [other.median for other in forms if other.seconds]
    found = min(times, default=math.nan) / m.median
    name = f"{workload.name}, {m.contestant.name} over {peer}"
    if math.isnan(found):
        reason = m.reason or next((other.reason for other in forms if other.reason), "a dry run")
        return name, f"NOT MEASURED ({reason})"
    return name, f"{'holds' if found >= factor else 'MISSED'}: {found:.2f} of {factor:g} times as fast"


def _verdict(
    workload: Workload, m: Measurement, holds: bool, text: str, number: float, lacking: str = ""
) -> tuple[str, str]:
    """``lacking``: why what it is compared with was not measured."""
    name = f"{workload.name}, {m.contestant.name}"
    if math.isnan(number):
        return name, f"NOT MEASURED ({m.reason or lacking or 'a dry run'})"
    return name, f"{'holds' if holds else 'MISSED'}: {text}"


def rows(workload: Workload, measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """A table: contestant, time, bandwidth, share of the copy, time over ours, or why it was not run."""
    copy = _copy(workload, measurements)
    ours = min((m.median for m in measurements if m.contestant.name in OURS and m.seconds), default=math.nan)
    table = [("contestant", "ms", "GB/s", "of the copy", "over ours", "returns, us")]
    for m in measurements:
        if m.reason:
            table.append((m.contestant.name, m.reason, "", "", "", ""))
            continue
        speed = bandwidth(workload, m)
        table.append(
            (
                m.contestant.name,
                f"{1e3 * m.median:.4g}",
                f"{speed / 1e9:.0f}",
                f"{speed / copy:.0%}" if copy == copy else "-",
                f"{m.median / ours:.2f}" if ours == ours else "-",
                f"{1e6 * m.returns:.1f}" if m.returns == m.returns else "-",
            )
        )
    return table


def as_text(head: dict[str, Any], found: Sequence[Check], results: Results) -> str:
    lines = [f"{key}: {value}" for key, value in head.items()] + ["", "Is it right?"]
    lines += [
        f"  {c.outcome.partition(':')[0]:8} {c.name}{': ' + _rest(c) if _rest(c) else ''} ({c.seconds:.1f} s)"
        for c in found
    ]
    for workload, measurements in results:
        lines += ["", workload.name]
        table = rows(workload, measurements)
        widths = [max(len(row[i]) for row in table if not row[1].startswith("NOT")) for i in range(6)]
        widths[0] = max(len(row[0]) for row in table)
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
    lines += ["", "The bar", *(f"  {name}: {outcome}" for name, outcome in verdicts(results))]
    return "\n".join(lines) + "\n"


def _rest(check: Check) -> str:
    return check.detail or check.outcome.partition(":")[2].strip()


def as_json(head: dict[str, Any], found: Sequence[Check], results: Results) -> str:
    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None

    document = {
        "header": head,
        "checks": [vars(check) for check in found],
        "workloads": [
            {
                "name": workload.name,
                "bytes to move": workload.moved,
                "contestants": [
                    {
                        "name": m.contestant.name,
                        "not run": m.reason,
                        "median ms": number(1e3 * m.median),
                        "turns ms": [1e3 * s for s in m.seconds],
                        "GB/s": number(bandwidth(workload, m) / 1e9),
                        "share of the copy": number(bandwidth(workload, m) / _copy(workload, measurements)),
                        "returns us": number(1e6 * m.returns),
                    }
                    for m in measurements
                ],
            }
            for workload, measurements in results
        ],
        "bar": [{"name": name, "outcome": outcome} for name, outcome in verdicts(results)],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_html(head: dict[str, Any], found: Sequence[Check], results: Results) -> str:
    def table(lines: Sequence[Sequence[str]]) -> str:
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
        return f"<table>{body}</table>"

    parts = ["<!doctype html><meta charset=utf-8><title>polyloss on a GPU</title>"]
    parts.append(
        "<style>body{font:15px sans-serif;margin:2em}td{padding:2px 10px;border-bottom:1px solid #ddd}</style>"
    )
    parts += ["<h1>polyloss on a GPU</h1>", table([(key, str(value)) for key, value in head.items()])]
    parts += ["<h2>Is it right?</h2>", table([(c.name, c.outcome, c.detail, f"{c.seconds:.1f} s") for c in found])]
    for workload, measurements in results:
        parts += [f"<h2>{html.escape(workload.name)}</h2>", table(rows(workload, measurements))]
    return "\n".join([*parts, "<h2>The bar</h2>", table(verdicts(results)), ""])
