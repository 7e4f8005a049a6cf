"""Every kernel for CUDA memory that a call can launch."""

from __future__ import annotations

from typing import Any

from polyloss.backends.cuda.call import WHOLE, WIDE
from polyloss.backends.cuda.fields import FORMS

__all__ = ["KEYS", "part"]

LABELS = ("int32", "int64")  # others are cast
MODES = ((True, True), (True, False), (False, True))  # value, gradient
ROWS = [form for form in FORMS if form not in ("block512", "scalar warp")]  # `split` has those two for itself

KEYS: list[tuple[Any, ...]] = [
    # The gradient alone cuts what is long into pieces, and the value alone has nothing to be aligned with.
    *(
        ("rows", x, y, form, *mode)
        for x in WIDE
        for y in LABELS
        for form in ROWS
        for mode in MODES
        if (mode[0] or not FORMS[form].shelf) and (mode[1] or form != "scalar block")
    ),
    *(("split", x, "", "block512") for x in WIDE),
    *(("split", x, y, "") for x in WIDE for y in LABELS),
    *(
        ("soft", x, t, general, form, gradient)
        for x in WIDE
        for t in (*LABELS, *WIDE)
        for general in (True, False)
        for form in ROWS
        for gradient in (True, False)
        # Needs more registers than 512 threads have; and labels alone have nothing to be aligned with.
        if form != "long512" and (gradient or t in WIDE or form != "scalar block")
    ),
    *(
        ("elements", x, t, form, *mode)
        for x in WIDE
        for t in (*WIDE, *sorted(WHOLE))
        for form in ("plain", "vectors", "scalars")
        for mode in MODES
        if t == x or form != "plain"
    ),
    *(("sums", wide) for wide in sorted(set(WIDE.values()))),
    *(("transforms", f, x, "") for f in ("sigmoid", "log_sigmoid", "softplus") for x in WIDE),
    *(("transforms", f, x, form) for f in ("softmax", "log_softmax") for x in WIDE for form in ROWS),
    *(("transforms", "logsumexp", x, form) for x in WIDE for form in ROWS if form != "scalar block"),
]


def part(which: str) -> list[tuple[Any, ...]]:
    """Of "3/13" the third part: every thirteenth kernel, so that each part has something of each table."""
    i, n = map(int, which.split("/"))
    assert 1 <= i <= n, which
    return KEYS[i - 1 :: n]
