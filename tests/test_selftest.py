"""The self-test of conformance: faults that are where they are said to be, and a runner that tells what became of them.

The runner is tested with a stand-in for conformance, which looks at one number.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import polyloss
import polyloss.backends
from polyloss.conformance.faults import FAULTS, Fault
from polyloss.conformance.selftest import Outcome, SelfTest, self_test, show

HINGE = Fault("sign", "ranking.py", "short = self.margin - x", "short = self.margin + x")
HARMLESS = Fault("harmless", "ranking.py", "short = self.margin - x", "short = -x + self.margin")
ABSENT = Fault("absent", "ranking.py", "short = self.margin - x", "short = 0 * x", ("nolibraryhasthisname",))

LOOKS_AT_HINGE = """
import json, sys
import numpy as np, polyloss
right = polyloss.pairwise_hinge(np.array([0.25]), np.array([0.0])) == 0.75
where = {"check": "value", "function": "pairwise_hinge", "library": "numpy", "path": "kernel", "dtype": "float64"}
cell = where | {"device": "cpu", "status": "passed" if right else "failed", "reason": "", "failures": []}
with open("result.json", "w") as file:
    json.dump({"cells": [cell]}, file)
sys.exit(not right)
"""


def stand_in(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def plant(*faults: Fault, code: str = LOOKS_AT_HINGE, timeout: float = 60.0) -> dict[str, Outcome]:
    result = self_test(command=stand_in(code), faults=faults, timeout=timeout)
    assert not result.problem
    return {outcome.fault.name: outcome for outcome in result.outcomes}


# The list.


def sources() -> dict[str, str]:
    """The files of the package by their names in it."""
    places = {"": polyloss.__file__, "backends/": polyloss.backends.__file__}
    return {
        f"{prefix}{path.relative_to(top).as_posix()}": path.read_text(encoding="utf-8")
        for prefix, init in places.items()
        for top in [Path(str(init)).parent]
        for path in top.rglob("*.py")
    }


def test_every_fault_replaces_what_stands_once_in_its_file_and_by_python() -> None:
    files = sources()
    for fault in FAULTS:
        assert files[fault.file].count(fault.old) == 1, fault.name
        patched = files[fault.file].replace(fault.old, fault.new)
        assert patched != files[fault.file], fault.name
        compile(patched, fault.file, "exec")


def test_names_are_unique_and_there_are_many() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 50
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


def test_every_part_has_faults() -> None:
    parts = """primitives reduction classification ranking contrastive retrieval evaluation transforms vectors inputs
        replay application gradients backends/torch backends/jax backends/jax_kernels backends/dask backends/numpy
        backends/cpu/rows backends/cpu/soft backends/cpu/lanes backends/cpu/elements backends/cpu/arithmetic
        backends/cpu/transforms backends/cpu/lse backends/cpu/softplus backends/cpu/threads"""
    assert {f"{part}.py" for part in parts.split()} <= {fault.file for fault in FAULTS}


# The runner.


def test_a_fault_is_caught_by_the_cell_that_failed_and_a_harmless_one_survives() -> None:
    many = Fault("many", HINGE.file, HINGE.old, HINGE.new, processors=1 << 20)
    found = plant(HINGE, HARMLESS, ABSENT, many)
    assert (found["sign"].status, found["sign"].by) == ("caught", "check")
    assert found["sign"].words == "value pairwise_hinge numpy kernel float64 cpu"
    assert found["harmless"].status == "survived"
    assert found["absent"].status == "not planted"
    assert found["absent"].words == "nolibraryhasthisname is not installed"
    assert found["many"].status == "not planted"
    assert "it takes 1048576 processors" in found["many"].words


def test_a_crash_is_told_from_a_failed_cell() -> None:
    crash = plant(Fault("crash", HINGE.file, HINGE.old, "raise MemoryError('of a kind')"))["crash"]
    assert (crash.status, crash.by) == ("caught", "crash")
    assert "MemoryError: of a kind" in crash.output


def test_a_hang_is_ended_and_caught() -> None:
    hang = Fault("hang", "__init__.py", "from polyloss.version import", "import time; time.sleep(99)  #")
    outcome = plant(hang, timeout=1.0)["hang"]
    assert (outcome.status, outcome.by) == ("caught", "timeout")
    assert 1.0 <= outcome.seconds < 30.0


def test_a_patch_that_fits_no_place_or_several_is_an_error_before_anything_runs() -> None:
    for old, found in (("no such text", "0"), ("return", "[1-9]")):
        bad = Fault("bad", "primitives.py", old, "")
        with pytest.raises(ValueError, match=f"bad: primitives.py must contain '{old}' once, found {found}"):
            self_test(command=["no-such-command"], faults=[HINGE, bad])


def test_unknown_names_are_an_error_and_known_ones_choose() -> None:
    with pytest.raises(ValueError, match="no such fault: 'nonsense'"):
        self_test(["sign", "nonsense"], faults=[HINGE], command=stand_in(LOOKS_AT_HINGE))
    heard: list[Outcome] = []
    result = self_test(["sign"], faults=[HARMLESS, HINGE], command=stand_in(LOOKS_AT_HINGE), progress=heard.append)
    assert [outcome.fault.name for outcome in result.outcomes] == ["sign"]
    assert heard == list(result.outcomes)
    assert (result.caught, result.planted, result.exit_status) == (1, 1, 0)


def test_without_a_passing_run_before_nothing_is_planted() -> None:
    fails = LOOKS_AT_HINGE.replace("== 0.75", "== 0.5")
    for code, expected in (
        (fails, "it failed: value pairwise_hinge numpy kernel float64 cpu"),
        ("raise SystemExit(2)", "it ended with status 2"),
        ("pass", "it left no cell in result.json that passed"),
        (LOOKS_AT_HINGE.replace('"passed"', '"not run"'), "it left no cell in result.json that passed"),
    ):
        result = self_test(faults=[HINGE], command=stand_in(code))
        assert expected in result.problem
        assert (result.outcomes, result.exit_status) == ((), 2)


KEEPS_A_KERNEL = """
import os, pathlib
folder = pathlib.Path(os.environ["POLYLOSS_CACHE_DIR"])
assert (folder / "user.o").read_text() == "code"
with (folder / "found.txt").open("a") as found:
    print("once", file=found)
assert (folder / "found.txt").read_text() in ("once\\n", "once\\nonce\\n")
"""


def test_kernels_of_the_user_are_found_and_shared_and_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("llvmlite")
    (tmp_path / "user.o").write_text("code")
    monkeypatch.setenv("POLYLOSS_CACHE_DIR", str(tmp_path))
    assert plant(HINGE, code=KEEPS_A_KERNEL + LOOKS_AT_HINGE)["sign"].by == "check"
    assert [path.name for path in tmp_path.iterdir()] == ["user.o"]


def test_it_can_be_interrupted() -> None:
    """Nothing is left behind that runs, or waits for what runs."""

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    slow = Fault("slow", HINGE.file, HINGE.old, "import time; time.sleep(99)")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        self_test(faults=[HINGE, slow], command=stand_in(LOOKS_AT_HINGE), progress=interrupt)
    assert time.monotonic() - began < 30.0


# The report.


def test_the_exit_status_is_0_only_if_faults_were_planted_and_all_caught() -> None:
    caught, survived = Outcome(HINGE, "caught", "crash"), Outcome(HARMLESS, "survived")
    absent = Outcome(ABSENT, "not planted", "nolibraryhasthisname is not installed")
    assert SelfTest((caught, absent), 1.0).exit_status == 0
    assert SelfTest((caught, survived), 1.0).exit_status == 1
    assert SelfTest((absent,), 1.0).exit_status == 2
    assert SelfTest((), 1.0, "it failed").exit_status == 2


def test_the_report_is_json_and_a_table_with_survivors_first(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    cell = {"check": "value", "function": "bpr", "library": "torch", "path": "", "dtype": "float32", "device": "cpu"}
    result = SelfTest((Outcome(HINGE, "caught", "check", cell, 2.0), Outcome(HARMLESS, "survived")), 9.0)
    read = json.loads(json.dumps(result.to_json()))
    assert (read["caught"], read["planted"], read["faults"][0]["cell"]) == (1, 2, cell)
    show(result)
    printed = capsys.readouterr().out
    assert printed.index("harmless") < printed.index("sign")
    assert "value bpr torch float32 cpu" in printed
    assert "caught 1 of 2 planted" in printed
    show(SelfTest((), 1.0, "Conformance fails."))
    assert "The self-test says nothing. Conformance fails." in capsys.readouterr().out
