"""The loops of the kernels use vectors: read from the machine code, so that a Numba that stops doing so is noticed.

LLVM makes a packed loop and beside it a scalar one, for the elements that are left over. Counting instructions would
mistake the one for the other when a loop is unrolled more or less. So the innermost loops are found, and each scalar
loop that computes an exponential or a logarithm must have a packed twin with as many multiplications.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import polyloss

pytest.importorskip("llvmlite")

from polyloss.backends.cpu import compiled

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "x64"),
    reason="reads the instructions of x86-64, and this is another processor",
)

Key = tuple[Any, ...]
CALLS: dict[str, tuple[Any, tuple[int, int], str]] = {
    "rows-float32": (polyloss.softmax_cross_entropy, (2, 100), "float32"),
    "rows-float64": (polyloss.softmax_cross_entropy, (2, 100), "float64"),
    "lanes-float32": (polyloss.softmax_cross_entropy, (64, 10), "float32"),
    "elements-float32": (polyloss.sigmoid_cross_entropy, (2, 100), "float32"),
}
"""Value and gradient of arrays of that shape and dtype, by the kernel they go to."""

every_kernel = pytest.mark.parametrize("name", CALLS)


@functools.cache
def key_of(name: str) -> Key:
    """What `compiled` calls that kernel."""
    loss, shape, dtype = CALLS[name]
    x, found = np.zeros(shape, dtype), []
    real = compiled.kernel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "kernel", lambda *key: found.append(key) or real(*key))
        polyloss.value_and_grad(loss)(x, np.zeros(2 if shape[0] == 2 else 64, int) if "softmax" in loss.__name__ else x)
    (key,) = found
    assert "-".join(map(str, key[:2])) == name
    return key


@functools.cache
def assembly_of(name: str) -> str:
    return compiled.assembly(key_of(name))


MULTIPLY = r"v?(?:mul|fn?m(?:add|sub)\d*)"
EXPONENTIAL = 8
"""Multiplications that an exponential takes at least: to reduce, for the polynomial, and for the power of 2."""


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, one a line, with their operands."""

    instructions: tuple[str, ...]

    def count(self, operation: str) -> int:
        return sum(re.match(rf"{operation}\b", line) is not None for line in self.instructions)

    def multiplications(self, form: str) -> float:
        """Packed (p) or scalar (s) ones for each exponential or logarithm in the loop, which shifts an exponent."""
        shifts = self.count(r"(v?psll[dq]|s[ha]l[lq])\s+\$(23|52)")
        return self.count(rf"{MULTIPLY}{form}[sd]") / shifts if shifts else 0.0

    @property
    def width(self) -> int:
        """The bits of the widest register."""
        return max(
            (bits for name, bits in {"%xmm": 128, "%ymm": 256, "%zmm": 512}.items() if name in str(self)), default=0
        )


def loops(assembly: str) -> list[Loop]:
    """The innermost loops; one that calls a function has others inside."""
    blocks, after = _blocks(assembly)
    found = [
        Loop(tuple(line for block in sorted(loop) for line in blocks[block]))
        for loop in _innermost(set(range(len(blocks))), after)
    ]
    return [loop for loop in found if not loop.count(r"call\w*")]


def _blocks(assembly: str) -> tuple[list[list[str]], list[set[int]]]:
    """Straight pieces of code, and which may follow each."""
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        if label := re.match(r"([.\w$]+):", line):
            blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif line.startswith("\t") and not line.startswith("\t."):
            blocks[-1].append(line.strip())
            if re.match(r"(j|ret|ud2)", line.strip()):
                blocks.append([])
    after: list[set[int]] = []
    for i, block in enumerate(blocks):
        last = block[-1] if block else ""
        jump = re.match(r"j\w+\s+([.\w$]+)$", last)
        after.append({labels[jump[1]]} if jump and jump[1] in labels else set())
        if not re.match(r"(jmp|ret|ud2)", last) and i + 1 < len(blocks):
            after[i].add(i + 1)
    return blocks, after


def _innermost(nodes: set[int], after: list[set[int]]) -> list[set[int]]:
    """Cycles in which no other is left once their entry is taken out."""
    found = []
    for cycle in _cycles(nodes, after):
        entries = {i for node in set(range(len(after))) - cycle for i in after[node] & cycle} or {min(cycle)}
        found += _innermost(cycle - entries, after) or [cycle]
    return found


def _cycles(nodes: set[int], after: list[set[int]]) -> list[set[int]]:
    """The sets of nodes that reach each other."""
    before: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for follower in after[node] & nodes:
            before[follower].add(node)
    found, left = [], set(nodes)
    while left:
        start = left.pop()
        same = _reached(start, lambda node: after[node] & nodes) & _reached(start, before.__getitem__)
        if same:  # it reaches itself
            found.append(same)
            left -= same
    return found


def _reached(start: int, neighbours: Callable[[int], set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = [start]
    while waiting:
        new = neighbours(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def faults(name: str, assembly: str) -> list[str]:
    """What is wrong with the machine code of a kernel; nothing, if its loops are packed."""
    kind = "d" if "float64" in name else "s"
    found, all_loops = [], loops(assembly)
    packed = sorted({loop.multiplications("p") for loop in all_loops})
    if not any(n >= EXPONENTIAL for n in packed):
        found.append("no packed loop computes an exponential")
    for loop in all_loops:
        n = loop.multiplications("s")
        if n >= EXPONENTIAL and not any(abs(n - m) <= 1 for m in packed):
            found.append(f"a scalar loop with {n:g} multiplications has no packed twin")
    if name.startswith("rows") and not any(loop.count(rf"v?maxp{kind}") for loop in all_loops):
        found.append("no packed loop takes a maximum")
    widest = max((loop.width for loop in all_loops if loop.multiplications("p") >= EXPONENTIAL), default=0)
    if widest < registers():
        found.append(f"the exponential has registers of {widest} bits, of {registers()}")
    if called := calls(assembly) & ELEMENTARY:
        found.append(f"calls {sorted(called)}")
    return found


def registers() -> int:
    """The bits of a register that this processor should use: LLVM prefers 256 to 512 on some."""
    return 256 if "+avx2" in compiled.processor()[1].split(",") else 128


ELEMENTARY = {name + suffix for name in ("exp", "exp2", "expm1", "log", "log1p", "log2", "pow") for suffix in ("", "f")}


def calls(assembly: str) -> set[str]:
    """Functions that are called or whose address is taken, without the prefixes of vector libraries."""
    names = re.findall(r"\bcall\w*\s+\*?([A-Za-z_][\w$.]*)", assembly)
    names += re.findall(r"\bjmp\s+([A-Za-z_][\w$.]*)", assembly)
    names += re.findall(r"\bmov\w*\s+\$([A-Za-z_][\w$.]*)", assembly)
    names += re.findall(r"\blea\w*\s+([A-Za-z_][\w$.]*)\(%rip\)", assembly)
    return {re.sub(r"^(_ZGV\w+_|__svml_|_)", "", name).split("@")[0] for name in names}


@every_kernel
def test_the_loops_are_packed(name: str) -> None:
    assert faults(name, assembly_of(name)) == []


@every_kernel
def test_no_elementary_function_of_a_library_is_called(name: str) -> None:
    called = {function for function in calls(assembly_of(name)) if not function.startswith(("ZN", ".L", "polyloss"))}
    assert called <= {"memcpy", "memset", "memmove"}


# The tests themselves.


def test_a_numba_that_does_not_vectorise_is_caught() -> None:
    split, names = "\n" + "=" * 80 + "\n", ["rows-float32", "elements-float32"]
    keys = [key_of(name) for name in names]
    code = f"from polyloss.backends.cpu import compiled; print(*map(compiled.assembly, {keys}), sep={split!r})"
    environment = os.environ | {"NUMBA_LOOP_VECTORIZE": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for name, assembly in zip(names, run.stdout.split(split), strict=True):
        assert "no packed loop computes an exponential" in faults(name, assembly), name


@every_kernel
def test_one_loop_that_stays_scalar_is_caught(name: str) -> None:
    whole = assembly_of(name)
    kinds = {n for loop in loops(whole) if (n := loop.multiplications("p")) >= EXPONENTIAL}
    assert kinds
    for n in kinds:
        damaged = whole
        for loop in loops(whole):
            if abs(loop.multiplications("p") - n) <= 1:
                damaged = _without_vectors(damaged, loop)
        assert faults(name, damaged), n


def _without_vectors(assembly: str, loop: Loop) -> str:
    """The assembly in which that loop computes with scalars."""
    body = set(loop.instructions)
    lines = []
    for line in assembly.split("\n"):
        if line.strip() in body:
            line = re.sub(r"\b(v?[a-z]+\d*)p([sd])\b", r"\1s\2", line)
            line = re.sub(r"\bv?psll[dq]\b", "shll", line)
        lines.append(line)
    return "\n".join(lines)


def test_a_maximum_that_stays_scalar_is_caught() -> None:
    damaged = re.sub(r"\b(v?max)p([sd])\b", r"\1s\2", assembly_of("rows-float32"))
    assert faults("rows-float32", damaged) == ["no packed loop takes a maximum"]


@pytest.mark.parametrize(
    "line", ["\tcallq\texpf@PLT", "\tmovabsq\t$expf, %rax", "\tjmp\tlog1pf@PLT", "\tcallq\t_ZGVdN8v_expf"]
)
def test_a_call_of_an_elementary_function_is_caught(line: str) -> None:
    assert calls(line) & ELEMENTARY
    assert len(faults("rows-float32", assembly_of("rows-float32") + "\n" + line + "\n")) == 1
