"""The kernels as custom calls of XLA, for JAX on the CPU: what their `handler` is told.

XLA makes of the accurate formula a loop that is many times slower than a kernel, and a callback to Python would cost
70 us. So the machine code of a kernel gets one more entry, which XLA calls by its foreign-function interface (FFI).

The handler fills a kernel's parameter block by a plan: for each field a code and a value, where the code says whether
the value is meant or the address or size of an array of this call. The sizes are those of the call, not of the trace,
since a batch of calls comes with one more axis.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from polyloss.backends.cpu import compiled, threads
from polyloss.backends.cpu.call import CUTOFF
from polyloss.backends.cpu.fields import BLOCK, ELEMENTS, LANES, LSE, ROWS

__all__ = [
    "ARGUMENT",
    "RESULT",
    "address",
    "elements_plan",
    "name_of",
    "rows_plan",
]

TOTAL, LAST, ROW_COUNT, ARGUMENT, RESULT = 1, 2, 3, 4, 24  # codes; 0: the value itself


def name_of(key: tuple[object, ...]) -> str:
    """What XLA is to call the handler of that kernel: never the same for other machine code."""
    return "-".join(map(str, ("polyloss", *key, compiled.fingerprint(key))))


def address(key: tuple[object, ...]) -> int:
    """The handler of that kernel."""
    return compiled.kernel("handler", *key).handler


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _plan(split: int, block: int, fields: Sequence[tuple[int, int]]) -> list[int]:
    return [len(fields), split, block, CUTOFF, threads.limit(), *(n for field in fields for n in field)]


def rows_plan(form: str, arrays: dict[str, int], smoothing: float, z_loss: float) -> list[int]:
    """For `rows`, `lanes` and `soft`; ``arrays`` gives the codes of the fields that hold one."""
    fields = [(0, 0)] * len(LSE)
    for name, code in arrays.items():
        fields[getattr(LSE, name)] = code, 0
    for at, number in ((LSE.kept, 1 - smoothing), (LSE.smoothing, smoothing), (LSE.z, z_loss), (LSE.scale, 1.0)):
        fields[at] = 0, _bits(number)
    for at in (LSE.x1, LSE.g1, LSE.classes):
        fields[at] = LAST, 0
    fields[LSE.x2] = fields[LSE.g2] = 0, 1
    fields[LSE.inner] = fields[LSE.rows] = ROW_COUNT, 0
    return _plan(ROW_COUNT, LANES if form == "lanes" else ROWS, fields)


def elements_plan(arrays: dict[str, int], smoothing: float) -> list[int]:
    """For `elements`, likewise. All arrays have the same shape."""
    fields = [(0, 0)] * len(ELEMENTS)
    for name, code in arrays.items():
        fields[getattr(ELEMENTS, name)] = code, 0
        if name in ("x", "t", "p", "w"):
            fields[getattr(ELEMENTS, f"{name}0")], fields[getattr(ELEMENTS, f"{name}1")] = (TOTAL, 0), (0, 1)
    fields[ELEMENTS.size] = fields[ELEMENTS.columns] = TOTAL, 0
    for at, number in ((ELEMENTS.kept, 1 - smoothing), (ELEMENTS.smooth, smoothing / 2), (ELEMENTS.scale, 1.0)):
        fields[at] = 0, _bits(number)
    return _plan(TOTAL, BLOCK, fields)
