"""The cells of the engine, one test each: what ``polyloss conformance`` runs, for pytest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyloss.conformance.engine import cells, run

TASKS = {task.name: task for task in cells()}


@pytest.mark.parametrize("name", TASKS)
def test_cell(name: str, record_property: Callable[[str, object], None]) -> None:
    cell = run(TASKS[name])
    if cell.share is not None:
        record_property("budget", (cell.function, f"{cell.library} {cell.path} {cell.dtype}", cell.share))
    if cell.status in ("not run", "not applicable"):
        pytest.skip(cell.reason)
    assert cell.status == "passed", "\n".join(map(str, cell.failures))
