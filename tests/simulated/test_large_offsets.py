"""Beyond 2^31 elements every address is right: in arrays of which only the end is touched, for only that is computed.

The system gives memory to the pages that are touched alone, and of each launch only the first block and the last one
run. A number that a kernel narrows to 32 bits and that does not fit is a fault of the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layouts import agree, binary_terms
from simulated.device import LIBRARY, DeviceArray, launching, to_device, to_host

import polyloss
from polyloss import dispatch
from polyloss.backends.cuda import lse, memory, simulator, softplus
from polyloss.backends.cuda.lanes import Block, Traces
from polyloss.conformance.losses import LOSSES

FAR = 2**31
END = 40
"""Rows at the end that hold something: more than a block computes."""

FORMS = {"few": 9, "few vectors": 24, "warp": 131, "block64": 1501, "block256": 5001, "long256": 12_001}


def _ends(kernel: Callable[..., None], grid: int, size: int, dynamic: int, arguments: Any) -> None:
    simulator._memory.traces = Traces("memory")
    with np.errstate(all="ignore"):
        for index in sorted({0, grid - 1}):  # the first takes the elements that make no vector
            Block(index, size, grid, dynamic).run(lambda: kernel(*arguments))


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lse, memory, softplus):
        monkeypatch.setattr(module, "MOST_BLOCKS", 1 << 30)
    monkeypatch.setattr(simulator, "launch", _ends)
    monkeypatch.setattr(LIBRARY, "empty", lambda shape, dtype, like: np.zeros(shape, dtype).view(DeviceArray))


def _ending(end: np.ndarray, size: int) -> np.ndarray:
    """Zeros, and these at the end, in the same layout."""
    base = end if end.base is None else end.base
    x = np.zeros((size, *base.shape[1:]), end.dtype)[(..., slice(end.shape[-1]))[: end.ndim]]
    x[-len(end) :] = end
    return x


def check(name: str, size: int, *ends: np.ndarray, larger: Any = 0.0, **more: np.ndarray) -> None:
    """The last item of so many, against the formula's of their end alone."""
    of = getattr(polyloss, name)
    both = polyloss.value_and_grad(of) if name in LOSSES else lambda *a, **o: [of(*a, **o)]
    options: dict[str, Any] = {"reduction": "none"} if name in LOSSES else {}
    far = {key: to_device(_ending(x, size)) for key, x in more.items()}
    with launching() as device:
        found = both(*(to_device(_ending(x, size)) for x in ends), **far, **options)
        assert device.launched, "takes no kernel"
    with dispatch.generic():
        expected = both(*ends, **more, **options)
    for one, two in zip(found, expected, strict=True):
        agree(to_host(one)[-1:], two[-1:], ends[0].shape[-1], larger=larger)


@pytest.mark.parametrize("form", FORMS)
def test_rows(form: str) -> None:
    k, rng = FORMS[form], np.random.default_rng(0)
    size, x = FAR // k + END, 3 * rng.standard_normal((END, k)).astype(np.float16)
    y, w, keep = rng.integers(0, k, END), rng.random(END).astype(np.float32), np.ones(END, bool)
    soft = (rng.random((END, k)) / k).astype(np.float16)
    check("softmax_cross_entropy", size, x, y, weights=w, where=keep)
    check("softmax_cross_entropy", size, x, soft, weights=w, class_mask=rng.random((END, k)) < 0.9, larger=1.0)
    check("softmax", size, x)
    check("logsumexp", size, x)


def test_rows_that_are_split_among_blocks() -> None:
    """As only the last piece is looked at, the others are as if they had no class."""
    k, looked_at, written = 1 << 24, 4096, 2048
    x, y = np.zeros((lse.SPLIT, k)), np.zeros(lse.SPLIT, np.int64)
    x[-1, -looked_at:] = end = 5 + np.random.default_rng(0).standard_normal(looked_at)
    y[-1] = k - 3
    both = polyloss.value_and_grad(polyloss.softmax_cross_entropy)
    with launching():
        items, gradient = map(to_host, both(to_device(x), to_device(y), reduction="none"))
    expected, slopes = both(end[None], np.array([looked_at - 3]), reduction="none")
    agree(items[-1:], expected, looked_at)
    agree(gradient[-1:, -written:], slopes[:, -written:], looked_at)


@pytest.mark.parametrize("layout", ["contiguous", "columns of more"])
@pytest.mark.parametrize("targets", ["float16", "float32", "int8"])
def test_elements(targets: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((END, 33)).astype(np.float16), rng.integers(0, 2, (END, 33)).astype(targets)
    if layout != "contiguous":
        x, t = x[:, :31], t[:, :31]
    size, w, keep = FAR // x.shape[1] + END, rng.random(END).astype(np.float32), np.ones(END, bool)
    check("sigmoid_cross_entropy", size, x, t, larger=binary_terms(x, t)[-1:])
    check("sigmoid_cross_entropy", size, x, t, weights=w, where=keep, larger=binary_terms(x, t)[-1:])


@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "softplus"])
def test_transforms_of_elements(name: str) -> None:
    check(name, FAR // 33 + END, np.random.default_rng(0).standard_normal((END, 33)).astype(np.float16))


@pytest.mark.parametrize(
    ("as_index", "number"),
    [(simulator.int32, 2**31), (simulator.int32, -(2**31) - 1), (simulator.uint32, -1), (simulator.uint32, 2**32)],
)
def test_a_number_that_32_bits_do_not_hold_is_a_fault(as_index: Callable[[Any], int], number: int) -> None:
    with pytest.raises(simulator.Fault, match="32 bits"):
        as_index(number)
