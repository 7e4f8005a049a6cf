"""Kernels hold addresses: no byte beside a result is written, and none beside an argument is read."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
from layouts import (
    LAYOUTS,
    dtype_of,
    every_dtype,
    logits_and_labels,
    results,
)

import polyloss


class Guarded:
    """Makes the library's new arrays inside larger ones of a byte that nobody writes, and not aligned to vectors."""

    byte, margin = 0xA5, 256

    def __init__(self) -> None:
        self.made: list[tuple[np.ndarray, int, int]] = []
        self._empty, self._empty_like = np.empty, np.empty_like

    def empty(self, shape: Any, dtype: Any = float, **_: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * dtype.itemsize
        whole = np.full(size + 2 * self.margin + 64, self.byte, np.uint8)
        start = (
            self.margin + -(whole.ctypes.data + self.margin) % 64 + dtype.itemsize
        )  # just behind a cache line's start
        self.made.append((whole, start, start + size))
        return np.ndarray(shape, dtype, whole.data, start)

    def empty_like(self, x: np.ndarray, **_: Any) -> np.ndarray:
        order = sorted(range(x.ndim), key=lambda i: -self._empty_like(x).strides[i])
        made = self.empty(tuple(x.shape[i] for i in order), x.dtype)
        return np.transpose(made, np.argsort(order))

    def check(self, note: Any) -> int:
        for whole, start, stop in self.made:
            assert np.all(whole[:start] == self.byte) and np.all(whole[stop:] == self.byte), note
        count = len(self.made)
        self.made.clear()
        return count


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    guard = Guarded()
    for namespace in (np, array_api_compat.numpy):
        monkeypatch.setattr(namespace, "empty", guard.empty)
        monkeypatch.setattr(namespace, "empty_like", guard.empty_like)
    yield guard
    guard.made.clear()


@every_dtype
def test_no_byte_beside_a_result_is_written(dtype: str, guarded: Guarded) -> None:
    rng = np.random.default_rng(0)
    for classes, n, axis in itertools.product((1, 3, 17, 33, 70), (1, 5, 64, 67), (0, 1)):
        x, y = logits_and_labels((n, classes) if axis else (classes, n), axis, dtype)
        w, keep = rng.uniform(0, 1, n).astype(np.float32), rng.uniform(0, 1, n) < 0.5
        for name in ("C", "Fortran", "every second", "reversed"):
            given = LAYOUTS[name](x)
            for options in ({}, {"weights": w, "where": keep}):
                guarded.made.clear()
                got = results(polyloss.softmax_cross_entropy, given, y, axis=axis, **options)
                assert guarded.check((classes, n, axis, name)) >= 4
                assert np.isfinite(got[2].astype(np.float64)).all()
    for n in (1, 7, 255, 256, 257, 600):
        x, t = rng.standard_normal(n).astype(dtype_of(dtype)), rng.uniform(0, 1, n).astype(dtype_of(dtype))
        for name in ("C", "every second", "reversed"):
            guarded.made.clear()
            results(polyloss.sigmoid_cross_entropy, LAYOUTS[name](x), LAYOUTS[name](t))
            assert guarded.check((n, name)) >= 4


def test_a_result_that_is_not_written_is_noticed(guarded: Guarded) -> None:
    """The guard itself: one byte more or less."""
    x = guarded.empty((3,), np.float32)
    whole, start, stop = guarded.made[0]
    assert x.flags.aligned and x.ctypes.data % 64 == 4 and x.nbytes == stop - start
    x[...] = 0
    guarded.check("")
    guarded.empty((3,), np.float32)
    whole, start, stop = guarded.made[0]
    whole[stop] = 0
    with pytest.raises(AssertionError):
        guarded.check("")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by the mprotect of Linux")
def test_no_byte_beside_an_argument_is_read() -> None:
    """Each argument ends where a page begins that must not be touched, or begins where such a page ends."""
    code = """
        import ctypes, itertools, math, mmap
        import numpy as np
        import polyloss

        libc = ctypes.CDLL(None, use_errno=True)
        page = mmap.PAGESIZE
        kept = []

        def place(a, end):
            pages = -(-a.nbytes // page)
            memory = mmap.mmap(-1, (pages + 2) * page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for forbidden in (start, start + (pages + 1) * page):
                assert libc.mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
            kept.append(memory)
            offset = page + pages * page - a.nbytes if end else page
            view = np.ndarray(a.shape, a.dtype, memory, offset)
            view[...] = a
            return view

        rng = np.random.default_rng(0)
        softmax = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
        sigmoid = polyloss.value_and_grad(polyloss.sigmoid_cross_entropy)
        for kind, classes, n, end in itertools.product(
            ("float32", "float64", "float16"), (1, 3, 10, 33, 100), (1, 5, 64, 67), (False, True)
        ):
            x = place(rng.standard_normal((n, classes)).astype(kind), end)
            y = place(rng.integers(0, classes, n), end)
            w = place(rng.uniform(0, 1, n).astype(np.float32), end)
            keep = place(rng.uniform(0, 1, n) < 0.5, end)
            c = place(rng.uniform(0, 1, classes).astype(np.float32), end)
            t = place(rng.uniform(0, 1, (n, classes)).astype(kind), end)
            for reduction in ("mean", "none"):
                for view, labels in ((x, y), (x[::-1], y[::-1]), (x[::2], y[::2])):
                    softmax(view, labels, reduction=reduction)
                softmax(x.T, y, axis=0, reduction=reduction)
                softmax(x, y, weights=w, where=keep, class_weights=c, reduction=reduction)
                sigmoid(x, t, weights=w, where=keep, reduction=reduction)
                sigmoid(x[::-1, ::2], t[::-1, ::2], pos_weight=c[::2], reduction=reduction)
        print("nothing")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "nothing"), run.stderr
