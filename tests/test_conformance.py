"""The engine of conformance: what it selects, what it says of a failure, and the command."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import python

import polyloss
from polyloss.__main__ import main
from polyloss.conformance import LIMITS, agreement, cells, check, command, oracle, reproduce
from polyloss.conformance import routes as conformance_routes
from polyloss.conformance.accuracy import _literal
from polyloss.conformance.compare import Differs, compare
from polyloss.conformance.engine import checks
from polyloss.conformance.exhaustive import exhaustive, exhausts, outside
from polyloss.conformance.grid import VARIANTS, grid
from polyloss.conformance.laws import LAWS
from polyloss.conformance.losses import LOSSES
from polyloss.conformance.report import Report
from polyloss.conformance.routes import DTYPES, Route, routes
from polyloss.conformance.search import smallest
from polyloss.conformance.subject import Draw, Subject

ONE: dict[str, Any] = {"loss": "sigmoid", "dtype": "float32", "path": "generic", "only": "accuracy", "level": "quick"}


def test_what_is_right_conforms() -> None:
    report = check("numpy", **ONE)
    assert report.conforms
    assert [cell.status for cell in report.cells] == ["passed"]
    assert 0 < report.cells[0].share < 1


def test_a_failure_has_the_smallest_input_and_a_line_that_reproduces_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = polyloss.sigmoid
    monkeypatch.setattr(polyloss, "sigmoid", lambda x: right(x) * np.asarray(1 + 1e-4, x.dtype))
    report = check("numpy", **ONE)
    assert not report.conforms
    failure = report.failed[0].failures[0]
    assert failure.input == "[0.0]"
    assert failure.expected == "0.5"
    assert failure.ulps is not None and failure.budget is not None and failure.ulps > 100 > failure.budget
    names: dict[str, Any] = {}
    exec(failure.reproduce.replace("; reproduce", "; share = reproduce"), names)
    assert names["share"] > 1
    assert "oracle 0.5" in capsys.readouterr().out


def test_an_exception_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Any) -> Any:
        raise RuntimeError("a driver is missing")

    monkeypatch.setattr(polyloss, "sigmoid", broken)
    (failed,) = check("numpy", **ONE).failed
    assert "a driver is missing" in failed.failures[0].got


def test_a_law_that_does_not_hold_is_reproduced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(subject: Any, draw: Any) -> None:
        assert draw.n < 3, "three is too many"

    checks()  # fills the table
    monkeypatch.setitem(LAWS, "shift", replace(LAWS["shift"], run=never))
    from polyloss.conformance import obey

    with pytest.raises(AssertionError, match="three is too many"):
        obey("shift", "softmax_cross_entropy", "numpy", "generic", "float32", n=3)


def test_a_line_that_reproduces_runs_in_a_new_process() -> None:
    """Which has put no law into the table yet."""
    laws = ("any call", "masked classes", "again", "options together")
    lines = [f"obey({law!r}, 'softmax_cross_entropy', 'numpy', 'generic', 'float32')" for law in laws]
    assert python("from polyloss.conformance import obey", *lines) == ""


def test_a_law_of_numbers_says_which_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Subject.items
    monkeypatch.setattr(Subject, "items", lambda *given: right(*given) * np.float32(1 + 1e-3))
    report = check("numpy", loss="bpr", dtype="float32", path="generic", only="textbook", level="quick")
    (failure, *_) = report.failed[0].failures
    assert float(failure.got) == pytest.approx(float(failure.expected) * 1.001, rel=1e-6)
    assert failure.ulps is not None and failure.budget is not None and failure.ulps > 4000 > failure.budget > 0
    assert "the items at (0,)" in failure.where
    with pytest.raises(Differs, match="the items"):
        exec(failure.reproduce)


def test_a_limit_says_which_number_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = replace(LIMITS["infinite scores"], items=[0.0, 1.0, np.nan])
    monkeypatch.setitem(LIMITS, "infinite scores", limit)
    report = check("numpy", loss="bpr", dtype="float64", path="generic", only="limits", level="quick")
    failure, other = report.failed[0].failures
    assert "a NaN of other bits" in other.where
    assert (failure.expected, failure.got, failure.ulps) == ("1.0", "inf", np.inf)
    assert '"Infinity"' in report.to_json() and Report.from_json(report.to_json()).failed == report.failed
    assert "the items at (1,)" in failure.where
    assert "error      inf ulp, budget 40" in str(failure)


def test_a_failure_of_a_law_shows_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Subject.items
    monkeypatch.setattr(Subject, "items", lambda *given: right(*given) * np.float32(1 + 1e-3))
    report = check("numpy", loss="bpr", dtype="float32", path="generic", only="textbook", level="quick")
    given = report.failed[0].failures[0].input
    assert re.match(r"seed=0, n=\d, magnitude=1.0; positive_scores=\[.+\], negative_scores=\[.+\]", given), given


def _first_items(route: Route, *given: Any) -> Any:
    """Those of `Route.items`, of which torch's first one is off by an ulp or two."""
    items, gradient = _ITEMS(route, *given)
    if route.library == "torch":
        items = np.array(items)
        items.flat[0] = np.nextafter(items.flat[0], np.inf)
    return items, gradient


_ITEMS = Route.items


def test_libraries_that_share_a_kernel_must_agree_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    few: dict[str, Any] = {"loss": "bpr", "dtype": "float32", "only": ["accuracy", "agreement"], "level": "quick"}
    if agreement._code("bpr", Route("torch", "kernel")) == "":
        pytest.skip("there are no kernels")
    monkeypatch.setattr(Route, "items", _first_items)
    assert check(["numpy", "torch"], path="generic", **few).conforms
    (failed,) = check(["numpy", "torch"], path="kernel", **few).failed
    (failure,) = failed.failures
    assert (failed.check, failure.law, failure.input) == ("agreement", agreement.EQUAL, "[0.0], [0.0]")
    assert (failure.ulps, failure.budget) == (1, 0)
    names: dict[str, Any] = {}
    exec(failure.reproduce.replace("; reproduce", "; share = reproduce"), names)
    assert names["share"] == np.inf
    assert "numpy kernel 0.693" in capsys.readouterr().out


def test_every_pair_of_libraries_meets_once() -> None:
    everywhere = routes()
    pairs = set()
    for route in everywhere:
        if not route.missing:
            task = next(t for t in cells(route.library, path=route.path, loss="bpr") if t.route == route)
            met = list(agreement.partners(task))
            assert len(set(met)) == len(met) and all(everywhere.index(other) < everywhere.index(route) for other in met)
            pairs |= {frozenset((route.library, other.library)) for other in met}
    here = [
        name for name in ("numpy", "torch", "dask", "array_api_strict", "jax") if not Route(name, "generic").missing
    ]
    assert {frozenset(pair) for pair in itertools.combinations(here, 2)} <= pairs


def test_nothing_is_left_out_in_silence() -> None:
    """Each check of each function has a cell on each route in each dtype, or one for all functions with the reason."""
    found = list(cells(level="quick"))
    assert all(task.reason for task in found if task.function == "*")
    counted = Counter((task.check.name, task.route, task.dtype, task.function) for task in found)
    assert max(counted.values()) == 1
    for one, route, dtype in itertools.product(checks(), routes(), DTYPES):
        place = one.name, route, dtype
        assert (*place, "*") in counted or all((*place, function) in counted for function in one.functions), place


def test_the_oracle_imports_mpmath_and_nothing_else() -> None:
    """The import rules list what is forbidden; this is what is allowed."""
    tree = ast.parse(Path(str(oracle.__file__)).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"mpmath"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_error_is_counted_in_ulp_of_the_larger_term(dtype: str) -> None:
    one, eps = np.ones(3, dtype), float(np.finfo(dtype).eps)
    off = one + np.asarray([0, 3 * eps, -2 * eps], dtype)
    compare(off, one, "x", dtype, allowed=3 * eps)
    with pytest.raises(Differs) as caught:
        compare(off, one, "x", dtype, allowed=2 * eps)
    assert (caught.value.ulps, caught.value.budget) == (3, 2)
    with pytest.raises(Differs) as caught:
        compare(off, one, "x", dtype, larger=4.0)
    assert (caught.value.ulps, caught.value.budget) == (0.75, 0)


@pytest.mark.parametrize(("got", "expected"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf), (1e30, np.inf)])
def test_nan_and_infinity_are_near_nothing(got: float, expected: float) -> None:
    with pytest.raises(Differs) as caught:
        compare(np.asarray(got), np.asarray(expected), "x", "float64", allowed=np.inf)
    assert caught.value.ulps == np.inf
    for x in (got, expected):
        compare(np.asarray(x), np.asarray(x), "x", "float64")


def test_what_is_not_here_is_not_run_and_never_passed() -> None:
    if not Route("cupy", "kernel", "cuda").missing:
        pytest.skip("there is a GPU")
    report = check("cupy", loss="bpr", dtype="float32", only="accuracy", level="quick")
    assert {cell.status for cell in report.cells} == {"not run"}
    assert all(cell.reason for cell in report.cells)
    assert not report.conforms


def test_a_library_that_cannot_be_loaded_is_not_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "spam"

        def load(self) -> Any:
            raise RuntimeError("spam is off")

    monkeypatch.setattr(conformance_routes, "_points", lambda: (Point(),))
    monkeypatch.setattr(conformance_routes, "entry_points", lambda group: [Point()])
    few: dict[str, Any] = {"loss": "bpr", "only": "accuracy", "path": "generic", "level": "quick"}
    report = check(["spam", "numpy"], **few)
    spam = [cell for cell in report.cells if cell.library == "spam"]
    assert [cell.status for cell in spam] == ["not run"] * len(DTYPES)
    assert all("RuntimeError: spam is off" in cell.reason for cell in spam)
    assert report.conforms


@pytest.mark.parametrize("name", ["backend", "loss", "dtype", "device", "path", "only", "level"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*got 'spinach'"):
        check(**{name: "spinach"})


def test_two_processes_find_what_one_finds() -> None:
    pytest.importorskip("jax")
    options: dict[str, Any] = {"loss": "bpr", "dtype": "float32", "only": ["accuracy", "mask"], "level": "quick"}
    found = [check(["numpy", "jax"], **options, jobs=jobs).cells for jobs in (1, 2)]
    assert [len(cells) for cells in found] == [len(found[0])] * 2
    keys = [{(c.check, c.library, c.path, c.device): (c.status, c.share) for c in cells} for cells in found]
    assert keys[0] == keys[1]


def test_what_is_left_when_the_time_is_up_is_not_run() -> None:
    report = check("numpy", **ONE | {"only": None}, seconds=0)
    assert {cell.status for cell in report.cells} == {"not run", "not applicable"}
    assert "the time was up" in report.reasons("not run")
    assert check("numpy", **ONE, seconds=600).conforms


def test_the_second_process_may_end_before_the_first() -> None:
    pytest.importorskip("dask")

    def wait(done: int, total: int, cell: Any) -> None:
        while multiprocessing.active_children():
            time.sleep(0.05)

    options: dict[str, Any] = {"loss": "bpr", "dtype": "float32", "only": "accuracy", "level": "quick"}
    report = check(["numpy", "dask"], **options, jobs=2, progress=wait)
    assert report.conforms and len(report.cells) == 4


def test_the_command_keeps_xlas_programs_beside_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYLOSS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(command.JAX_CACHE, raising=False)
    before = dict(os.environ)
    with command._programs_kept():
        assert Path(os.environ[command.JAX_CACHE]).parent == tmp_path
    assert dict(os.environ) == before
    monkeypatch.setenv(command.JAX_CACHE, "elsewhere")
    with command._programs_kept():
        assert dict(os.environ) == before | {command.JAX_CACHE: "elsewhere"}


def test_the_oldest_programs_make_room(tmp_path: Path) -> None:
    for i, name in enumerate("dacb"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (i, i))
    command._shrink(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    command._shrink(tmp_path, 25)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "c"}
    command._shrink(tmp_path / "none", 25)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_the_line_of_a_failure_at_nan_or_infinity_reproduces_it(lost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = polyloss.sigmoid
    monkeypatch.setattr(polyloss, "sigmoid", lambda x: right(np.where(np.isnan(x) | (x != lost), x, -x) if lost == lost
                                                             else np.where(np.isnan(x), 0, x)))  # fmt: skip
    report = check("numpy", loss="sigmoid", dtype="float16", path="generic", only="all numbers", level="quick")
    failure = report.failed[0].failures[0]
    assert failure.ulps is not None and not np.isnan(failure.ulps)
    assert "number=" in failure.reproduce
    names: dict[str, Any] = {}
    exec(failure.reproduce.replace("; reproduce", "; share = reproduce"), names)
    assert names["share"] > 1


@pytest.mark.filterwarnings("ignore:(invalid|divide|overflow)")
def test_a_number_of_an_exhaustive_run_is_judged_by_its_truth() -> None:
    """The textbook's formula divides by 0 there."""
    name = "all numbers, target 1"
    x = dict(exhaustive("binary_log_loss", "float16"))[name].arrays[0]
    for number in (int(np.argmax(x == 0)), int(np.argmax(np.isnan(x)))):
        assert reproduce("binary_log_loss", "numpy", "generic", "float16", case=name, number=number) <= 1


def test_a_line_of_numbers_is_read_by_python_as_they_are() -> None:
    numbers = {"x": [[float("nan"), float("inf"), -0.0], [-float("inf"), 0.1, 3]], "reduction": "none", "flag": True}
    assert repr(eval(_literal(numbers))) == repr(numbers)


@pytest.mark.parametrize("arguments", [["--fault", "spinach"], ["--json", "no/such/folder/report.json"]])
def test_a_wrong_option_of_the_self_test_is_an_error_at_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", "--self-test", *arguments]) == 2
    assert arguments[1].split("/")[0] in capsys.readouterr().err


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_law_of_layouts_lays_arrays_out_in_every_dtype(
    library: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    seen: list[tuple[str, bool]] = []
    real = polyloss.value_and_grad

    def watching(loss: Any, wrt: Any) -> Any:
        def call(**given: Any) -> Any:
            x = given["positive_scores"]
            contiguous = x.flags.c_contiguous if library == "numpy" else x.is_contiguous()
            seen.append((str(x.dtype).removeprefix("torch."), bool(contiguous)))
            return real(loss, wrt)(**given)

        return call

    monkeypatch.setattr(polyloss, "value_and_grad", watching)
    LAWS["layout"].run(Subject(LOSSES["bpr, many"], Route(library, "generic", "cpu"), dtype), Draw(0, 4, 1.0))
    assert {one for one, _ in seen} == {dtype}
    assert [contiguous for _, contiguous in seen].count(False) >= 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.filterwarnings("ignore:(invalid|divide|overflow)")
def test_the_truth_of_exhaustive_runs_is_the_oracles(dtype: str) -> None:
    for function in VARIANTS:
        if exhausts(function, dtype):
            continue
        for _, case in exhaustive(function, dtype):
            value, slope = oracle.FORMULAS[function]
            for i in np.linspace(0, len(case.arrays[0]) - 1, 40, dtype=int):
                given = [float(x[i]) for x in case.arrays]
                if len(given) == 2 and function in ("bpr", "pairwise_hinge"):
                    lead = np.float32(case.arrays[0][i]) - np.float32(case.arrays[1][i])
                    given = [float(lead if function == "bpr" else np.float32(1) - lead)]
                finite = np.isfinite(case.items.high[i]) and np.isfinite(case.gradient.high[i])
                finite &= function != "binary_log_loss" or 0 < given[0] < 1  # at its ends: see the limits
                if abs(given[0]) < 800 and finite:  # beyond, the oracle has too few digits
                    np.testing.assert_allclose(case.items.high[i], float(value(*given)), 1e-14, 1e-300)
                    np.testing.assert_allclose(case.gradient.high[i], float(slope(*given)), 1e-14, 1e-300)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.filterwarnings("ignore:(invalid|divide|overflow)")
def test_every_16_bit_number_is_run_through_every_function_of_one_number(dtype: str) -> None:
    for function in ("sigmoid", "softplus", "log_sigmoid", "sigmoid_cross_entropy", "bpr", "pairwise_hinge"):
        for _, case in exhaustive(function, dtype):
            bits = case.arrays[0].view(f"uint{8 * case.arrays[0].itemsize}")
            assert len(np.unique(bits)) == 1 << 16
    valid = next(exhaustive("binary_log_loss", dtype))[1].arrays[0]
    refused = outside("binary_log_loss", dtype)
    assert np.nanmin(valid) == 0 and np.nanmax(valid) == 1 and np.isnan(valid).any()
    assert min(refused) == -np.inf and max(refused) == np.inf
    step = 2.0 ** (-10 if dtype == "float16" else -7)
    assert max(v for v in refused if v < 0) > -1e-7 and min(v for v in refused if v > 0) == 1 + step


def test_an_invalid_number_that_is_taken_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = polyloss.binary_log_loss
    lenient = functools.wraps(right)(
        lambda probabilities, *rest, **options: right(np.clip(probabilities, 0, 1), *rest, **options)
    )
    row = replace(LOSSES["binary_log_loss"], loss=lenient)
    monkeypatch.setitem(LOSSES, "binary_log_loss", row)
    report = check("numpy", loss="binary_log_loss", dtype="float16", path="generic", only="all numbers")
    failures = report.failed[0].failures
    assert len(failures) == len(outside("binary_log_loss", "float16"))
    assert "is no error" in failures[0].got


def test_the_grid_has_every_kind_of_hard_number() -> None:
    case = grid("softmax_cross_entropy", "float32", "quick")["hard of 10"]
    x = case.arrays[0]
    assert np.finfo(np.float32).max in x
    assert np.any((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny))  # subnormal
    assert np.any(np.signbit(x) & (x == 0))
    assert np.any(np.sort(x, axis=1)[:, -1] == np.sort(x, axis=1)[:, -2])  # ties


def test_the_smallest_input_is_found() -> None:
    from hypothesis import strategies as st

    assert smallest(st.integers(0, 10**6), lambda n: n < 1234, 200, 0) == 1234
    assert smallest(st.integers(0, 10), lambda n: n < 11, 50, 0) is None


def test_the_command_saves_the_report_and_says_how_it_ended(tmp_path: Path) -> None:
    files = tmp_path / "report.json", tmp_path / "report.html"
    few = ["--library", "numpy", "--check", "limits", "--quick", "--json", str(files[0]), "--html", str(files[1])]
    assert main(["conformance", *few]) == 0
    assert Report.from_json(files[0].read_text()).conforms
    assert json.loads(files[0].read_text())["conforms"]
    assert "<html" in files[1].read_text()


@pytest.mark.parametrize(
    "arguments",
    [["--library", "spinach"], ["--check", "nothing"], ["--json", "no/such/folder/report.json", "--check", "limits"]],
)
def test_the_command_refuses_what_it_does_not_know(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--quick", *arguments]) == 2
    assert "polyloss conformance: " in capsys.readouterr().err


def test_the_command_fails_if_a_cell_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = polyloss.sigmoid
    monkeypatch.setattr(polyloss, "sigmoid", lambda x: right(x) * 2)
    few = ["--library", "numpy", "--loss", "sigmoid", "--check", "accuracy", "--quick", "--fail-fast"]
    assert main(["conformance", *few]) == 1
    assert "reproduce(" in capsys.readouterr().out


def test_a_case_of_the_grid_is_judged_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce("bpr", "numpy", "generic", "float32", case="pairs", level="quick") <= 1
    assert "budget 6" in capsys.readouterr().out
