"""What a run of each level leaves to a more thorough one, and why.

On most routes a run asks everything. Where a call of a new shape takes a tenth of a second and more, because it is
compiled or cut into tasks, only a thorough run does; a table says what the others ask there.
"""

from __future__ import annotations

from polyloss.conformance.engine import Task
from polyloss.conformance.exact import LINES, ROWS
from polyloss.conformance.grid import VARIANTS

__all__ = ["ALL_ROWS", "LOSS_NAMES", "TRANSFORMS", "later"]

TRANSFORMS = (*LINES, *ROWS)
LOSS_NAMES = tuple(name for name in VARIANTS if name not in TRANSFORMS)
SLOWLY = "left to a longer run: a call takes long here"

QUICK = {
    ("dask", "kernel"): (
        *("accuracy", "mask", "reductions", "textbook", "invalid values", "derivatives"),
        *("options together", "any call"),
    ),
    ("dask", "generic"): ("accuracy", "invalid values"),
    ("jax", "kernel"): (
        *("accuracy", "limits", "mask", "autodiff", "16 bits", "derivatives", "masked queries", "invalid values"),
        *("batch axis", "rules of the kernels", "large programs", "invalid in programs", "loops of labels", "any call"),
    ),
    ("jax", "generic"): ("accuracy",),
    ("jax", "jit"): ("accuracy", "autodiff", "invalid values"),
    ("torch", "compiled"): ("accuracy", "autodiff", "compiled gradients"),
}
"""What a quick run asks where every shape is compiled anew, or every operation is a task; of all others, everything."""

STANDARD = {
    ("dask", "generic"): (*QUICK["dask", "generic"], "mask", "limits"),
    ("jax", "generic"): (*QUICK["jax", "generic"], "mask", "limits"),
    ("jax", "jit"): (*QUICK["jax", "jit"], "limits", "all numbers"),
    ("torch", "compiled"): QUICK["torch", "compiled"],
}
"""The same of a standard run; on other routes it asks everything. Agreement is asked where accuracy is."""

ELSEWHERE = {
    ("torch", "kernel"): ("large batch",),
    ("torch", "generic"): ("large batch", "all numbers"),
    ("array_api_strict", "generic"): ("again", "large batch", "reductions", "textbook", "threads"),
}
"""What a quick run leaves to NumPy, whose kernels and formula are the same."""

COMPILED = ("softmax_cross_entropy", "sigmoid_cross_entropy")
PART = {
    "derivatives": (*COMPILED, "contrastive"),
    "batch axis": COMPILED,
    "any call": (*COMPILED, "bpr"),
    "limits": ("sigmoid_cross_entropy", "contrastive"),
}
"""The functions of which a quick run asks these in JAX."""
SLOW = {"compiled gradients": ("contrastive",)}
"""The functions of which a quick run does not ask these of torch.compile, which others show as well."""
LOGARITHMS = ("sigmoid_cross_entropy", "binary_log_loss")
"""The functions that a quick run asks in JAX's float64, whose logarithms are others than those of float32."""

ALL_ROWS = ("mask", "reductions", "16 bits", "agreement in every parameter")
"""Laws that a standard run asks of all options of a loss, where a call takes long too."""


def later(task: Task, name: str) -> str:
    """Why a run leaves a cell to a more thorough one."""
    route = task.route
    if name == "agreement" and (route.path != "compiled" or task.level != "quick"):
        name = "accuracy"
    place = (route.library, route.path)
    if task.level == "quick" and name in ELSEWHERE.get(place, ()):
        return "left to a longer run: NumPy's is the same"
    if task.level == "thorough" or not route.compiles:
        return ""
    asked = QUICK if task.level == "quick" else STANDARD
    narrow = task.dtype == "float32" or name in ("derivatives", "derivatives in weights", "16 bits")
    if task.level == "standard":
        narrow = narrow or (name == "accuracy" and route.path != "compiled")
    elif name == "16 bits":
        narrow = task.dtype == "float16"
    elif place == ("jax", "generic"):
        narrow = task.dtype == "float32" or (task.dtype == "float64" and task.function in LOGARITHMS)
    few = True
    if route.path == "compiled":
        few = name == "compiled gradients" or task.function in COMPILED
        few = few or (task.level == "standard" and name == "accuracy")
        if task.level == "quick":
            few = few and task.function not in SLOW.get(name, ())
    elif task.level == "quick" and route.library == "jax":
        few = task.function in PART.get(name, (task.function,)) and (
            route.path == "jit" or task.function not in TRANSFORMS
        )
    return "" if name in asked.get(place, (name,)) and narrow and few else SLOWLY
