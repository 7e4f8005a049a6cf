"""Threads change no bit, find what is to be found, and are as many as was asked for; `test_processes` has the rest."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import COMPUTE, LONG, python

import polyloss

pytest.importorskip("llvmlite")

from polyloss.backends.cpu import call, threads

COUNTS = (1, 2, 3, 5)
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")


def softmax(rows: int, classes: int, dtype: str, **options: Any) -> Callable[[], list[np.ndarray]]:
    """A computation of mean, gradient and items."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, classes)).astype(dtype), rng.integers(0, classes, rows)
    w = rng.uniform(0.5, 2, rows).astype(dtype)
    return lambda: _all(polyloss.softmax_cross_entropy, x, y, weights=w, **options)


def sigmoid(size: int, dtype: str) -> Callable[[], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal(size).astype(dtype), rng.integers(0, 2, size).astype(dtype)
    return lambda: _all(polyloss.sigmoid_cross_entropy, x, t)


def _all(loss: Any, *arrays: Any, **options: Any) -> list[np.ndarray]:
    mean, gradient = polyloss.value_and_grad(loss)(*arrays, **options)
    return [
        np.asarray(mean),
        gradient,
        loss(*arrays, reduction="none", **options),
        np.asarray(loss(*arrays, **options)),
    ]


WORK = {
    "rows float32": softmax(300, 1000, "float32"),
    "rows float64": softmax(300, 1000, "float64"),
    "smoothed rows float32": softmax(300, 1000, "float32", label_smoothing=0.1),
    "lanes float32": softmax(20_000, 10, "float32"),
    "lanes float64": softmax(20_000, 10, "float64"),
    "elements float32": sigmoid(300_000, "float32"),
    "elements float64": sigmoid(300_000, "float64"),
}


def bits(results: list[np.ndarray]) -> list[bytes]:
    return [x.tobytes() for x in results]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For every call that is shared among threads, by how many."""
    found: list[int] = []
    run = threads.run

    def counting(kernel: Any, parameters: bytes, blocks: int, count: int) -> int:
        found.append(count)
        return run(kernel, parameters, blocks, count)

    monkeypatch.setattr(threads, "run", counting)
    return found


# The same bits.


@pytest.mark.parametrize("name", WORK)
def test_the_number_of_threads_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    found = {}
    for count in COUNTS:
        monkeypatch.setattr(threads, "limit", lambda count=count: count)
        found[count] = bits(WORK[name]())
    assert all(found[count] == found[1] for count in COUNTS)
    assert sorted(set(asked)) == [2, 3, 5]  # one thread needs no pool


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 63, 64, 65, 129, 257])
def test_few_blocks_are_shared_among_many_threads(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "CUTOFF", 1)
    for make in (softmax(rows, 40, "float32"), softmax(rows, 7, "float32"), sigmoid(rows, "float32")):
        found = []
        for count in (1, 2, 3, 5, 17):
            monkeypatch.setattr(threads, "limit", lambda count=count: count)
            found.append(bits(make()))
        assert all(x == found[0] for x in found)


def test_work_below_the_cutoff_wakes_no_thread(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    monkeypatch.setattr(threads, "limit", lambda: 5)
    softmax(3, 10, "float32")()
    sigmoid(call.CUTOFF - 1, "float32")()
    assert asked == []
    sigmoid(call.CUTOFF, "float32")()
    assert set(asked) == {5}


def test_calls_from_several_threads_at_once_have_the_bits_of_serial_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "limit", lambda: 1)
    serial = {name: bits(compute()) for name, compute in WORK.items()}
    monkeypatch.setattr(threads, "limit", lambda: 3)
    names = list(WORK)
    gate = threading.Barrier(8)

    def caller(which: int) -> list[bool]:
        gate.wait(LONG)
        order = [names[(which + i) % len(names)] for i in range(2 * len(names))]
        return [bits(WORK[name]()) == serial[name] for name in order]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(caller, range(8), timeout=LONG))
    assert all(all(same) for same in found)


class Slow:
    """A kernel in Python: ``part(start, stop)`` treats these blocks."""

    def __init__(self, part: Callable[[int, int], int]) -> None:
        self.part, self.lock = part, threading.Lock()

    def all(self, parameters: bytes, start: int, stop: int) -> int:
        return self.part(start, stop)

    def shares(self, parameters: bytes, progress: Any, blocks: int, parts: int, patience: int) -> int:
        while True:
            with self.lock:
                start = progress[0]
                progress[0] = stop = max(start, min(blocks, start + max(1, (blocks - start) // parts)))
            if start >= blocks:
                return int(progress[2])
            found = self.part(start, stop)
            with self.lock:
                progress[1] += stop - start
                progress[2] |= found


def run(part: Callable[[int, int], int], blocks: int, count: int) -> int:
    kernel: Any = Slow(part)
    return threads.run(kernel, b"", blocks, count)


def test_a_call_from_inside_a_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "limit", lambda: 2)
    inner = WORK["lanes float32"]
    expected = bits(inner())
    found: list[list[bytes]] = []

    def part(start: int, stop: int) -> int:  # runs in helpers as well
        found.extend([bits(inner())] * (stop - start))
        return 0

    run(part, 8, 2)
    assert found == [expected] * 8


# What a call is given and what it finds.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_every_block_is_treated_once_and_what_is_found_is_kept(count: int) -> None:
    for blocks in (1, 2, 3, 7, 8, 9, 100, 1000):
        for bad in (0, 1):
            parts: list[tuple[int, int]] = []

            def part(start: int, stop: int, parts: Any = parts, bad: int = bad, last: int = blocks - 1) -> int:
                parts.append((start, stop))
                return bad if start <= last < stop else 0

            assert bool(run(part, blocks, count)) == bool(bad)
            assert sorted(block for part in parts for block in range(*part)) == list(range(blocks))


def test_what_a_helper_finds_is_found() -> None:
    caller, helped = threading.current_thread(), threading.Event()

    def part(start: int, stop: int) -> int:
        if threading.current_thread() is caller:
            assert helped.wait(LONG)
            return 0
        helped.set()
        return 1

    assert run(part, 64, 2)


@pytest.mark.parametrize("at", [0, 7, 12_345, 19_999])
@pytest.mark.parametrize("label", [-1, 10, 2**40, -(2**63)])
def test_an_invalid_label_is_found_by_whatever_thread_meets_it(
    at: int, label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "limit", lambda: 5)
    x, y = np.zeros((20_000, 10), np.float32), np.zeros(20_000, np.int64)
    y[at] = label
    with pytest.raises(ValueError, match=rf"got {label} at index \({at},\)"):
        polyloss.softmax_cross_entropy(x, y)
    wide = np.zeros((2_000, 64), np.float32)
    at //= 10
    labels = np.zeros(2_000, np.int64)
    labels[at] = -1
    with pytest.raises(ValueError, match=rf"got -1 at index \({at},\)"):
        polyloss.value_and_grad(polyloss.softmax_cross_entropy)(wide, labels)
    with pytest.raises(ValueError, match=r"got 2\.0"):
        polyloss.sigmoid_cross_entropy(x, np.where(np.arange(200_000).reshape(x.shape) == at, 2.0, 1.0))


@pytest.mark.parametrize("again", [1, 5])
def test_no_thread_works_on_for_a_call_that_was_interrupted(again: int) -> None:
    """Its arrays may be gone by then. An interruption comes between two calls of the machine code, never in one."""
    caller, started, running = threading.current_thread(), threading.Event(), []
    interruptions = iter(range(again))

    def part(start: int, stop: int) -> int:
        running.append(start)
        started.set()
        time.sleep(0.02)
        running.remove(start)
        return 0

    class Interrupted(Slow):
        def shares(self, *arguments: Any) -> int:
            if threading.current_thread() is caller:
                assert started.wait(LONG)
                if next(interruptions, None) is not None:
                    raise KeyboardInterrupt
            return super().shares(*arguments)

    kernel: Any = Interrupted(part)
    with pytest.raises(KeyboardInterrupt):
        threads.run(kernel, b"", 16, 2)
    assert running == []
    time.sleep(0.05)
    assert running == []


def test_a_caller_waits_for_the_last_share_of_a_helper() -> None:
    caller, taken, ended = threading.current_thread(), threading.Event(), []

    def part(start: int, stop: int) -> int:
        if threading.current_thread() is caller:
            assert taken.wait(LONG)
        else:
            taken.set()
            time.sleep(0.2)
            ended.append(start)
        return 0

    assert run(part, 2, 2) == 0
    assert ended


# How many threads.


def test_limit_is_what_numba_num_threads_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for asked, expected in (("1", 1), ("3", 3), ("8", 8), ("99", 8), ("0", 1), ("-4", 1), ("many", 8), ("", 8)):
        monkeypatch.setenv("NUMBA_NUM_THREADS", asked)
        assert threads.limit() == expected, asked
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    assert threads.limit() == 8


def test_limit_is_the_number_of_processors_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert threads.limit() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.limit() == 1


@needs_affinity
def test_a_process_is_held_to_its_affinity_and_to_numba_num_threads() -> None:
    code = """
        print(limit(), right())
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        threads.limit = limit
        print(limit(), right())
    """
    assert python(COMPUTE, code, NUMBA_NUM_THREADS="1").splitlines() == ["1 True", "1 True"]
    assert python(COMPUTE, code, NUMBA_NUM_THREADS="64").splitlines()[1] == "1 True"


@pytest.mark.parametrize("asked", ["many", "0"])
def test_an_invalid_numba_num_threads_is_harmless(asked: str, tmp_path: Path) -> None:
    """Numba itself reads it when a kernel is compiled."""
    code = "print(polyloss.sigmoid_cross_entropy(np.zeros(70_000, np.float32), np.ones(70_000, np.float32)))"
    assert python(code, NUMBA_NUM_THREADS=asked, POLYLOSS_CACHE_DIR=str(tmp_path)) == "0.6931472"


def test_torchs_own_number_of_threads_holds_for_its_tensors(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(threads, "limit", lambda: 5)
    before = torch.get_num_threads()
    x = torch.zeros(300, 1000, requires_grad=True)
    try:
        for count, expected in ((1, []), (2, [2, 2]), (64, [5, 5])):
            asked.clear()
            torch.set_num_threads(count)
            polyloss.softmax_cross_entropy(x, torch.zeros(300, dtype=torch.int64)).backward()
            assert asked == expected
    finally:
        torch.set_num_threads(before)
