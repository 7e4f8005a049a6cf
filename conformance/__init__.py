"""Does every backend agree? Oracles, budgets, hard cases, laws and routes, for any array library.

`oracle` knows the textbook's formulas, `budget` how far from them a result may be, `accuracy` the hard cases, `losses`
the table from which every law makes its inputs, `routes` the ways to a value and a gradient. The tests beside them run
it all: ``pytest conformance``. It uses the public API alone, and imports no framework by itself.
"""
