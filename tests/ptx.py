"""A reader of PTX, for kernels of a few instructions: what the hardware's device functions compute, by NVIDIA's manual.

Registers hold one number for each lane. Where the manual allows an error (``ex2.approx``, ``div.approx``), the result
here is the exact one, rounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["run"]

Lanes = np.ndarray


def _nearest(x: Any) -> Lanes:
    return np.asarray(x).astype(np.float32)


def _down(x: Any) -> Lanes:
    y = _nearest(x)
    return np.where(y > x, np.nextafter(y, np.float32(-np.inf)), y)


def _to_zero(x: Any) -> Lanes:
    y = _nearest(x)
    return np.where(np.abs(y) > np.abs(x), np.nextafter(y, np.float32(0)), y)


ROUNDING: dict[str, Callable[[Any], Lanes]] = {"rn": _nearest, "rm": _down, "rz": _to_zero}


def _exactly(x: Lanes) -> Any:
    return x.astype(np.longdouble)


def _half(bits: Lanes) -> Lanes:
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def _to_half(x: Lanes) -> Lanes:
    return x.astype(np.float16).view(np.uint16).astype(np.uint32)


def _to_brain(x: Lanes) -> Lanes:
    import ml_dtypes

    bits = x.astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32)
    return np.where(np.isnan(x), np.uint32(0x7FFF), bits)


class _Machine:
    def __init__(self, memory: dict[str, list[Lanes]], lanes: int) -> None:
        self.memory, self.lanes = memory, lanes
        self.registers: dict[str, Any] = {}

    def value(self, name: str, kind: str) -> Any:
        if name.startswith("%"):
            return self.registers[name]
        if name.startswith("0f"):
            return np.full(self.lanes, int(name[2:], 16), np.uint32).view(np.float32)
        return np.full(self.lanes, int(name) & 0xFFFFFFFF, np.uint32)

    def step(self, name: str, operands: list[str]) -> None:
        base, *rest = name.split(".")
        target, *sources = operands
        kind = rest[-1]
        if base == "ld" and rest[0] == "param":
            self.registers[target] = re.search(r"param_(\d+)", sources[0])[1]  # type: ignore[index]
            return
        if base in ("ld", "st"):
            at = re.match(r"\[(%rd\d+)(?:\+(\d+))?\]", sources[0] if base == "ld" else target)
            assert at is not None
            place = self.memory[self.registers[at[1]]]
            index = int(at[2] or 0) // 4
            if base == "ld":
                bits = place[index].view(np.uint32)
                self.registers[target] = bits.view(np.float32) if kind == "f32" else bits.copy()
            else:
                place[int(at[2] or 0) // (2 if kind in ("u16", "b16") else 4)] = np.asarray(
                    self.value(sources[0], kind)
                )
            return
        if base == "shfl":
            values, distance = self.value(sources[0], "b32"), int(self.value(sources[1], "b32")[0])
            assert rest[:2] == ["sync", "bfly"]
            assert [int(self.value(s, "b32")[0]) for s in sources[2:]] == [31, 0xFFFFFFFF]
            self.registers[target.split("|")[0]] = values[np.arange(self.lanes) ^ distance]
            return
        found = self.compute(base, rest, [self.value(s, kind) for s in sources])
        if base == "mov":  # between registers of numbers and of bits
            found = found.view(np.float32 if target.startswith("%f") else np.uint32)
        self.registers[target] = found

    def compute(self, base: str, rest: list[str], x: list[Any]) -> Any:
        kind = rest[-1]
        rounded = ROUNDING[next((r for r in rest if r in ROUNDING), "rn")]
        if base == "mov":
            return x[0]
        if base in ("add", "sub", "mul") and kind == "f32":
            a, b = map(_exactly, x)
            return rounded(a + b if base == "add" else a - b if base == "sub" else a * b)
        if base in ("add", "sub"):
            return x[0].view(np.uint32) + (x[1] if base == "add" else np.uint32(0) - x[1])
        if base == "fma":
            return rounded(_exactly(x[0]) * _exactly(x[1]) + _exactly(x[2]))
        if base == "neg":
            return -x[0]
        if base == "max":
            return np.fmax(*x)
        if base == "div":
            return _nearest(_exactly(x[0]) / _exactly(x[1]))
        if base == "ex2":
            return _nearest(np.exp2(_exactly(x[0])))
        if base in ("shl", "shr", "and"):
            return {"shl": np.left_shift, "shr": np.right_shift, "and": np.bitwise_and}[base](*x)
        if base == "setp":
            kinds = {"u32": np.uint32, "s32": np.int32, "f32": np.float32}
            a, b = (v.view(kinds[kind]) for v in x)
            return a < b if rest[0] == "lt" else a == b
        if base == "selp":
            return np.where(x[2], x[0], x[1])
        if base == "cvt":
            return self.convert(".".join(rest), x)
        raise NotImplementedError(base)

    def convert(self, kinds: str, x: list[Any]) -> Any:
        if kinds == "sat.f32.f32":
            return np.where(np.isnan(x[0]), np.float32(0), np.clip(x[0], np.float32(0), np.float32(1)))
        if kinds == "rn.f32.s32":
            return x[0].view(np.int32).astype(np.float32)
        if kinds in ("rn.bf16x2.f32", "rn.f16x2.f32"):  # the first one is the upper half
            to = _to_brain if "bf16" in kinds else _to_half
            return to(x[0]) << np.uint32(16) | to(x[1])
        if kinds == "rn.f16.f32":
            return _to_half(x[0])
        if kinds == "u16.u32":
            return x[0] & np.uint32(0xFFFF)
        if kinds == "f32.f16":
            return _half(x[0])
        raise NotImplementedError(kinds)


def run(text: str, inputs: list[Lanes], outputs: int) -> list[Lanes]:
    """What the kernel ``(inputs, outputs)`` in the text makes of the float32 numbers of each lane."""
    body = text[text.index("{") + 1 : text.rindex("}")]
    lines = [line.strip() for line in body.splitlines()]
    machine = _Machine({"0": [np.asarray(x, np.float32) for x in inputs], "1": [None] * outputs}, len(inputs[0]))  # type: ignore[list-item]
    at = 0
    with np.errstate(all="ignore"):
        while lines[at] != "ret;":
            line, at = lines[at], at + 1
            if not line or line.startswith((".", "//")) or line.endswith(":"):
                continue
            found = re.match(r"(?:@(%p\d+) )?([\w.]+)\s+(.*);$", line)
            assert found is not None, line
            if found[2] == "bra":
                taken = machine.registers[found[1]]
                assert taken.all() or not taken.any(), "lanes that part"
                at = lines.index(found[3] + ":") if taken.all() else at
                continue
            operands = re.findall(r"[^,{}\[\]\s]+|\[[^\]]*\]", found[3])
            machine.step(found[2], operands)
    return machine.memory["1"]
