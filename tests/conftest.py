"""Fixtures that several files share."""

from __future__ import annotations

import os
from datetime import date
from typing import Any

import pytest

# Kernels for CUDA memory are compiled for the hardware or run in the simulator, as the environment says at first.
collect_ignore = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["simulated"]

pytest.register_assert_rewrite("layouts", "peers", "programs")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("polyloss")
    group.addoption(
        "--kernels",
        metavar="PART/PARTS",
        default=f"{date.today().toordinal() % 13 + 1}/13",
        help="the part of the kernels for CUDA memory that is compiled and simulated; by default another one every day",
    )
    group.addoption("--every-kernel", dest="kernels", action="store_const", const="1/1", help="all of them")


def pytest_report_header(config: pytest.Config) -> str:
    return f"kernels for CUDA memory: --kernels {config.getoption('kernels')}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "launchable_key" in metafunc.fixturenames:
        import launchable

        keys = launchable.part(metafunc.config.getoption("kernels"))
        metafunc.parametrize("launchable_key", keys, ids=lambda key: "-".join(map(str, key)))


@pytest.fixture(autouse=True)
def no_call_is_known() -> None:
    """As in a new process."""
    from calls import forget_calls

    forget_calls()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that have been asked for, as each call does that takes no shortcut."""
    from polyloss.backends.cpu import compiled
    from polyloss.replay import Replay

    found: list[Any] = []
    kernel = compiled.kernel

    def asking(*key: Any) -> Any:
        found.append(key)
        return kernel(*key)

    monkeypatch.setattr(compiled, "kernel", asking)
    monkeypatch.setattr(Replay, "_shortcut", lambda *arguments: None)
    return found
