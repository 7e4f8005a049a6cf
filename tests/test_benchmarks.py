"""`python -m benchmarks`: everybody is reported, wrong outputs are found, and the files are written."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich", reason="the benchmarks need the extra demo")
pytest.importorskip("matplotlib", reason="the benchmarks need the extra demo")

ROOT = Path(__file__).parent.parent

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT)  # benchmarks/ is not installed
    from benchmarks import contestants, memory, options, out_of_core, plot, report, results, timing, workloads
    from benchmarks.__main__ import main
    from benchmarks.reference import reference
    from benchmarks.workloads import Workload

QUICK = ["--quick", "--no-memory"]
SMALL = (
    Workload("softmax_cross_entropy", (6, 5)),
    Workload("softmax_cross_entropy", (6, 5), gradient=False),
    Workload("softmax_cross_entropy", (6, 5), "float64"),
    Workload("sigmoid_cross_entropy", (50,)),
    Workload("info_nce", (9, 4)),
)
names = [workload.name for workload in SMALL]


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks set torch's number of threads. Its C++ compiler, which takes 15 s, is not used."""
    if find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch.set_num_threads(before)


def _compete(workload: Workload, *names: str) -> list[timing.Measurement]:
    chosen = [c for c in contestants.CONTESTANTS if c.name in names]
    return timing.compete(workload, chosen, options.parse(QUICK), lambda what: None)


def test_one_run_reports_every_contestant_and_outputs_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main([*QUICK, "--only", "8 x 10$", "--json", str(path), "--markdown"]) == 0
    document = json.loads(path.read_text(encoding="utf-8"))
    (workload,) = document["workloads"]
    assert workload["name"] == "softmax CE 8 x 10"
    assert [c["name"] for c in workload["contestants"]] == [c.name for c in contestants.CONTESTANTS]
    for found in workload["contestants"]:
        assert not found["wrong"]
        if found["not run"]:
            assert re.search("not installed|not for this loss", found["not run"])
        else:
            assert found["median ms"] > 0 and found["rounds"] >= 5
            assert found["quartiles ms"][0] <= found["median ms"] <= found["quartiles ms"][1]
    assert document["header"]["versions"]["numpy"] == np.__version__
    assert [goal["holds"] for goal in document["bar"] if goal["workload"] == workload["name"]] != ["not measured"]
    printed, shown = capsys.readouterr()
    for contestant in contestants.CONTESTANTS:
        assert f"| {contestant.name}" in printed
        assert contestant.name in shown
    assert re.search(
        r"^\| softmax CE 8 x 10 \| polyloss, NumPy \| NumPy \| 1\.2 \| [\d.]+ \| (yes|no) \|$", printed, re.M
    )


@pytest.mark.parametrize("workload", SMALL, ids=names)
def test_every_peer_computes_what_polyloss_computes(workload: Workload) -> None:
    found = _compete(workload, *[c.name for c in contestants.CONTESTANTS])
    assert len(found) == len(contestants.CONTESTANTS)
    for measurement in found:
        assert not measurement.wrong
        assert measurement.reason == "" or re.search("not installed|not for this loss", measurement.reason)
        assert len(measurement.seconds) in ((0,) if measurement.reason else range(5, 301))


def test_the_plot_of_a_small_sweep_is_written_and_drawn_again(tmp_path: Path) -> None:
    picture, kept = tmp_path / "plot.svg", tmp_path / "results.json"
    arguments = ["--only", "^$", "--peers", "^(NumPy|copy)$", "--plot", str(picture), "--json", str(kept)]
    assert main([*QUICK, *arguments]) == 0
    document = json.loads(kept.read_text(encoding="utf-8"))
    assert set(document["plot"]) == {"N", "K"}
    for sweep in document["plot"].values():
        for point in sweep:
            assert [c["name"] for c in point["contestants"]] == ["polyloss, NumPy", "NumPy", "copy"]
    drawing = picture.read_text(encoding="utf-8")
    assert drawing.startswith("<?xml")
    plot.draw(document, picture)
    assert picture.read_text(encoding="utf-8") == drawing
    plot.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_labels_keep_apart_and_in_order() -> None:
    heights = sorted(np.random.default_rng(0).uniform(0.6, 1, 9))
    apart = plot._apart(heights)
    assert np.all(np.diff(apart) >= plot.GAP - 1e-12)
    assert max(apart) <= 1
    assert plot._apart([0.1, 0.5]) == [0.1, 0.5]


FAULTS = {
    "a value that is a sum": lambda v, g: (v * 6, g),
    "a gradient of the sum": lambda v, g: (v, g * 6),
    "a wrong entry": lambda v, g: (v, np.where(np.arange(g.size).reshape(g.shape) == 7, g + 0.01, g)),
    "small entries that are all wrong": lambda v, g: (v, np.where(g == g.min(), g, g * 0.99)),
    "another dtype": lambda v, g: (v, g.astype(np.float64)),
    "another shape": lambda v, g: (v, g[:, :, None]),
    "no gradient": lambda v, g: v,
    "NaN in the value": lambda v, g: (v * np.nan, g),
    "NaN in the gradient": lambda v, g: (v, np.where(g == g.max(), np.nan, g).astype(g.dtype)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    workload = SMALL[0]
    x, y = workload.inputs()
    right = reference(workload, x, y)
    value, gradient = contestants.polyloss_on_numpy(workload, x, y, threads=1)()
    assert right.disagreement((value, gradient)) == ""
    assert right.disagreement(FAULTS[fault](value, gradient))


def test_a_wrong_contestant_is_marked_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    found = _compete(SMALL[0], "polyloss, NumPy", "NumPy", "copy")
    found[1].wrong = "all of it"
    result = results.Result(SMALL[0], found)
    assert "WRONG: all of it" in list(report.cells(result, found[1]))
    assert "WRONG (" in report.markdown([result], [m.contestant for m in found])
    with report.Display(1, errors=False) as display:
        display.show(report.table_of(result))
    assert "WRONG: all of it" in capsys.readouterr().out


def test_a_peer_that_is_missing_or_broken_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = contestants.find_spec
    monkeypatch.setattr(contestants, "find_spec", lambda name: None if name == "torch" else real(name))
    found = _compete(SMALL[0], "polyloss, NumPy", "torch")
    broken = contestants.Contestant("broken", (), "benchmarks.nowhere:nothing")
    found += timing.compete(SMALL[0], [broken], options.parse(QUICK), lambda what: None)
    assert [m.reason for m in found[:2]] == ["", "torch not installed"]
    assert found[2].reason.startswith("not run: ModuleNotFoundError: No module named 'benchmarks.nowhere'")
    printed = report.markdown([results.Result(SMALL[0], found)], [m.contestant for m in found])
    assert "torch: torch not installed." in printed
    assert "broken (softmax CE 6 x 5): not run: " in printed


def test_the_goals_of_the_bar_are_workloads_and_contestants() -> None:
    for goal in workloads.BAR:
        assert goal.workload in [w.name for w in workloads.WORKLOADS]
        assert goal.peer in [c.name for c in contestants.CONTESTANTS]


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_peak_memory_counts_the_outputs_and_not_the_inputs() -> None:
    workload = next(w for w in workloads.WORKLOADS if w.name == "sigmoid CE 1 M")
    by_name = {c.name: c for c in contestants.CONTESTANTS}
    sizes = {name: memory.peak(by_name[name], workload, 1) / workload.unit for name in ("copy", "NumPy")}
    assert sizes["copy"] == pytest.approx(1, abs=0.2)  # the kernel counts pages in batches
    assert 2 < sizes["NumPy"] < 6


def test_memory_that_cannot_be_measured_has_a_reason() -> None:
    broken = contestants.Contestant("broken", (), "benchmarks.nowhere:nothing")
    with pytest.raises(memory.MemoryUnknown, match=r"StopIteration|on Linux only"):
        memory.peak(broken, SMALL[0], 1)


def test_a_variable_that_slows_openblas_is_unset_and_threads_are_set() -> None:
    code = (
        "import os; from benchmarks import process; process.prepare(1); "
        "print(process.unset_variables(), 'OPENBLAS_CORETYPE' in os.environ, os.environ['NUMBA_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["OPENBLAS_CORETYPE"] = "Nehalem"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "OPENBLAS_CORETYPE=Nehalem False 1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "must be from 1 to"),
        (["--only", "("], "not a regular expression"),
        (["--plot", "picture.gif"], "must end in .png or .svg"),
        (["--json", "nowhere/results.json"], "there is no folder nowhere"),
    ],
)
def test_a_command_that_is_not_understood_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pattern_that_matches_nothing_lists_the_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nonesuch"]) == 2
    message = capsys.readouterr().err
    assert all(workload.name in message for workload in workloads.WORKLOADS)


@pytest.mark.parametrize(
    ("number", "shown"), [(0.0, "0"), (0.001234, "0.00123"), (1.0, "1.00"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_a_figure_has_three_digits(number: float, shown: str) -> None:
    assert report.figure(number) == shown
    assert report.figure(float("nan")) == "-"


def test_a_loss_from_disk_is_computed_by_every_contestant(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dask.array")
    assert out_of_core.main(["--quick", "--rows", "25000"]) == 0
    shown = capsys.readouterr().out
    assert "25,000 x 10" in shown
    for contestant in out_of_core.CONTESTANTS:
        assert len(re.findall(rf"^value.* {re.escape(contestant)} .* agree", shown, re.M)) == 2


def test_a_contestant_that_disagrees_about_a_loss_from_disk_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    turn = {"seconds": 1.0, "busy": 1.0, "results": [2.0, 3.0], "memory": None}
    wrong = turn | {"results": [2.0, 3.1]}
    found = {
        ("value and gradient", name): [turn if name == "polyloss" else wrong] for name in ("polyloss", "dask.array")
    }
    assert out_of_core._report(found, 10, 5, 2) == 1
    assert "WRONG: [2.0, 3.1]" in capsys.readouterr().out
