"""These tests run kernels in the simulator; `tests/test_cuda.py` starts them, in a process of their own."""

from __future__ import annotations

from typing import Any

import launchable
import pytest

from polyloss.backends.cuda import compiled


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel that is made is in the list of those that the compilers are shown."""
    made = compiled.Kernel.__init__

    def make(self: compiled.Kernel, key: Any) -> None:
        assert key in launchable.KEYS
        made(self, key)

    monkeypatch.setattr(compiled.Kernel, "__init__", make)
