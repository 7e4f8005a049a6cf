"""Softmax cross-entropy with its gradient in ``cupyx.jit``: a block for each row, which reads it three times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["THREADS", "cross_entropy", "kernel"]

THREADS = 256


def kernel(cupy: Any, jit: Any) -> Any:
    """The function that `cupyx.jit` compiles."""
    float32, uint32, lowest = cupy.float32, cupy.uint32, cupy.float32(-3e38)

    def softmax(x, y, loss, g, classes, scale):  # type: ignore[no-untyped-def]
        row, lane = jit.blockIdx.x, jit.threadIdx.x
        shared = jit.shared_memory(float32, 256)
        top = lowest
        for k in range(lane, classes, uint32(256)):
            top = max(top, x[row, k])
        shared[lane] = top
        jit.syncthreads()
        distance = uint32(128)
        while distance > uint32(0):
            if lane < distance:
                shared[lane] = max(shared[lane], shared[lane + distance])
            jit.syncthreads()
            distance = distance // uint32(2)
        top = shared[0]
        jit.syncthreads()
        total = float32(0)
        for k in range(lane, classes, uint32(256)):
            total += cupy.exp(x[row, k] - top)
        shared[lane] = total
        jit.syncthreads()
        distance = uint32(128)
        while distance > uint32(0):
            if lane < distance:
                shared[lane] += shared[lane + distance]
            jit.syncthreads()
            distance = distance // uint32(2)
        total = shared[0]
        for k in range(lane, classes, uint32(256)):
            p = cupy.exp(x[row, k] - top) / total
            if k == y[row]:
                loss[row] = cupy.log(total) + top - x[row, k]
                p -= float32(1)
            g[row, k] = p * scale

    return softmax


def cross_entropy(cupy: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The mean, and its gradient."""
    from cupyx import jit

    compiled = jit.rawkernel()(kernel(cupy, jit))

    def both(x: Any, y: Any) -> tuple[Any, Any]:
        rows, classes = x.shape
        loss, g = cupy.empty(rows, cupy.float32), cupy.empty_like(x)
        compiled[rows, THREADS](x, y, loss, g, cupy.uint32(classes), cupy.float32(1 / rows))
        return loss.mean(), g

    return both
