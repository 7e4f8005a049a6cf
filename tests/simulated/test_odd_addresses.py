"""Numbers between multiples of their size, which no GPU reads: their arrays are copied or left to the formula."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import LAYOUTS, UNALIGNED, agree, agree_all, binary_terms, generic
from simulated.device import LIBRARY, launching, on_device, to_device, to_host

import polyloss
from polyloss import dispatch

N, K = 6, 131


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("layout", UNALIGNED)
@pytest.mark.parametrize("odd", ["logits", "targets", "weights", "of classes", "where"])
@pytest.mark.parametrize("targets", ["labels", "soft", "binary"])
def test_of_losses(targets: str, odd: str, layout: str) -> None:
    loss = polyloss.sigmoid_cross_entropy if targets == "binary" else polyloss.softmax_cross_entropy
    of_classes = "pos_weight" if targets == "binary" else "class_weights"
    given = {
        "logits": 6 * _numbers(N, K) - 3,
        "targets": np.arange(N) if targets == "labels" else _numbers(N, K, seed=1) / (1 if targets == "binary" else K),
        "weights": _numbers(N),
        of_classes: _numbers(K),
        "where": np.arange(N) != 2,
    }
    expected = generic(loss, **given)
    terms = binary_terms(given["logits"], given["targets"], given[of_classes]) if targets == "binary" else 1.0
    name = of_classes if odd == "of classes" else odd
    given[name] = LAYOUTS[layout](given[name])
    agree_all(on_device(loss, launches=False, **given), expected, K, larger=terms)


@pytest.mark.parametrize("layout", UNALIGNED)
@pytest.mark.parametrize("name", ["softmax", "logsumexp", "sigmoid"])
def test_of_transforms(name: str, layout: str) -> None:
    x, of = 6 * _numbers(3, K) - 3, getattr(polyloss, name)
    with launching():
        got = to_host(of(to_device(LAYOUTS[layout](x))))
    with dispatch.generic():
        agree(got, of(x), K, larger=6.0 if name == "logsumexp" else 0.0)


def test_they_are_asked_for_whatever_call_came_before() -> None:
    """A call that is like an earlier one in all else is not taken for like it."""
    x = 6 * _numbers(N, K) - 3
    for lay_out in (np.ascontiguousarray, *(LAYOUTS[layout] for layout in UNALIGNED)):
        given = to_device(lay_out(x)), to_device(np.arange(N))
        with launching():
            value = to_host(polyloss.softmax_cross_entropy(*given))
        agree(value, np.asarray(polyloss.softmax_cross_entropy(x, np.arange(N))), N * K)
        assert (LIBRARY.stored(given[0]) is None) == (lay_out is not np.ascontiguousarray)
