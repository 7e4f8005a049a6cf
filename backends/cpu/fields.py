"""What a kernel is told: the fields of its parameter block, 8 bytes each, first integers, then floats.

One block serves all parts of a call. It is packed by `softplus` and `lse`, and read by the compiled code.
An address of 0 says that there is no such array; strides count elements.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

__all__ = [
    "BLOCK",
    "ELEMENTS",
    "ELEMENTS_BLOCK",
    "FEW",
    "LANES",
    "LSE",
    "LSE_BLOCK",
    "LSE_LAYOUT",
    "ROWS",
    "TRANSFORM",
    "TRANSFORM_BLOCK",
]

BLOCK = 256
"""Elements that `elements` treats at once. No sum in single precision runs over more."""

LANES = 64
"""Rows that `lanes` treats at once, side by side."""

FEW = 32
"""The most classes that `lanes` turns into a tile; it takes more only where rows are neighbours in memory."""

ROWS = 4
"""Rows that share one partial sum in `rows`."""


class Elements(NamedTuple):
    """Of `elements`. Operands are [rows, columns]; results are contiguous."""

    x: int
    x0: int
    x1: int
    t: int
    t0: int
    t1: int
    p: int
    p0: int
    p1: int
    w: int
    w0: int
    w1: int
    keep: int
    keep0: int
    keep1: int
    gradient: int
    items: int
    sums: int  # one float64 for each block
    size: int
    columns: int
    kept: int  # floats from here: 1 - e
    smooth: int  # e/2
    scale: int  # of the gradient


class Lse(NamedTuple):
    """Of `rows`, `soft` and `lanes`.

    Row r of the classes stands at ``(r // inner) x0 + (r % inner) x1``, and class k at ``k x2`` from there; the
    gradient likewise.
    """

    x: int
    labels: int  # int64 [rows]
    t: int  # target probabilities [rows, classes]
    c: int  # class weights [classes]
    mask: int  # of classes
    w: int  # [rows]
    keep: int  # [rows]
    items: int  # [rows]
    sums: int  # one float64 for each block
    top: int  # [rows]: the maximum, and the sum of the others' exponentials; read where only the gradient is asked for
    others: int
    gradient: int
    mask0: int  # from row to row
    kept: int  # floats: 1 - e
    smoothing: int  # e
    z: int
    scale: int  # of the gradient
    x0: int  # integers again, which the layout alone decides
    x1: int
    x2: int
    inner: int
    rows: int
    classes: int
    g0: int
    g1: int
    g2: int


class Transform(NamedTuple):
    """Of `transforms`. Everything is contiguous."""

    x: int
    out: int
    size: int  # elements, or rows
    classes: int


ELEMENTS = Elements(*range(len(Elements._fields)))
ELEMENTS_BLOCK = Struct("20q3d")
LSE = Lse(*range(len(Lse._fields)))
LSE_BLOCK = Struct("13q4d")
LSE_LAYOUT = Struct("9q")
"""What follows `LSE_BLOCK`."""
TRANSFORM = Transform(*range(len(Transform._fields)))
TRANSFORM_BLOCK = Struct("4q")
