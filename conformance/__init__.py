"""Does every backend agree? Oracles, budgets, hard cases, laws and routes, for any array library.

`oracle` knows the textbook's formulas, `budget` how far from them a result may be, `exact` puts both together for a
call. `grid`, `limits` and `exhaustive` hold the hard inputs, `losses` the table from which every law makes its own,
`routes` the ways to a value and a gradient, `accuracy`, `agreement` and `laws` what is asked. `engine` runs checks in
cells and makes the `Report`: from Python (`check`), from the command ``polyloss conformance``, and cell by cell in
``pytest conformance``. It uses the public API, but for a few laws of the rules by which torch and JAX differentiate
kernels, and imports no framework by itself.

A library of someone else is checked like ours, once a `polyloss.backends.Library` for it is published under the entry
point group ``polyloss.backends``, whose name is the module of the library's arrays. What is asked of it:

- `Library.from_numpy` makes its arrays, on each device that ``__array_namespace_info__().devices()`` names, and
  `Library.to_numpy` reads them. A dtype that its namespace lacks is not applicable.
- Every loss and transform gives an array of the library, on the device of its inputs, which are as they were.
- Values and the gradients of `polyloss.value_and_grad` are within the budget around the oracle, in float32, float64 and
  the 16-bit dtypes that it has, on the hard cases too. A budget belongs to a loss and a dtype; none is the library's.
- The laws hold: of masks, weights and reductions, of limits and of what is invalid, and the same bits on every run.
- It agrees with each of NumPy, torch, Dask and JAX where they are installed; with kernels, where `Library.stored` gives
  them its memory, and without.

``tests/third_party`` in the repository is an example, small and complete.
"""

from polyloss.conformance.engine import cells, check
from polyloss.conformance.limits import LIMITS
from polyloss.conformance.report import Cell, Failure, Report
from polyloss.conformance.reproduce import obey, reproduce

__all__ = ["LIMITS", "Cell", "Failure", "Report", "cells", "check", "obey", "reproduce"]
