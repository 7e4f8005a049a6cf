"""Fixtures that several files share."""

from __future__ import annotations

from typing import Any

import pytest

pytest.register_assert_rewrite("layouts", "peers", "programs")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that have been asked for."""
    from polyloss.backends.cpu import compiled

    found: list[Any] = []
    kernel = compiled.kernel

    def asking(*key: Any) -> Any:
        found.append(key)
        return kernel(*key)

    monkeypatch.setattr(compiled, "kernel", asking)
    return found
