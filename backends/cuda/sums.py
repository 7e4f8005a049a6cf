"""What ends a kernel's value: the sum of a block's threads, and the sum of all blocks, over the divisor.

Sums of losses run in double precision, in an order that the sizes alone decide; there are no atomics.
"""

from __future__ import annotations

import functools
from typing import Any

from polyloss.backends.cuda.device import (
    barrier,
    block,
    blocks,
    cuda,
    device,
    memory,
    number,
    shuffle,
    thread,
    threads,
    types,
)

__all__ = ["PARAMETERS", "build", "finishing", "scaling"]

PARAMETERS = "qqqqqd"


@functools.cache
def scaling(wide: str) -> Any:
    """The factor of the gradient: the scale over the divisor, numbers or 0-d arrays."""
    real, read = number(wide).real, memory(wide, wide).load
    zero = real(0)

    @device
    def factor(scale_by, scale_at, divide_by, divisor_at):
        scale, divisor = real(scale_by), real(divide_by)
        if scale_at != 0:
            scale *= read(scale_at, 0)
        if divisor_at != 0:
            divisor = read(divisor_at, 0)
        return zero if divisor == zero else scale / divisor

    return factor


@functools.cache
def finishing(wide: str) -> Any:
    """What makes of each thread's total the block's, among the sums; or in the only block, the value."""
    real, nan = number(wide).real, number(wide).nan
    read, write, keep = memory(wide, "float64").load, memory(wide, wide).store, memory("float64", "float64").store

    @device
    def finish(total, sums_at, result_at, divide_by, divisor_at):
        if sums_at == 0 and result_at == 0:
            return
        distance = 16
        while distance > 0:
            total += shuffle(total, distance)
            distance >>= 1
        totals = cuda.shared.array(32, types.float64)
        if thread() & 31 == 0:
            totals[thread() >> 5] = total
        barrier()
        if thread() == 0:
            for warp in range(1, threads() >> 5):
                total += totals[warp]
            if result_at != 0:
                divisor = divide_by
                if divisor_at != 0:
                    divisor = read(divisor_at, 0)
                write(result_at, 0, nan if divisor == 0.0 else real(total / divisor))
            else:
                keep(sums_at, block(), total)

    return finish


def build(wide: str) -> Any:
    """The kernel that sums the sums of blocks: to fewer sums, or in one block to the value."""
    load, finish = memory("float64", "float64").load, finishing(wide)

    def kernel(parts_at, sums_at, result_at, divisor_at, count, divide_by):
        total = 0.0
        for i in range(block() * threads() + thread(), count, blocks() * threads()):
            total += load(parts_at, i)
        finish(total, sums_at, result_at, divide_by, divisor_at)

    return kernel
