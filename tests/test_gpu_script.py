"""The script for a machine with a GPU, ``python -m benchmarks.gpu``, as far as another one can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyloss.conformance.report import Report

HERE = Path(__file__).parent


def test_the_script_for_a_gpu_runs_dry_and_says_what_it_does_not_run(tmp_path: Path) -> None:
    pytest.importorskip("greenlet")
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path / "gpu")]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    assert outcomes["simulator: value_and_grad: the oracle"] == "passed"
    assert outcomes["numpy: conformance"] == "passed"
    assert Report.from_json((tmp_path / "gpu-conformance.json").read_text(encoding="utf-8")).conforms
    assert "<html" in (tmp_path / "gpu-conformance.html").read_text(encoding="utf-8")
    assert all(outcome == "passed" or outcome.startswith("NOT RUN: ") for outcome in outcomes.values())
    for workload in document["workloads"]:
        reasons = {found["name"]: found["not run"] for found in workload["contestants"]}
        assert reasons.pop("polyloss, CuPy") == ""
        assert all(reason.startswith("NOT RUN: ") for reason in reasons.values())
    assert len(document["bar"]) == 37
    assert all(verdict["outcome"].startswith("NOT MEASURED") for verdict in document["bar"])
    for suffix in (".html", ".txt"):
        assert "NOT MEASURED" in (tmp_path / "gpu").with_suffix(suffix).read_text(encoding="utf-8")


def test_a_verdict_compares_with_the_fastest_form_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE.parent)
    from benchmarks.gpu.contestants import Contestant
    from benchmarks.gpu.report import verdicts
    from benchmarks.gpu.timing import Measurement
    from benchmarks.gpu.workloads import Workload

    times = {"polyloss, CuPy": 1.0, "CuPy by hand": 7.0, "CuPy by hand, fused": 4.0}
    found = [Measurement(Contestant(name, "cupy"), [seconds]) for name, seconds in times.items()]
    for factor, verdict in ((3.0, "holds"), (5.0, "MISSED")):
        workload = Workload("softmax", (8, 10), factors={"polyloss, CuPy": {"CuPy by hand": factor}})
        ((name, outcome),) = verdicts([(workload, found)])
        assert name == "softmax 8 x 10 float32, polyloss, CuPy over CuPy by hand"
        assert outcome == f"{verdict}: 4.00 of {factor:g} times as fast"
    found[1].seconds, found[2].seconds = [], []
    ((_, outcome),) = verdicts([(workload, found)])
    assert outcome.startswith("NOT MEASURED")


def test_a_copy_by_either_library_is_the_limit_and_where_there_is_none_its_reason_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(HERE.parent)
    from benchmarks.gpu.contestants import COPIES, OURS, Contestant
    from benchmarks.gpu.report import verdicts
    from benchmarks.gpu.timing import Measurement
    from benchmarks.gpu.workloads import Workload

    workload = Workload("softmax", (8, 10), share=0.85)
    ours = Measurement(Contestant(OURS[0], "cupy"), [2.0])
    absent = "NOT RUN: ModuleNotFoundError: No module named 'torch'"
    copies = [Measurement(Contestant(name, ""), [], reason=absent) for name in COPIES]
    assert verdicts([(workload, [ours, *copies])]) == [
        ("softmax 8 x 10 float32, polyloss, CuPy", f"NOT MEASURED ({absent})")
    ]
    copies[0] = Measurement(Contestant(COPIES[0], "cupy"), [1.8])
    assert verdicts([(workload, [ours, *copies])])[0][1] == "holds: 90% of 85% of a copy"
    copies[1] = Measurement(Contestant(COPIES[1], "torch"), [1.6])
    assert verdicts([(workload, [ours, *copies])])[0][1] == "MISSED: 80% of 85% of a copy"


def test_logits_that_a_backward_reads_again_are_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE.parent)
    from benchmarks.gpu.contestants import COPIES, OURS, Contestant
    from benchmarks.gpu.report import bandwidth
    from benchmarks.gpu.timing import Measurement
    from benchmarks.gpu.workloads import Workload

    names = (*OURS, COPIES[0])
    for loss, units in (("softmax", [2, 3, 2, 2]), ("sigmoid", [3, 3, 3, 2])):
        workload = Workload(loss, (8, 10))
        found = [bandwidth(workload, Measurement(Contestant(name, "torch"), [0.5])) for name in names]
        assert found == [2 * 320 * n for n in units]


def test_conformance_on_a_gpu_has_a_limit_of_time_and_leaves_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE.parent)
    from benchmarks.gpu.correctness import conforming

    (check,) = conforming([], "quick", True, tmp_path / "report", 0.0)
    assert check.outcome.startswith("NOT RUN")
    assert "1 NOT RUN, for the time was up" in check.detail
    report = Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [cell.reason for cell in report.cells] == ["the time was up"]
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_conformance_on_a_gpu_takes_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE.parent)
    from benchmarks.gpu.correctness import conforming
    from benchmarks.gpu.libraries import Device

    (check,) = conforming([Device("torch")], "quick", False, tmp_path / "report", 0.0)
    report = Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [*dict.fromkeys(cell.path for cell in report.cells)] == ["kernel", "compiled", "generic"]
    assert {(cell.library, cell.device) for cell in report.cells} == {("torch", "cuda")}
    assert f"of {len(report.cells)} cells" in check.detail
