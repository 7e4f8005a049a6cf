"""Prints, at the end of a run, how much of its budget each loss has used on each route."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, found in getattr(report, "user_properties", ()):
                for cell, pair in found.items() if key == "budget" else ():
                    before = worst.get(tuple(cell), (0.0, 0.0))
                    worst[tuple(cell)] = max(before[0], pair[0]), max(before[1], pair[1])
    if worst:
        terminalreporter.section("largest share of the accuracy budget: values, gradients")
        for loss, route in sorted(worst):
            value, gradient = worst[loss, route]
            terminalreporter.write_line(f"{loss:28} {route:16} {value:5.2f} {gradient:5.2f}")
