"""Fixtures that several files share."""

from __future__ import annotations

import os
from typing import Any

import pytest

# Kernels for CUDA memory are compiled for the hardware or run in the simulator, as the environment says at first.
collect_ignore = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["simulated"]

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
