"""Calibration: what probabilities promise beside what comes true, and the temperature that mends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from polyloss import dispatch
from polyloss.backends import Array
from polyloss.calibration import Bins
from polyloss.classification import softmax_cross_entropy
from polyloss.diagnostics.host import axes_or_new, in_host_memory, legend_below
from polyloss.gradients import value_and_grad
from polyloss.inputs import Call, number

__all__ = ["ReliabilityCurve", "fit_temperature", "reliability_curve"]

STRIDE = 1024.0  # between the temperatures that are tried to bracket the best one
STEPS = 60  # each halves the logarithm's interval, which is more than enough for every bit


@dataclass(frozen=True)
class ReliabilityCurve:
    """The bins that hold items, from low probabilities to high ones."""

    probability: np.ndarray
    """The mean probability in each bin."""
    outcome: np.ndarray
    """How often it came true."""
    low: np.ndarray
    """The confidence interval of ``outcome``."""
    high: np.ndarray
    weight: np.ndarray
    """The weight of the items; their number where nothing weighs."""
    confidence: float

    @property
    def error(self) -> float:
        """The expected calibration error, as `polyloss.calibration_error` gives it."""
        total = np.sum(self.weight)
        return float(np.sum(self.weight * np.abs(self.probability - self.outcome)) / total) if total else math.nan

    def __str__(self) -> str:
        lines = [f"{'probability':>12}{'came true':>12}{f'{100 * self.confidence:.12g}% interval':>20}{'weight':>12}"]
        for p, t, low, high, weight in zip(self.probability, self.outcome, self.low, self.high, self.weight):
            lines.append(f"{p:>12.3f}{t:>12.3f}{f'{low:.3f} to {high:.3f}':>20}{weight:>12g}")
        return "\n".join([*lines, f"calibration error {self.error:.4f}"])

    def plot(self, axes: Any = None, label: str = "") -> Any:
        """Draws the curve with its intervals beside the diagonal, on which it should lie; gives the axes."""
        axes = axes_or_new(axes, (4.4, 4.4))
        if not axes.lines:
            axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        reach = np.stack([self.outcome - self.low, self.high - self.outcome]).clip(min=0)
        name = f"{label + ': ' if label else ''}error {self.error:.3f}"
        axes.errorbar(self.probability, self.outcome, reach, marker="o", markersize=4, capsize=2, label=name)
        axes.set(xlabel="probability", ylabel="how often it came true", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        legend_below(axes)
        return axes


def reliability_curve(
    probabilities: Array,
    targets: Array,
    *,
    bins: int = 10,
    strategy: str = "uniform",
    confidence: float = 0.95,
    weights: Array | None = None,
    where: Array | None = None,
) -> ReliabilityCurve:
    """How often what was given a probability came true.

    Parameters
    ----------
    probabilities, targets, bins, strategy, weights, where
        As in `polyloss.calibration_error`.
    confidence : float, default 0.95
        Of the intervals, which are Wilson's, between 0 and 1. With weights they count as many items as weigh equally.

    Returns
    -------
    ReliabilityCurve
        ``print`` shows a table, ``plot`` a picture. A bin with a NaN in it is NaN.

    Raises
    ------
    TypeError, ValueError
        As `polyloss.calibration_error`.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Examples
    --------
    >>> import numpy as np
    >>> from polyloss.diagnostics import reliability_curve
    >>> print(reliability_curve(np.array([0.9, 0.9, 0.2, 0.2]), np.array([1, 0, 0, 0]), bins=2))
     probability   came true        95% interval      weight
           0.200       0.000      0.000 to 0.658           2
           0.900       0.500      0.095 to 0.905           2
    calibration error 0.3000
    """
    level = number("confidence", confidence, 0, 1, above=True)
    if level == 1:
        raise ValueError("confidence must be below 1: the interval would be all from 0 to 1")
    given = probabilities, targets, weights, where
    given = tuple(dispatch.detached(x) for x in given)
    call = Call(probabilities=given[0], targets=given[1], weights=given[2], where=given[3])
    with call.scope():
        found = Bins.of(call, given[0], given[1], bins, strategy, *given[2:])
    w, squares, p, t = (
        np.asarray(in_host_memory(x), np.float64)
        for x in (found.weight, found.squares, found.probability, found.outcome)
    )
    some = w != 0
    w, squares, p, t = w[some], squares[some], p[some] / w[some], t[some] / w[some]
    z, n = -NormalDist().inv_cdf((1 - level) / 2), w**2 / squares
    centre = (t + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * np.sqrt(t * (1 - t) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return ReliabilityCurve(p, t, np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1), w, level)


def fit_temperature(logits: Array, targets: Array, *, loss: Callable[..., Array] = softmax_cross_entropy) -> float:
    """The temperature T for which ``loss(logits / T, targets)`` is least.

    Divide the logits by it before the softmax or sigmoid. That changes no decision and no order, only how confident the
    probabilities are.

    Parameters
    ----------
    logits, targets : array
        Held-out ones, as the loss takes them. On the training set a model has been fitted already.
    loss
        `softmax_cross_entropy` (default), `sigmoid_cross_entropy`, or a `functools.partial` with their options.

    Returns
    -------
    float
        T, above 0.

    Raises
    ------
    ValueError
        If the loss has no minimum: the logits are right without exception, so that every lower temperature is better,
        or no better than none; or if it is not finite.
    TypeError
        If an argument has the wrong type.

    Notes
    -----
    The loss is convex in 1/T, and its derivative there is ``sum(gradient * logits)``; the root of that is bracketed and
    halved.

    References
    ----------
    C. Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> from polyloss.diagnostics import fit_temperature
    >>> logits, targets = np.array([8.0, 8.0, 8.0, 8.0]), np.array([1, 1, 1, 0])  # 0.9997 promised, 0.75 came true
    >>> temperature = fit_temperature(logits, targets, loss=polyloss.sigmoid_cross_entropy)
    >>> print(polyloss.sigmoid(logits / temperature).round(4)[0])
    0.75
    """
    both = value_and_grad(loss, "logits")
    call = Call(logits=logits)
    (x,) = call.floating(logits=dispatch.detached(logits))
    xp, total = call.xp, call.library.total
    finite = xp.where(xp.isfinite(x), x, xp.zeros_like(x))  # a probability of 0 stays one
    scale = float(xp.max(xp.reshape(xp.abs(finite), (-1,)), axis=-1)) if math.prod(x.shape) else 0.0
    finite, info = finite / (scale or 1.0), xp.finfo(x.dtype)

    def derivative(slope: float) -> float:
        """Of the loss in 1/T, in units of the scale; 0 where it is lost in rounding errors."""
        value, gradient = both(xp.where(xp.isfinite(x), finite * slope, x), targets)
        if slope == 0 and not math.isfinite(float(value)):
            raise ValueError(f"the loss of these logits is {float(value)} at every temperature")
        found, size = (float(total(y)) for y in (gradient * finite, xp.abs(gradient * finite)))
        return 0.0 if abs(found) <= 8 * float(info.eps) * size else found

    if derivative(0.0) >= 0:
        raise ValueError("no temperature is best: the logits are no better than none, so the higher the better")
    low = high = 1.0
    while derivative(high) <= 0:
        low, high = high, high * STRIDE
        if high > float(info.max) / STRIDE:
            raise ValueError(
                "no temperature is best: the logits are right without exception, so the lower the better; use "
                "held-out logits, and more of them"
            )
    while derivative(low) > 0:
        low, high = low / STRIDE, low
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if derivative(middle) < 0 else (low, middle)
    return scale / math.sqrt(low * high)
