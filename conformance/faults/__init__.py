"""Faults to plant, one at a time, to see whether conformance catches them; `selftest` plants them.

The list was fixed before the checks were written, by somebody who did not know them, and no check is made for a fault
of it. It holds what programmers, compilers and platforms do get wrong: a formula that cancels, a factor that is missing
in a gradient, a mask that comes too late, an offset that overflows, a lane that is skipped. `SURVIVORS` of each file,
and `hunted` came later: faults that no check saw, until one was made.
"""

from polyloss.conformance.faults import formulas, hunted, kernels, rules
from polyloss.conformance.faults.fault import Fault

__all__ = ["FAULTS", "Fault"]

FAULTS = formulas.FAULTS + rules.FAULTS + kernels.FAULTS + hunted.FAULTS
