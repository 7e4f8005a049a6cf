"""The smallest input on which something fails: hypothesis draws, and shrinks what it has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from polyloss.conformance.engine import Task

__all__ = ["examples", "smallest"]

PER_LIBRARY = {"numpy": 30, "torch": 15, "array_api_strict": 8, "dask": 4, "jax": 3, "cupy": 10}  # by what a call costs
FACTORS = {"quick": 0.2, "standard": 1.0, "thorough": 5.0}


def examples(task: Task) -> int:
    """How many draws a law, or a variant of a loss, gets."""
    return max(1, round(PER_LIBRARY.get(task.route.library, 8) * FACTORS[task.level]))


class _Failed(Exception):
    pass


def smallest(strategy: st.SearchStrategy[Any], holds: Callable[[Any], Any], examples: int, seed: int) -> Any:
    """The smallest draw for which ``holds`` is False or raises; None if none of so many is found."""
    last: list[Any] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=hypothesis.Verbosity.quiet,
    )
    @given(strategy)
    def run(drawn: Any) -> None:
        try:
            failed = holds(drawn) is False
        except Exception as error:
            last.append(drawn)
            raise _Failed from error
        if failed:
            last.append(drawn)
            raise _Failed

    try:
        run()
    except _Failed:
        return last[-1]
    except hypothesis.errors.Flaky:
        return last[-1]
    return None
