"""What the public docstrings have in common, written once and put into each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["complete"]

F = TypeVar("F", bound=Callable[..., object])

SHARED = {
    "{reduce}": """\
weights : array, optional
        Multiply the losses: 0-d; or the loss's number of axes, size 1 broadcasting; or fewer axes, which are the loss's
        leading ones. A weight of 0 is a number, not a mask.
    where : boolean array, optional
        False masks an item: it adds nothing to value or gradient, whatever it holds. Shaped as ``weights``.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"none"``: ``w l`` per item, with w the weights (0 where masked); ``"sum"``: ``sum(w l)``; ``"mean"``:
        ``sum(w l) / sum(w)``, NaN with gradient 0 where there is nothing to average.
    denominator : float or 0-d array, optional
        Replaces ``sum(w)`` in the mean: a mean over micro-batches or devices divides by their common count.""",
    "{weigh}": """\
weights : array, optional
        How much an item counts: 0-d; or the items' number of axes, size 1 broadcasting; or fewer axes, which are the
        leading ones.
    where : boolean array, optional
        False leaves an item out, whatever it holds. Shaped as ``weights``.""",
    "{raises}": """\
TypeError
        If an argument has the wrong type or dtype, or arrays of two libraries meet.
    ValueError
        If a shape, an option or a device does not fit, or a value is out of range. Values are checked in host memory;
        on other devices, under a trace and in lazy arrays a value out of range makes its own item NaN.""",
}


def complete(function: F) -> F:
    """Replaces the placeholders in a docstring."""
    if function.__doc__ is not None:  # python -OO
        for placeholder, text in SHARED.items():
            function.__doc__ = function.__doc__.replace(placeholder, text)
    return function
