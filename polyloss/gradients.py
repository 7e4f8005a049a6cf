"""value_and_grad and grad: gradients in every array library, by the losses' own formulas."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from polyloss import dispatch
from polyloss.backends import Array
from polyloss.docstrings import complete
from polyloss.reduction import Loss
from polyloss.replay import Replays

__all__ = ["differentiable", "formula_of", "grad", "value_and_grad"]

P = ParamSpec("P")

_FORMULAS: dict[Any, tuple[Callable[..., Loss], tuple[str, ...]]] = {}


def differentiable(*parameters: str) -> Callable[[Callable[P, Loss]], Callable[P, Array]]:
    """Turns a formula into a public loss that returns its value.

    The formula returns a `Loss`, which holds the gradients as well; ``parameters`` names those it can be differentiated
    in. The public function keeps the formula's name, signature and docstring.
    """

    def mark(formula: Callable[P, Loss]) -> Callable[P, Array]:
        def once(*args: Any, **kwargs: Any) -> tuple[Loss, Array, None]:
            with dispatch.scope(*args, *kwargs.values()):
                call = formula(*args, **kwargs)
                return call, call.value(), None

        replays = Replays(once, formula)

        @functools.wraps(formula)
        def loss(*args: P.args, **kwargs: P.kwargs) -> Array:
            return once(*args, **kwargs)[1] if dispatch.is_traced() else replays.call(args, kwargs)

        loss.__signature__ = inspect.signature(formula).replace(return_annotation="Array")  # type: ignore[attr-defined]
        _FORMULAS[loss] = formula, parameters
        return complete(loss)

    return mark


def value_and_grad(loss: Callable[..., Array], wrt: str | tuple[str, ...] | None = None) -> Callable[..., Any]:
    """A function that computes a loss and its gradient.

    The gradient comes from the loss's own formula, so it exists in every array library, NumPy and CuPy included, and
    needs no autodiff. Value and gradient are detached: to differentiate further in torch or JAX, use their own
    transformations, which work on every loss.

    Parameters
    ----------
    loss
        A loss of polyloss, or a `functools.partial` of one.
    wrt
        The parameter, or the tuple of parameters, to differentiate in. Default: the first one.

    Returns
    -------
    Callable
        It takes the arguments of the loss and returns ``(value, gradient)``; for a tuple of names the gradient is a
        tuple. A gradient has the shape and dtype of its parameter. With ``reduction="none"`` it is the gradient of the
        sum of the items.

    Raises
    ------
    TypeError
        If ``loss`` is no loss of polyloss.
    ValueError
        If a name in ``wrt`` is no differentiable parameter of the loss, or no floating array in the call.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> value, gradient = polyloss.value_and_grad(polyloss.bpr)(np.array([2.0, 0.0]), np.array([0.0, 0.0]))
    >>> print(f"{value:.6f}", gradient.round(6))
    0.410038 [-0.059601 -0.25    ]
    """
    formula, parameters, given, preset = _formula(loss)
    if not (wrt is None or isinstance(wrt, str) or (isinstance(wrt, (tuple, list)) and len(wrt))):
        raise TypeError(f"wrt must be the name of a parameter or a tuple of names, got {wrt!r}")
    single = wrt is None or isinstance(wrt, str)
    names = (parameters[0],) if wrt is None else (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in names:
        if name not in parameters:
            raise ValueError(f"wrt must name parameters among {_quoted(parameters)}, got {name!r}")

    once, replays = _with_gradients(formula, parameters, names)

    def compute(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        args = tuple(map(dispatch.detached, (*given, *args)))
        kwargs = {name: dispatch.detached(x) for name, x in (preset | kwargs).items()} if preset or kwargs else kwargs
        value, found = once(*args, **kwargs)[1] if dispatch.is_traced() else replays.call(args, kwargs)
        return value, found[0] if single else found

    return compute


def grad(loss: Callable[..., Array], wrt: str | tuple[str, ...] | None = None) -> Callable[..., Any]:
    """A function that computes the gradient of a loss: `value_and_grad` without the value.

    Parameters
    ----------
    loss
        A loss of polyloss, or a `functools.partial` of one.
    wrt
        The parameter, or the tuple of parameters, to differentiate in. Default: the first one.

    Returns
    -------
    Callable
        It takes the arguments of the loss and returns the gradient, or a tuple of them.

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`.

    Examples
    --------
    >>> import numpy as np, polyloss
    >>> polyloss.grad(polyloss.pairwise_hinge)(np.array([3.0, 0.5]), np.array([1.0, 1.0]))
    array([ 0. , -0.5])
    """
    both = value_and_grad(loss, wrt)

    def compute(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return compute


def formula_of(loss: Callable[..., Array]) -> Callable[..., Loss]:
    """The formula behind a public loss: it takes the loss's arguments, and yields what is not computed yet."""
    return _formula(loss)[0]


def _formula(
    loss: Callable[..., Array],
) -> tuple[Callable[..., Loss], tuple[str, ...], tuple[Any, ...], dict[str, Any]]:
    """The formula behind a public loss and its differentiable parameters, and what a partial application has given."""
    if isinstance(loss, functools.partial):
        formula, parameters, given, preset = _formula(loss.func)
        return formula, parameters, given + loss.args, preset | loss.keywords
    try:
        formula, parameters = _FORMULAS[loss]
    except (KeyError, TypeError):
        raise TypeError(f"loss must be a loss of polyloss or a functools.partial of one, got {loss!r}") from None
    return formula, parameters, (), {}


@functools.cache
def _with_gradients(
    formula: Callable[..., Loss], parameters: tuple[str, ...], names: tuple[str, ...]
) -> tuple[Callable[..., Any], Replays]:
    """A formula's call for its value and gradients, and its replays, whoever makes it."""

    def once(*args: Any, **kwargs: Any) -> tuple[Loss, tuple[Array, Any], tuple[Array, ...]]:
        with dispatch.scope(*args, *kwargs.values()):
            call = formula(*args, **kwargs)
            for name in names:
                if name not in call.floating:
                    raise ValueError(
                        f"wrt: {name!r} is not a floating array in this call; "
                        f"differentiable here: {_quoted(n for n in parameters if n in call.floating)}"
                    )
            value, found = call.value_and_gradients(names)
            return call, (value, found), found

    return once, Replays(once, formula)


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
