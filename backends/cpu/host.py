"""Which work the kernels for host memory take."""

from __future__ import annotations

import functools
import math

from polyloss.backends import Array, Kernel, Library, Unavailable, Work
from polyloss.backends.cache import whereabouts
from polyloss.backends.cpu import compiled, threads
from polyloss.backends.cpu.call import FLOATS, run
from polyloss.backends.cpu.fields import BLOCK, ROWS, TRANSFORM_BLOCK
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
        kernel = _BY_PRIMITIVE.get(type(work.primitive).__name__)
        if kernel is None or not kernel.takes(work, kind) or ("float16" in work.stored and not converts_halves()):
            return None
        return kernel

    def transform(self, name: str, library: Library, x: Array) -> Array | None:
        kind = library.stored(x)
        if (
            kind not in FLOATS
            or 0 in x.shape
            or library.differentiates(x)
            or (kind == "float16" and not converts_halves())
        ):
            return None
        rows = name in ("softmax", "log_softmax", "logsumexp")
        x = x if library.is_contiguous(x) else library.contiguous(x)
        out = library.empty(x.shape[:-1] if name == "logsumexp" else x.shape, x.dtype, x)
        classes, elements = (x.shape[-1] if rows else 1), math.prod(x.shape)
        size = elements // classes
        try:
            kernel = compiled.kernel("transforms", name, kind)
        except Unavailable:
            return None
        parameters = TRANSFORM_BLOCK.pack(library.address(x), library.address(out), size, classes)
        run(library, kernel, parameters, -(-size // (ROWS if rows else BLOCK)), elements)
        return out

    def report(self) -> str:
        if compiled.failures:
            return f"some kernels could not be made: {next(iter(compiled.failures.values()))}"
        return f"{threads.limit()} threads; kernels {whereabouts()}"


@functools.cache
def converts_halves() -> bool:
    """Whether the processor itself converts the 16-bit floats of the IEEE; else that is a call of a C function."""
    name, features = compiled.processor()
    return "+f16c" in features or "+fullfp16" in features or name.startswith(("apple", "neoverse"))


KERNELS = _Host()
