"""Whether the GPU's numbers are right: conformance, with a report of its own, and what only a GPU can show."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import polyloss
from benchmarks.gpu.libraries import Device
from polyloss import conformance
from polyloss.conformance.engine import LATE
from polyloss.conformance.exact import LINES, ROWS, shares
from polyloss.conformance.grid import VARIANTS, grid
from polyloss.conformance.html import page
from polyloss.conformance.report import Report
from polyloss.dispatch import generic

__all__ = ["Check", "checks", "conforming"]

LOSSES = tuple(name for name in VARIANTS if name not in (*LINES, *ROWS))


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    outcome: str  # "passed", "FAILED: ..." or "NOT RUN: ..."
    seconds: float = 0.0
    detail: str = ""


def _asked(name: str, question: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        detail, outcome = question(), "passed"
    except Unasked as reason:
        detail, outcome = "", f"NOT RUN: {reason}"
    except Exception as error:
        detail, outcome = "", f"FAILED: {type(error).__name__}: {str(error)[:300]}"
    return Check(name, outcome, time.perf_counter() - start, detail)


class Unasked(Exception):
    """The question cannot be asked here, for this reason."""


PATHS = ("kernel", "jit", "compiled", "generic")
"""Of conformance, the ones that matter most on a GPU first: the formula runs on the library's own kernels."""


def conforming(devices: Sequence[Device], level: str, dry: bool, output: Path, seconds: float) -> Iterator[Check]:
    """Conformance of each library on every path, in every dtype, for so long; it leaves a report at ``output``."""
    libraries = [device.name for device in devices if not device.reason and device.name != "simulator"]
    if not libraries and not dry:
        yield Check("conformance", "NOT RUN: no library can be used")
        return
    start = time.perf_counter()
    report: Report | None = None
    output.parent.mkdir(parents=True, exist_ok=True)
    for path in PATHS[:1] if dry else PATHS:
        left = seconds - (time.perf_counter() - start)
        if dry:  # one cell, in host memory
            one = {"loss": "bpr", "dtype": "float32", "only": "accuracy"}
            part = conformance.check("numpy", path=path, level="quick", seconds=left, **one)
        else:
            part = conformance.check(libraries, device="cuda", path=path, level=level, seconds=left)  # type: ignore[arg-type]
        if report is not None:
            taken = report.seconds + part.seconds
            part = replace(
                report, cells=report.cells + part.cells, options=report.options | {"path": PATHS}, seconds=taken
            )
        report = part
        report.save(output.with_suffix(".json"))  # after every path, so that an interrupted run keeps what it has
        output.with_suffix(".html").write_text(page(report), encoding="utf-8")
    assert report is not None
    for library in ["numpy"] if dry else libraries:
        cells = [cell for cell in report.cells if cell.library == library]
        failed = [cell.name for cell in cells if cell.status == "failed"]
        passed = sum(cell.status == "passed" for cell in cells)
        late = sum(cell.reason == LATE for cell in cells)
        outcome = f"FAILED: {', '.join(failed)[:300]}" if failed else "passed" if passed else "NOT RUN: see its report"
        if outcome == "passed" and library != "jax" and _failed():
            outcome = f"FAILED: the formula was taken: {_failed()}"
        worst = max((cell.share for cell in cells if cell.share is not None), default=0.0)
        detail = f"{passed} of {len(cells)} cells, at most {worst:.2f} of a budget"
        detail += f"; {late} NOT RUN, for {LATE}" if late else ""
        yield Check(f"{library}: conformance", outcome, time.perf_counter() - start, detail)


# The simulator, which conformance does not know.


def _oracle(device: Device) -> str:
    """The largest share of its budget that any case has used."""
    worst, where = 0.0, ""
    for function, dtype in itertools.product(LOSSES, ("float32", "float64", "float16")):
        for name, case in grid(function, dtype, "quick").items():
            if name == "batch":  # more rows than it has time for
                continue
            wrt = list(inspect.signature(case.loss).parameters)[case.wrt]
            arrays = [device.to_device(_in(x, dtype)) for x in case.arrays]
            options = {key: device.to_device(_in(x, dtype)) for key, x in case.options.items()}
            with device.scope():
                both = polyloss.value_and_grad(case.loss, wrt)
                found = both(*arrays, reduction="none", **options)
                items, gradient = map(device.to_host, found)
            used = max(one.used for one in shares(case, device.name, items, gradient))
            if not used <= worst:
                worst, where = used, f"{function}, {dtype}, {name}"
    assert worst <= 1, f"{where} uses {worst:.2f} of its budget"
    return f"at most {worst:.2f} of the budget ({where})"


def _in(x: Any, dtype: str) -> Any:
    """Floating numbers in a dtype that holds them; in a case those of 16 bits are float32."""
    return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


# What only a GPU can show.


def _takes_kernels(device: Device) -> str:
    from polyloss.dispatch import kernels

    computing = kernels("cuda")
    assert computing is not None
    x, y = device.to_device(np.zeros((4, 10), np.float32)), device.to_device(np.arange(4))
    before = _asked_for()
    with device.scope():
        polyloss.softmax_cross_entropy(x, y)
        polyloss.sigmoid_cross_entropy(x, x)
    assert _asked_for() > before, f"the formula was taken: {computing.report()}"
    assert not _failed(), _failed()
    return computing.report()


def _asked_for() -> int:
    from polyloss.backends.cuda import compiled

    return compiled.kernel.cache_info().currsize + compiled.kernel.cache_info().hits


def _failed() -> str:
    """Why a kernel could not be made, if one could not: the formula has taken its place."""
    from polyloss.backends.cuda import compiled

    return next((f"{key}: {reason}" for key, reason in compiled.failures.items()), "")


def _labels_out_of_range(device: Device) -> str:
    x, y = np.zeros((6, 1000), np.float32), np.arange(6)
    y[2], y[4] = 2**40, -1
    with device.scope():
        both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        items, gradient = map(device.to_host, both(device.to_device(x), device.to_device(y), reduction="none"))
    assert np.isnan(items).tolist() == [False, False, True, False, True, False]
    assert np.isnan(gradient).any(axis=1).tolist() == np.isnan(items).tolist()
    return ""


def _same_bits(device: Device) -> str:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4096, 1000)).astype(np.float32), rng.integers(0, 1000, 4096)
    given = device.to_device(x), device.to_device(y)
    with device.scope():
        both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        runs = [[device.to_host(a) for a in both(*given)] for _ in range(5)]
    assert all(np.array_equal(a, b) for run in runs for a, b in zip(run, runs[0]))
    return ""


def _other_stream_cupy(device: Device) -> str:
    import cupy

    x, y = cupy.random.standard_normal((512, 5000), dtype=cupy.float32), cupy.arange(512)
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    expected = both(x, y)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        later = x
        for _ in range(50):  # long enough that a launch on another stream would come too early
            later = later * 1.02
        for _ in range(50):
            later = later / 1.02
        got = both(later, y)
        stream.synchronize()
    cupy.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
    cupy.testing.assert_allclose(got[1], expected[1], rtol=1e-2, atol=1e-7)
    return ""


def _no_synchronisation(device: Device) -> str:
    import torch

    x = torch.randn(4096, 1000, device="cuda", requires_grad=True)
    y = torch.randint(0, 1000, (4096,), device="cuda")
    w = torch.rand(4096, device="cuda")
    for _ in range(2):  # the first one compiles
        torch.cuda.set_sync_debug_mode("error" if _ else "default")
        try:
            for options in ({}, {"ignore_index": 3}, {"weights": w}, {"reduction": "sum"}, {"label_smoothing": 0.1}):
                polyloss.softmax_cross_entropy(x, y, **options).backward()
            polyloss.sigmoid_cross_entropy(x, x.detach() * 0).backward()
            polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y, ignore_index=3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ""


def _captured(device: Device) -> str:
    import torch

    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    for rows, warm in ((512, True), (513, False)):  # without a first call the kernel is made during the capture
        x = torch.randn(rows, 3000, device="cuda", dtype=torch.float32 if warm else torch.float64)
        y = torch.randint(0, 3000, (rows,), device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        if warm:
            with torch.cuda.stream(side):
                both(x, y)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value, gradient = both(x, y)
        x.copy_(torch.randn_like(x))
        graph.replay()
        expected = both(x, y)
        torch.testing.assert_close(value, expected[0], rtol=0, atol=0)
        torch.testing.assert_close(gradient, expected[1], rtol=0, atol=0)
    return ""


def _huge(device: Device) -> str:
    import torch

    rows, classes = 70_000, 32_768  # 2.3e9 elements
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        raise Unasked("less than 14 GiB of memory are free")
    x = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    y = torch.zeros(rows, dtype=torch.int64, device="cuda")
    x[-1, 5] = 10.0
    items = polyloss.softmax_cross_entropy(x, y, reduction="none")
    _, gradient = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y, reduction="sum")
    assert abs(float(items[0]) - np.log(classes)) < 1e-4
    assert abs(float(items[-1]) - np.log(classes - 1 + np.exp(10.0))) < 1e-3
    assert float(gradient[-1, 5]) > 0.3
    assert float(gradient[-1, 0]) < -0.9
    return ""


def _second_device(device: Device) -> str:
    import torch

    if torch.cuda.device_count() < 2:
        raise Unasked("there is one device")
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    x, y = torch.randn(64, 100), torch.randint(0, 100, (64,))
    first, second = both(x.cuda(0), y.cuda(0)), both(x.cuda(1), y.cuda(1))
    assert second[1].device.index == 1
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(first[1].cpu(), second[1].cpu(), rtol=0, atol=0)
    return ""


def _second_device_cupy(device: Device) -> str:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        raise Unasked("there is one device")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 100)).astype(np.float32), rng.integers(0, 100, 64).astype(np.int8)
    found = []
    for number in (0, 1):
        with cupy.cuda.Device(number):
            given = cupy.asarray(x), cupy.asarray(y), cupy.asarray(x[:, 0] > 0)
        both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)  # by a kernel, and by the formula
        found.append([cupy.asnumpy(a) for a in both(*given[:2], where=given[2])])
        assert both(*given[:2])[1].device.id == number
        with generic():
            assert both(*given[:2])[1].device.id == number
    assert cupy.cuda.Device().id == 0
    assert all(np.array_equal(a, b) for a, b in zip(*found))
    return ""


EVERYWHERE = {
    "kernels are taken": _takes_kernels,
    "labels out of range make their rows NaN": _labels_out_of_range,
    "the same bits again": _same_bits,
}
TORCH = {
    "no call waits for the device": _no_synchronisation,
    "a captured graph computes the same": _captured,
    "more than 2^31 elements": _huge,
    "a second device": _second_device,
}


CUPY = {
    "another stream": _other_stream_cupy,
    "a second device": _second_device_cupy,
}


def checks(device: Device) -> Iterator[Check]:
    """All that is asked of one library beside conformance."""
    if device.reason:
        yield Check(device.name, device.reason)
        return
    questions = {} if device.name == "jax" else dict(EVERYWHERE)
    if device.name == "simulator":
        questions = {"value_and_grad: the oracle": _oracle} | questions
        del questions["the same bits again"]
    if device.name == "torch":
        questions |= TORCH
    if device.name == "cupy":
        questions |= CUPY
    for title, question in questions.items():
        yield _asked(f"{device.name}: {title}", lambda q=question: q(device))  # type: ignore[misc]
