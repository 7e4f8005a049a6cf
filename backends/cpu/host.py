"""Which work the kernels for host memory take."""

from __future__ import annotations

import functools

from polyloss.backends import Kernel, Work
from polyloss.backends.cpu import compiled, threads
from polyloss.backends.cpu.call import FLOATS
from polyloss.backends.cpu.lse import Lse
from polyloss.backends.cpu.softplus import Softplus

__all__ = ["KERNELS"]

_BY_PRIMITIVE: dict[str, Softplus | Lse] = {"SoftplusCrossEntropy": Softplus(), "LseCrossEntropy": Lse()}


class _Host:
    """The kernels for host memory."""

    def take(self, work: Work) -> Kernel | None:
        x = work.arrays[0]
        kind = work.library.stored(x)
        if kind not in FLOATS or True in work.wanted[1:] or 0 in x.shape:
            return None
        if kind == "float16" and not converts_halves():
            return None
        kernel = _BY_PRIMITIVE.get(type(work.primitive).__name__)
        return kernel if kernel is not None and kernel.takes(work, kind) else None

    def report(self) -> str:
        if compiled.failures:
            return f"some kernels could not be made: {next(iter(compiled.failures.values()))}"
        where = compiled.folder()
        kept = f"kept in {where}" if where is not None else "compiled anew in every process (no cache folder)"
        return f"{threads.limit()} threads; kernels {kept}"


@functools.cache
def converts_halves() -> bool:
    """Whether the processor itself converts the 16-bit floats of the IEEE; else that is a call of a C function."""
    name, features = compiled.processor()
    return "+f16c" in features or "+fullfp16" in features or name.startswith(("apple", "neoverse"))


KERNELS = _Host()
