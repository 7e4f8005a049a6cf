"""Threads that share a row: what they find together, each of them learns.

A team is 1 to 32 neighbouring lanes of a warp, which exchange numbers by shuffles, or a whole block, whose warps meet
in shared memory. The order of every sum is fixed by the size of the team.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

from polyloss.backends.cuda.device import barrier, device, number, shuffle, thread, two_sum
from polyloss.backends.cuda.fields import Form

__all__ = ["WARP", "team"]

WARP = 32


@functools.cache
def team(wide: str, form: Form) -> SimpleNamespace:
    """``maximum`` and ``sums`` over a team of ``lanes``.

    A block needs ``scratch``, one shared element for each warp, and different ones for reductions that follow each
    other: then one barrier for each is enough.
    """
    m, warps = number(wide), form.lanes // WARP
    real, larger, inf = m.real, m.maximum, m.inf
    zero = real(0)

    @device
    def maximum_of_lanes(x, lanes):
        distance = lanes >> 1
        while distance > 0:
            x = larger(x, shuffle(x, distance))
            distance >>= 1
        return x

    @device
    def sums_of_lanes(total, lost, count, lanes):
        distance = lanes >> 1
        while distance > 0:
            lost += shuffle(lost, distance)
            total, lost = two_sum(total, lost, shuffle(total, distance))
            count += shuffle(count, distance)
            distance >>= 1
        return total, lost, count

    @device
    def maximum_of_block(x, lanes, scratch):
        x = maximum_of_lanes(x, WARP)
        lane = thread() & 31
        if lane == 0:
            scratch[thread() >> 5] = x
        barrier()
        return maximum_of_lanes(scratch[lane] if lane < warps else -inf, WARP)

    @device
    def sums_of_block(total, lost, count, lanes, totals, losts, counts):
        """The sums of a compensated number (see `device.two_sum`) and of a plain one."""
        total, lost, count = sums_of_lanes(total, lost, count, WARP)
        lane = thread() & 31
        if lane == 0:
            totals[thread() >> 5] = total
            losts[thread() >> 5] = lost
            counts[thread() >> 5] = count
        barrier()
        there = lane < warps
        total = totals[lane] if there else zero
        lost = losts[lane] if there else zero
        count = counts[lane] if there else zero
        return sums_of_lanes(total, lost, count, WARP)

    @device
    def maximum_of_warp(x, lanes, scratch):
        return maximum_of_lanes(x, lanes)

    @device
    def sums_of_warp(total, lost, count, lanes, totals, losts, counts):
        return sums_of_lanes(total, lost, count, lanes)

    if form.block:
        return SimpleNamespace(maximum=maximum_of_block, sums=sums_of_block)
    return SimpleNamespace(maximum=maximum_of_warp, sums=sums_of_warp)
