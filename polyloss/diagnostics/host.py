"""Where diagnostics compute and draw: arrays in host memory, and axes of matplotlib."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat
import numpy as np

from polyloss import dispatch
from polyloss.inputs import Call

__all__ = ["axes_or_new", "by_name", "floats", "in_host_memory", "legend_below", "taken_apart"]

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe and Ito's, for every eye


def in_host_memory(x: Any) -> Any:
    """An array of any library as one of NumPy; what is no array stays as it is."""
    if x is None or isinstance(x, str) or (dispatch.is_number_like(x) and not isinstance(x, (list, tuple))):
        return x
    x = dispatch.detached(x)
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):  # which NumPy has not
        xp = dispatch.library_of(x).xp
        x = xp.astype(x, xp.float32)
    try:
        return np.asarray(x)
    except TypeError:  # the memory of a device is copied on demand only
        return np.asarray(array_api_compat.to_device(x, "cpu"))


def floats(**values: Any) -> list[np.ndarray]:
    """Floating arrays of one library, in their common dtype of at least 32 bits and in host memory."""
    found = Call(**values).floating(**{name: dispatch.detached(x) for name, x in values.items()})
    return [np.array(in_host_memory(x)) for x in found]


def by_name(names: Sequence[str], arguments: Sequence[Any], fewest: int) -> dict[str, Any]:
    """The arguments by their names, in host memory: scores and embeddings as `floats`, labels as they are."""
    if not fewest <= len(arguments) <= len(names):
        raise TypeError(f"the arguments must be {', '.join(names)}, got {len(arguments)} of them")
    given = {name: x for name, x in zip(names, arguments) if x is not None or name in names[:fewest]}
    labels = {name: in_host_memory(given.pop(name)) for name in ("targets", "similar") if name in given}
    return dict(zip(given, floats(**given))) | labels


def taken_apart(loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function and the options that a partial application has given it."""
    if not isinstance(loss, functools.partial):
        return loss, {}
    if loss.args:
        raise TypeError(f"options must be given by name in a functools.partial, got {loss!r}")
    return loss.func, {name: in_host_memory(x) for name, x in loss.keywords.items()}


def axes_or_new(axes: Any, size: tuple[float, float] = (5.0, 3.6)) -> Any:
    """The given axes of matplotlib, or those of a new figure."""
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'plot() needs matplotlib, which is in the extra "plot": pip install "array-polyloss[plot]"'
        ) from None
    axes = Figure(figsize=size, layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_prop_cycle(color=COLOURS)
    return axes


def legend_below(axes: Any) -> None:
    """A legend that hides no curve."""
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16))
