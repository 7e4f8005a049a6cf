"""Arrays as they may lie in memory, and how the kernels' numbers are compared with the formula's.

Both routes round the same differences ``x - max x`` and take the exponentials of the same numbers, so an error that
comes from there is in both. What may differ is the exponential and the logarithm themselves (1 ulp in a kernel, 2.4 in
NumPy), the sum of K terms, and a few roundings after. That is the budget of `polyloss.conformance.budget` without its
spread: ``6 + log2 K`` ulp. A gradient in 16 bits is the rounding of one in 32, and may be off by one of its own ulp.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import dispatch

pytest.importorskip("llvmlite")

from polyloss.backends.cpu import host

INF, NAN = math.inf, math.nan
HALVES = pytest.mark.skipif(not host.converts_halves(), reason="this processor does not convert float16")
BRAINS = pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="NumPy has bfloat16 from ml_dtypes")

every_dtype = pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", pytest.param("float16", marks=HALVES), pytest.param("bfloat16", marks=BRAINS)],
)


def dtype_of(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


# Comparing.

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
LEAST = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}


def unit(x: np.ndarray, dtype: str) -> Any:
    """One ulp of these numbers."""
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.where(np.isfinite(x), np.abs(x), 0))[1] - 1
    exponent = np.where(x == 0, LEAST[dtype], np.maximum(exponent, LEAST[dtype]))
    return np.ldexp(1.0, np.maximum(exponent - MANTISSA[dtype], -1074))


def agree(got: Any, expected: Any, classes: int = 1, *, larger: Any = 0.0, note: Any = "") -> None:
    """NaN and infinity in the same places, all else to the budget; ``larger`` is a term that the formula subtracts."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype, note
    assert got.shape == expected.shape, note
    dtype = str(got.dtype)
    budget = 1.0 if dtype in ("float16", "bfloat16") else 6 + math.log2(classes)
    a, b = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b), err_msg=str(note))
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), larger)
    floor = classes * float(unit(np.zeros(()), dtype))  # each term may lose a subnormal number
    error = np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)) - floor, 0) / unit(size, dtype)
    assert np.max(error, initial=0) <= budget, (note, float(np.max(error)), np.unravel_index(np.argmax(error), a.shape))


def to_numpy(x: Any) -> np.ndarray:
    """An array of NumPy, or of torch, whose bfloat16 NumPy does not know."""
    if hasattr(x, "detach"):
        x = x.detach()
        if "bfloat16" in str(x.dtype):
            return x.float().numpy().astype(dtype_of("bfloat16"))
        return x.numpy()
    return np.asarray(x)


def results(loss: Any, *arrays: Any, **options: Any) -> list[Any]:
    """The mean and its gradient, the items and theirs."""
    both = polyloss.value_and_grad(loss)
    return [*both(*arrays, **options), *both(*arrays, reduction="none", **options)]


def generic(loss: Any, *arrays: Any, **options: Any) -> list[Any]:
    with dispatch.generic():
        return results(loss, *arrays, **options)


def agree_all(got: list[Any], expected: list[Any], classes: int = 1, note: Any = "", *, larger: Any = 0.0) -> None:
    """For `results`. Items of either sign may cancel in a mean; ``larger`` is of the gradient of the items."""
    mean, slopes, items, item_slopes = map(to_numpy, expected)
    sizes = [
        np.abs(np.nan_to_num(x.astype(np.float64), nan=0, posinf=0, neginf=0)) for x in (slopes, items, item_slopes)
    ]
    most, total, item_most = np.max(sizes[0], initial=0), np.sum(sizes[1]), np.max(sizes[2], initial=0)
    ratio = most / item_most if item_most else 0.0  # of the two gradients, and so of the two values
    agree(to_numpy(got[2]), items, classes, note=(note, "items"))
    agree(to_numpy(got[3]), item_slopes, classes, larger=larger, note=(note, "gradient of items"))
    agree(to_numpy(got[0]), mean, classes * max(1, items.size), larger=total * ratio, note=(note, "mean"))
    agree(to_numpy(got[1]), slopes, classes, larger=larger * ratio, note=(note, "gradient"))


def binary_terms(x: Any, t: Any, p: Any = 1.0, e: float = 0.0) -> np.ndarray:
    """The larger term of the derivative of `sigmoid_cross_entropy`, ``b s(x) - a s(-x)``."""
    x, t, p = (to_numpy(a).astype(np.float64) if hasattr(a, "dtype") else a for a in (x, t, p))
    with np.errstate(all="ignore"):
        s, r = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        a, b = p * (t * (1 - e) + e / 2), (1 - t) * (1 - e) + e / 2
        return np.asarray(np.nan_to_num(np.maximum(np.abs(a * r), np.abs(b * s)), posinf=0, neginf=0))


# The layouts of NumPy: each makes of an array the same numbers elsewhere.


def _copied(base: np.ndarray, index: tuple[Any, ...], a: np.ndarray) -> np.ndarray:
    view: np.ndarray = base[index]
    view[...] = a
    return view


def _every_second(a: np.ndarray) -> np.ndarray:
    return _copied(np.ones([2 * n for n in a.shape], a.dtype), (slice(None, None, 2),) * a.ndim, a)


def _inside(a: np.ndarray) -> np.ndarray:
    return _copied(np.ones([n + 2 for n in a.shape], a.dtype), (slice(1, -1),) * a.ndim, a)


def _reversed(a: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(a).copy())


def _rotated(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


def _swapped(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(a, 0, -1)), 0, -1)


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _field(a: np.ndarray) -> np.ndarray:
    return _copied(np.zeros(a.shape, [("x", a.dtype), ("y", a.dtype)])["x"], (...,), a)


def _packed_field(a: np.ndarray) -> np.ndarray:
    return _copied(np.zeros(a.shape, [("flag", "i1"), ("x", a.dtype)])["x"], (...,), a)


def _odd_address(a: np.ndarray) -> np.ndarray:
    return _copied(np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), 1), (...,), a)


def _mapped(a: np.ndarray) -> np.ndarray:
    memory = mmap.mmap(-1, max(1, a.nbytes))
    return _copied(np.ndarray(a.shape, a.dtype, memory), (...,), a)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": _reversed,
    "first axis reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a,
    "every second": _every_second,
    "every second of the first axis": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    "inside a larger one": _inside,
    "rotated": _rotated,
    "swapped": lambda a: _swapped(a) if a.ndim else a,
    "read-only": _read_only,
    "field of a structure": _field,
    "field of a packed structure": _packed_field,
    "at an odd address": _odd_address,
    "memory-mapped": _mapped,
}
UNALIGNED = ("field of a packed structure", "at an odd address")


def logits_and_labels(shape: tuple[int, ...], axis: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(shape[axis])
    x = (3 * rng.standard_normal(shape)).astype(dtype_of(dtype))
    return x, rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])


def check_layouts(loss: Any, arrays: list[np.ndarray], ran: list[Any], classes: int, **options: Any) -> None:
    expected = generic(loss, *arrays, **options)
    larger = binary_terms(*arrays) if loss is polyloss.sigmoid_cross_entropy else 0.0
    assert ran == []
    plain: tuple[list[Any], list[Any]] | None = None
    for name, lay_out in LAYOUTS.items():
        given = [lay_out(a) for a in arrays]
        before = [a.tobytes() for a in given]
        ran.clear()
        got = results(loss, *given, **options)
        keys = list(ran)
        ran.clear()
        if name not in UNALIGNED:
            assert len(keys) == 2, (name, "takes no kernel")
        agree_all(got, expected, classes, name, larger=larger)
        if plain is None:
            plain = keys, got
        elif keys == plain[0]:  # the same kernel: the same bits, item by item
            for one, two in zip(got[2:], plain[1][2:], strict=True):
                np.testing.assert_array_equal(one, two, err_msg=name)
        assert [a.tobytes() for a in given] == before, (name, "an input was written")
        for i, a in enumerate(got):
            for other in (*given, *got[:i]):
                assert not np.shares_memory(a, other), (name, "results share memory")
