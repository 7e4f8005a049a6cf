"""Why a loss and a metric part ways: what a change of the loss was made of, calibration, and who gets the gradient.

`explain_change` splits the change of a loss; `reliability_curve` and `fit_temperature` look after probabilities;
`negative_shares` and `active_pairs` show which negatives and pairs a loss still learns from. The results are plain
fields that print as a table or draw themselves; for `plot` there is the extra ``plot`` (matplotlib). Diagnostics look
at values: arrays are copied to host memory, and nothing here runs under a trace.
"""

from polyloss.diagnostics.change import Change, Part, explain_change
from polyloss.diagnostics.reliability import ReliabilityCurve, fit_temperature, reliability_curve
from polyloss.diagnostics.shares import ActivePairs, NegativeShares, active_pairs, negative_shares

__all__ = [
    "ActivePairs",
    "Change",
    "NegativeShares",
    "Part",
    "ReliabilityCurve",
    "active_pairs",
    "explain_change",
    "fit_temperature",
    "negative_shares",
    "reliability_curve",
]
