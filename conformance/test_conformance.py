"""The cells of the engine, one test each: what ``polyloss conformance`` runs, for pytest.

``pytest conformance --conformance-level standard`` takes more cases than the default, "quick".
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyloss.conformance.engine import Task, cells, run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    level = metafunc.config.getoption("--conformance-level", "quick")
    metafunc.parametrize("task", [pytest.param(task, id=task.name) for task in cells(level=level)])


def test_cell(task: Task, record_property: Callable[[str, object], None]) -> None:
    cell = run(task)
    if cell.share is not None:
        record_property("budget", (cell.function, f"{cell.library} {cell.path} {cell.dtype}", cell.share))
    if cell.status in ("not run", "not applicable"):
        pytest.skip(cell.reason)
    assert cell.status == "passed", "\n".join(map(str, cell.failures))
