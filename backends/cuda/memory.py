"""Which work the kernels for CUDA memory take."""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec

from polyloss.backends import Array, Kernel, Library, Unavailable, Work
from polyloss.backends.cache import whereabouts
from polyloss.backends.cuda import compiled
from polyloss.backends.cuda.call import FLOATS
from polyloss.backends.cuda.fields import MOST_BLOCKS, TRANSFORM_BLOCK
from polyloss.backends.cuda.lse import SIZE, THREADS, Lse, Shape, shape_of
from polyloss.backends.cuda.softplus import Softplus

__all__ = ["KERNELS"]

_BY_PRIMITIVE: dict[str, Softplus | Lse] = {"SoftplusCrossEntropy": Softplus(), "LseCrossEntropy": Lse()}


class _Cuda:
    """The kernels for CUDA memory."""

    def take(self, work: Work) -> Kernel | None:
        x = work.arrays[0]
        kind = work.library.stored(x)
        if kind not in FLOATS or True in work.wanted[1:] or 0 in x.shape:
            return None
        kernel = _BY_PRIMITIVE.get(type(work.primitive).__name__)
        if kernel is None or not kernel.takes(work, kind) or missing(work.library.queue(x)[0]):
            return None
        return kernel

    def transform(self, name: str, library: Library, x: Array) -> Array | None:
        kind = library.stored(x)
        rows = name in ("softmax", "log_softmax", "logsumexp")
        if kind not in FLOATS or 0 in x.shape or library.differentiates(x) or (rows and x.shape[-1] > 1 << 24):
            return None
        queue = library.queue(x)
        if missing(queue[0]):
            return None
        x = x if library.is_contiguous(x) else library.contiguous(x)
        out = library.empty(x.shape[:-1] if name == "logsumexp" else x.shape, x.dtype, x)
        x_at, out_at = library.address(x), library.address(out)
        classes = x.shape[-1] if rows else 1
        size = math.prod(x.shape) // classes
        if rows:
            aligned = name == "logsumexp" or (x_at - out_at) % 16 == 0
            shape = shape_of(classes, SIZE[kind], aligned, x_at % 16 == 0, queue[0])
            form, blocks = shape.form, shape.blocks(size)
        else:
            shape, form, blocks = Shape("", 1, 0, 0), "", min(MOST_BLOCKS, -(-size // THREADS))
        parameters = TRANSFORM_BLOCK.pack(x_at, out_at, size, classes, shape.lanes, shape.shelved)
        try:
            compiled.kernel("transforms", name, kind, form)(queue, blocks, parameters, shape.dynamic)
        except Unavailable:
            return None
        return out

    def report(self) -> str:
        if reason := missing(0):
            return reason
        if compiled.failures:
            return f"some kernels could not be made: {next(iter(compiled.failures.values()))}"
        return f"kernels {whereabouts()}"


@functools.cache
def missing(device: int) -> str:
    """What the kernels need and do not find, to run on that device; "" where nothing is missing."""
    if compiled.SIMULATED:
        return ""
    for module in ("numba_cuda", "cuda.bindings.nvjitlink"):
        try:
            found = find_spec(module)
        except ImportError:
            found = None
        if found is None:
            return f"the module {module} is missing: pip install 'array-polyloss[cuda12]' or [cuda13], as the driver is"
    from polyloss.backends.cuda import driver

    try:
        major, minor = driver.capability(device)
    except (OSError, RuntimeError, AttributeError) as error:
        return f"there is no usable driver: {error}"
    if (major, minor) < driver.OLDEST:
        return "the device has compute capability {}.{}, and the kernels need {}.{}".format(
            major, minor, *driver.OLDEST
        )
    return ""


KERNELS = _Cuda()
