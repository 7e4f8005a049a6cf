"""`polyloss demo`: its models learn, every library learns the same, and what it says where it cannot run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polyloss import demo

EXTRA = "the demo needs its extra"
tasks = pytest.importorskip("polyloss.demo.tasks", reason=EXTRA)
training = pytest.importorskip("polyloss.demo.training", reason=EXTRA)
report = pytest.importorskip("polyloss.demo.report", reason=EXTRA)
image = pytest.importorskip("matplotlib.image", reason=EXTRA)

QUICK = tasks.all_tasks(quick=True)
NAMES = [task.loss for task in QUICK]
LEAST = {  # of the held-out metric after a quick training
    "softmax_cross_entropy": 0.9,  # chance is 0.1
    "sigmoid_cross_entropy": 0.88,  # chance is 0.5
    "bpr": 0.95,  # chance is 0.5
    "pairwise_hinge": 0.95,
    "contrastive": 0.88,  # chance is 0.1, the random projection at the start reaches 0.79
    "info_nce": 0.04,  # chance is 1 in 450
}


def _silent(description: str) -> None:
    pass


@pytest.mark.parametrize("task", QUICK, ids=NAMES)
def test_a_task_is_learnt(task: tasks.Task) -> None:
    (outcome,) = training.compare(task, ["numpy"], _silent)
    before, after = outcome.losses
    assert after < before / 2
    assert np.all(np.diff(outcome.curve) < 0)
    assert len(outcome.curve) == task.epochs
    assert outcome.scores[1] > max(LEAST[task.loss], outcome.scores[0])
    assert all(p.dtype == np.float32 for p in outcome.parameters.values())


@pytest.mark.parametrize("task", QUICK, ids=NAMES)
def test_the_chain_rule_is_right(task: tasks.Task) -> None:
    """The gradient of each model along a random direction is the central difference of its loss."""
    random = np.random.default_rng(1)
    batch = {key: x.astype(np.float64) if x.dtype == np.float32 else x for key, x in task.batches[0].items()}
    at = {key: p + 0.1 * random.standard_normal(p.shape) for key, p in task.initial.items()}
    towards = {key: random.standard_normal(p.shape) for key, p in at.items()}
    _, gradients = task.objective(at, **batch)
    step = 1e-6
    ahead, behind = (
        task.objective({key: p + s * towards[key] for key, p in at.items()}, **batch)[0] for s in (step, -step)
    )
    slope = sum(np.sum(gradients[key] * towards[key]) for key in at)
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("library", ["torch", "jax", "array_api_strict"])
@pytest.mark.parametrize("task", QUICK, ids=NAMES)
def test_libraries_learn_the_same(task: tasks.Task, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """array-api-strict has nothing beyond the standard: what runs in it runs in every library of the standard."""
    pytest.importorskip(library, reason="an optional array library")
    monkeypatch.setitem(training.LIBRARIES, "array_api_strict", training.ArrayLibrary("array_api_strict"))
    reference, outcome = training.compare(task, ["numpy", library], _silent)
    for key, p in reference.parameters.items():
        # Only rounding differs: one of a weight near 1 is 6e-8, and an epoch has at most 8 steps.
        np.testing.assert_allclose(outcome.parameters[key], p, rtol=0, atol=1e-5)
        assert outcome.difference >= np.max(np.abs(outcome.parameters[key] - p))
    assert outcome.difference <= 1e-5
    assert outcome.curve == pytest.approx(reference.curve, rel=1e-5)
    assert outcome.scores[0] == reference.scores[0]


def test_a_run_prints_one_table_and_saves_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    assert demo.run(["numpy"], picture, quick=True) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    lines = [line.strip() for line in printed.splitlines()]
    for task in QUICK:
        loss = next(i for i, line in enumerate(lines) if line == task.loss)
        assert lines[loss - 1].startswith(task.name)
        assert lines[loss - 1].count("->") == 2
        assert lines[loss + 1] == task.metric
    assert lines[-1] == f"training curves: {picture}"
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert "…" not in printed
    assert os.listdir(tmp_path) == ["curves.png"]
    pixels = image.imread(picture)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 900
    assert np.std(pixels) > 0.05


def test_libraries_that_cannot_run_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = {
        name: training.ArrayLibrary(name) for name in ("absent_library", "math")
    }  # math stands for a missing device
    monkeypatch.setattr(training, "LIBRARIES", {"numpy": training.LIBRARIES["numpy"], **libraries})
    monkeypatch.setattr(tasks, "all_tasks", lambda quick: QUICK[1:2])
    assert demo.run(None, tmp_path / "curves.png", quick=True) == 0
    printed = capsys.readouterr().out
    assert "absent_library: not run: No module named 'absent_library'" in printed
    assert "math: not run: AttributeError" in printed
    assert demo.run(["math"], tmp_path / "other.png", quick=True) == 1
    assert "cannot run in math: AttributeError" in capsys.readouterr().err


def test_an_unknown_library_is_an_error_that_lists_the_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.run(["numpi"], tmp_path / "curves.png") == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors == "polyloss demo does not know the library 'numpi'; it knows numpy, torch, jax, cupy\n"


@pytest.mark.parametrize("module", demo.EXTRA)
def test_a_missing_extra_is_named(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.run(["numpy"]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors == 'polyloss demo needs the extra: pip install "array-polyloss[demo]"\n'


def _folder(path: Path) -> Path:
    (path / "folder.png").mkdir()
    return path / "folder.png"


def _link(path: Path) -> Path:
    (path / "notes.txt").write_text("kept")
    (path / "link.png").symlink_to(path / "notes.txt")
    return path / "link.png"


def _below_a_file(path: Path) -> Path:
    (path / "notes.txt").write_text("kept")
    return path / "notes.txt" / "curves.png"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "missing" / "curves.png", "No such file or directory"),
        (lambda path: path / "curves.txt", "must end in .png"),
        (_folder, "not a regular file"),
        (_link, "not a regular file"),
        (_below_a_file, "Not a directory"),
    ],
    ids=["missing folder", "suffix", "folder", "link", "below a file"],
)
def test_a_picture_that_cannot_be_saved_is_an_error_before_training(
    make: Callable[[Path], Path],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "compare", lambda *_: pytest.fail("trained"))
    picture = make(tmp_path)
    assert demo.run(["numpy"], picture) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert said in errors
    assert str(picture) in errors
    assert all(path.read_text() == "kept" for path in tmp_path.glob("*.txt"))


def test_the_check_of_the_picture_leaves_no_trace(tmp_path: Path) -> None:
    report.check_picture(tmp_path / "new.png")
    assert os.listdir(tmp_path) == []
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    report.check_picture(old)
    assert old.read_bytes() == b"old"
