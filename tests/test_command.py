"""The command ``polyloss``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import polyloss
from polyloss.__main__ import main
from polyloss.environment import paths


def test_backends_lists_every_library_with_its_path_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    printed = capsys.readouterr().out
    for name in ("numpy", "cupy", "torch", "jax", "dask"):
        assert f"\n{name} " in printed
    assert polyloss.__version__ in printed
    assert "softplus cross-entropy" in printed
    assert "log-sum-exp cross-entropy" in printed


def test_a_path_is_taken_or_the_reason_is_said() -> None:
    for path in paths():
        assert set(path.taken) in (set(), {"softplus cross-entropy", "log-sum-exp cross-entropy"})
        assert path.taken or path.reason
        if "generic" in path.taken.values():
            assert path.reason


def test_a_library_that_cannot_be_used_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyloss import environment

    monkeypatch.setattr(environment, "LIBRARIES", ("numpy", "broken"))
    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    found = {path.library: path for path in paths()}
    assert found["numpy"].version
    assert "not usable: ModuleNotFoundError" in found["broken"].reason


def test_version_help_and_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--version"], 0), (["--help"], 0), (["sing"], 2), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    assert "polyloss " + polyloss.__version__ in capsys.readouterr().out


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "polyloss", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"polyloss {polyloss.__version__}"
