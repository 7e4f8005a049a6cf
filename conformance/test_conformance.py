"""The cells of the engine, one test each: what ``polyloss conformance`` runs, for pytest.

``pytest conformance --conformance-level standard`` takes more cases than the default, "quick". What is not applicable
is no test; the command counts it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyloss.conformance.engine import Task, cells, run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    level = metafunc.config.getoption("--conformance-level", "quick")
    tasks = [task for task in cells(level=level) if not task.reason]
    metafunc.parametrize("task", [pytest.param(task, id=task.name) for task in tasks])


def test_cell(task: Task, record_property: Callable[[str, object], None]) -> None:
    cell = run(task)
    if cell.share is not None:
        record_property("budget", (cell.function, f"{cell.library} {cell.path} {cell.dtype}", cell.share))
    if cell.status == "not run":
        pytest.skip(cell.reason)
    assert cell.status == "passed", "\n".join(map(str, cell.failures))
