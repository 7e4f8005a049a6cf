"""The list of every kernel is that of the code that launches them, asked for every kind of call."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any
from unittest import mock

import launchable
import numpy as np
import pytest
from layouts import dtype_of
from simulated.device import LIBRARY, DeviceArray

from polyloss.backends import Work
from polyloss.backends.cuda import KERNELS, compiled
from polyloss.backends.cuda.call import WHOLE, WIDE
from polyloss.backends.cuda.lse import SIZE, SPLIT
from polyloss.primitives import LseCrossEntropy, SoftplusCrossEntropy

CLASSES = (10, 24, 129)  # single numbers, vectors, a warp
BYTES = (4096, 8192, 16384, 20_000, 80_000)  # of a row: blocks of 64, 128 and 256 threads; long, and longer
KINDS = (None, *WIDE, *WHOLE)


def array(dtype: str, *shape: int, shift: int = 0) -> Any:
    """An array so many bytes above an aligned address."""
    size = np.dtype(dtype_of(dtype)).itemsize * int(np.prod(shape))
    base = np.empty(size + 256, np.uint8)
    start = -base.__array_interface__["data"][0] % 128 + shift
    return base[start : start + size].view(dtype_of(dtype)).reshape(shape).view(DeviceArray)


def logits() -> Iterator[tuple[str, Any]]:
    """Of few and of many rows, aligned to a vector and to a number."""
    for x, size in SIZE.items():
        for k, shift in product((*CLASSES, *(n // size for n in BYTES)), (0, size)):
            yield x, array(x, 2, k, shift=shift)
        yield x, array(x, SPLIT + 1, BYTES[-1] // size)


def rows() -> Iterator[Work]:
    for kind, x in logits():
        n, k = x.shape
        labels = [array(y, n) for y in ("int32", "int64", "uint8")]
        soft = [array(t, n, k, shift=shift) for t, size in SIZE.items() for shift in (0, size)] if n <= SPLIT else []
        for y in labels:
            yield Work(LseCrossEntropy(), LIBRARY, dtype_of(WIDE[kind]), (x, y, None, None), 1, divisor=1.0)
        for t, c, mask in product((*labels, *soft), (None, array("float32", k)), (None, array("bool", n, k))):
            yield Work(LseCrossEntropy(0.1), LIBRARY, dtype_of(WIDE[kind]), (x, t, c, mask), 1, divisor=1.0)


def elements() -> Iterator[Work]:
    for (x, size), t, shifted, p in product(SIZE.items(), KINDS, (False, True), (None, array("float32"))):
        arrays = array(x, 40, shift=size * shifted), t if t is None else array(t, 40), p
        yield Work(SoftplusCrossEntropy(), LIBRARY, dtype_of(WIDE[x]), arrays, 0, divisor=1.0)


def test_a_call_launches_what_is_in_the_list_and_nothing_there_is_never_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: set[Any] = set()
    monkeypatch.setattr(compiled, "kernel", lambda *key: (asked.add(key), mock.Mock())[1])
    for work in (*elements(), *rows()):
        kernel = KERNELS.take(work)
        assert kernel is not None
        kernel.value(work)
        kernel.vjp(work, ())
        kernel.value_and_vjp(work)
    for (_, x), name in product(
        logits(), ("softmax", "log_softmax", "logsumexp", "sigmoid", "log_sigmoid", "softplus")
    ):
        KERNELS.transform(name, LIBRARY, x)
    assert asked == set(launchable.KEYS)
