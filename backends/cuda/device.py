"""What the kernels compute with, on the device: memory by address, threads that exchange numbers, exp and log1p.

A kernel uses these names alone. They are those of `intrinsics`, for Numba's compiler of CUDA, or of `simulator`, with
``NUMBA_ENABLE_CUDASIM=1``. Another compiler of the same dialect is a third such module, and one line here.

Numba is imported by the first of them and by nothing else, and that only to compile.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from polyloss.backends.cuda.compiled import SIMULATED

__all__ = [
    "barrier",
    "block",
    "blocks",
    "compile_ptx",
    "cuda",
    "device",
    "int32",
    "memory",
    "number",
    "opaque",
    "runs",
    "scalars",
    "shuffle",
    "thread",
    "threads",
    "two_sum",
    "types",
    "uint32",
    "vectors",
    "warp_barrier",
]

_here: Any = importlib.import_module(f"polyloss.backends.cuda.{'simulator' if SIMULATED else 'intrinsics'}")

cuda, device, compile_ptx = _here.cuda, _here.device, _here.compile_ptx
types, int32, uint32 = _here.types, _here.int32, _here.uint32
thread, threads, block, blocks = _here.thread, _here.threads, _here.block, _here.blocks
barrier, warp_barrier, shuffle, opaque = _here.barrier, _here.warp_barrier, _here.shuffle, _here.opaque


@functools.cache
def number(wide: str) -> SimpleNamespace:
    """The functions and constants of one register type."""
    real = np.float32 if wide == "float32" else np.float64
    return SimpleNamespace(
        real=real,
        type=getattr(types, wide),
        exp=_here.exp,
        log1p=_here.log1p,
        maximum=_here.maximum(wide),
        ratio=_here.ratio(wide),
        inf=real(math.inf),
        nan=real(math.nan),
    )


@device
def two_sum(total, lost, part):
    """``total + part``, and ``lost`` with what the addition rounded away (Knuth): long sums keep their digits.

    Where a sum is infinite or NaN, what was lost is NaN; the caller looks at the total first.
    """
    larger = total + part
    head = larger - total
    return larger, lost + ((total - (larger - head)) + (part - head))


@functools.cache
def memory(dtype: str, wide: str) -> SimpleNamespace:
    """``load(p, i)`` and ``store(p, i, x)`` of that dtype at an address, for numbers that are ``wide`` in registers."""
    return SimpleNamespace(load=_here.load(dtype, wide), store=_here.store(dtype, wide), size=_here.SIZES[dtype])


@functools.cache
def vectors(dtype: str, wide: str) -> SimpleNamespace:
    """16 bytes at a time: as ``words`` of 32 bits (float64: of 64) in registers, each of one number or of two halves.

    ``load(p, i, held, j)`` brings the i-th vector at an address to place j of an array of words, ``blank`` fills a
    place with -inf, ``get(held, j, e)`` is its number e, ``drop(held, j, e)`` makes that -inf, and ``store(p, i, out)``
    packs an array of numbers.
    """
    return _doubles() if dtype == "float64" else _singles() if dtype == "float32" else _pairs(dtype)


def _doubles() -> SimpleNamespace:
    load2, store2 = _here.load2, _here.store2
    as_number, as_word = _here.as_double, _here.as_long

    @device
    def load(address, i, held, j):
        held[2 * j], held[2 * j + 1] = load2(address + 16 * i)

    @device
    def get(held, j, e):
        return as_number(held[2 * j + e])

    @device
    def store(address, i, out):
        store2(address + 16 * i, as_word(out[0]), as_word(out[1]))

    return _vectors(types.uint64, 2, np.uint64(0xFFF0000000000000), load, get, store)


def _loading_words() -> Any:
    load4 = _here.load4

    @device
    def load(address, i, held, j):
        held[4 * j], held[4 * j + 1], held[4 * j + 2], held[4 * j + 3] = load4(address + 16 * i)

    return load


def _singles() -> SimpleNamespace:
    store4, as_number, as_word = _here.store4, _here.as_float, _here.as_int

    @device
    def get(held, j, e):
        return as_number(held[4 * j + e])

    @device
    def store(address, i, out):
        store4(address + 16 * i, as_word(out[0]), as_word(out[1]), as_word(out[2]), as_word(out[3]))

    return _vectors(types.uint32, 4, np.uint32(0xFF800000), _loading_words(), get, store)


def _pairs(dtype: str) -> SimpleNamespace:
    store4, (lower, upper, pack) = _here.store4, _here.halves(dtype)

    @device
    def get(held, j, e):
        word = held[4 * j + (e >> 1)]
        return upper(word) if e & 1 else lower(word)

    @device
    def store(address, i, out):
        store4(
            address + 16 * i,
            pack(out[0], out[1]),
            pack(out[2], out[3]),
            pack(out[4], out[5]),
            pack(out[6], out[7]),
        )

    lowest = np.uint32(0xFC00FC00 if dtype == "float16" else 0xFF80FF80)
    low, high = np.uint32(0xFFFF), np.uint32(0xFFFF0000)

    @device
    def drop(held, j, e):
        w = 4 * j + (e >> 1)
        held[w] = (held[w] & low) | (lowest & high) if e & 1 else (held[w] & high) | (lowest & low)

    return _vectors(types.uint32, 4, lowest, _loading_words(), get, store, drop)


def _vectors(
    word: Any, words: int, lowest: Any, load: Any, get: Any, store: Any, drop_half: Any = None
) -> SimpleNamespace:
    @device
    def blank(held, j):
        for w in range(words):
            held[words * j + w] = lowest

    @device
    def drop(held, j, e):
        held[words * j + e] = lowest

    numbers = words if drop_half is None else 2 * words
    return SimpleNamespace(
        word=word,
        words=words,
        numbers=numbers,
        load=load,
        blank=blank,
        get=get,
        drop=drop_half or drop,
        store=store,
    )


@functools.cache
def scalars(dtype: str, wide: str) -> SimpleNamespace:
    """The same one number at a time, for arrays that are not aligned, and for rows too short for vectors."""
    read, write = _here.load(dtype, wide), _here.store(dtype, wide)
    lowest = number(wide).real(-math.inf)

    @device
    def load(address, i, held, j):
        held[j] = read(address, i)

    @device
    def blank(held, j):
        held[j] = lowest

    @device
    def get(held, j, e):
        return held[j]

    @device
    def store(address, i, out):
        write(address, i, out[0])

    @device
    def drop(held, j, e):
        held[j] = lowest

    word = getattr(types, wide)
    return SimpleNamespace(word=word, words=1, numbers=1, load=load, blank=blank, get=get, drop=drop, store=store)


@functools.cache
def runs(dtype: str, wide: str, count: int) -> Any:
    """``load(p, i, out)``: the i-th ``count`` numbers at an address, 16 bytes at a time where they are as many."""
    whole = dtype not in ("float32", "float64", "float16", "bfloat16")
    chunk, read, real = vectors(wide if whole else dtype, wide), memory(dtype, wide).load, number(wide).real
    fetch, get, per, vectors_each = chunk.load, chunk.get, chunk.numbers, 0 if whole else count // chunk.numbers
    Word, W = chunk.word, chunk.words

    @device
    def load_vectors(address, i, out):
        words = cuda.local.array(W, Word)
        for v in range(vectors_each):
            fetch(address, i * vectors_each + v, words, 0)
            for e in range(per):
                out[v * per + e] = real(get(words, 0, e))

    @device
    def load_numbers(address, i, out):
        for e in range(count):
            out[e] = read(address, i * count + e)

    return load_vectors if vectors_each else load_numbers
