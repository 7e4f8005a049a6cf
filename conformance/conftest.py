"""The level of a run, and at its end how much of its budget each loss has used on each route."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-level", choices=("quick", "standard", "thorough"), default="quick")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[tuple[str, str], float] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, found in getattr(report, "user_properties", ()):
                if key == "budget":
                    function, route, share = found
                    worst[function, route] = max(worst.get((function, route), 0.0), share)
    if worst:
        terminalreporter.section("largest share of the accuracy budget")
        for (function, route), share in sorted(worst.items(), key=lambda pair: -pair[1])[:20]:
            terminalreporter.write_line(f"{function:28} {route:32} {share:5.2f}")
