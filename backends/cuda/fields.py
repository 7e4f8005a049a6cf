"""What the kernels and those who launch them agree on. No Numba here."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

__all__ = [
    "BATCH",
    "ELEMENTS_BLOCK",
    "FORMS",
    "MOST_BLOCKS",
    "ROWS_BLOCK",
    "SOFT_BLOCK",
    "SPLIT_BLOCK",
    "SUMS_BLOCK",
    "TRANSFORM_BLOCK",
    "Form",
]

BATCH = 4
"""Vectors of 16 bytes that a thread has in flight, and that it keeps in registers."""


class Form(NamedTuple):
    """How a row is shared among threads."""

    lanes: int  # that share a row; 0: as the call says
    block: bool  # whether they are a whole block
    vector: bool  # 16 bytes at a time, or one number
    long: bool  # more than one batch
    shelf: bool  # the next batches stay in shared memory


FORMS = {
    "few": Form(0, False, False, False, False),
    "few vectors": Form(0, False, True, False, False),
    "warp": Form(32, False, True, False, False),
    "block64": Form(64, True, True, False, False),
    "block128": Form(128, True, True, False, False),
    "block256": Form(256, True, True, False, False),
    "block512": Form(512, True, True, False, False),
    "long256": Form(256, True, True, True, True),
    "long512": Form(512, True, True, True, True),
    "scalar warp": Form(32, False, False, True, False),
    "scalar block": Form(256, True, False, True, False),
}

MOST_BLOCKS = 1 << 14
"""Blocks of a launch; each takes further rows when it is done. So the sums of blocks are few, and always the same."""

ELEMENTS_BLOCK, ROWS_BLOCK, SOFT_BLOCK = Struct("23q4d"), Struct("19q3d"), Struct("18q5d")
SPLIT_BLOCK, TRANSFORM_BLOCK, SUMS_BLOCK = Struct("15q2d"), Struct("6q"), Struct("5q1d")
"""How the parameters of each kernel are packed, all of 64 bits; each ``kernel`` names them."""
