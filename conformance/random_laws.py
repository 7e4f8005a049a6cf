"""Calls drawn at random: shapes, layouts, dtypes and options meet as they happen to, in no table of ours.

Half of the losses are compared with `plain`, the others with NumPy's formula in float64. Each call comes three times,
with other numbers, where the second may be replayed and the third may take a shortcut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import polyloss
from polyloss.conformance import plain
from polyloss.conformance.budget import HALF
from polyloss.conformance.compare import compare, same
from polyloss.conformance.laws import LAYOUTS, law
from polyloss.conformance.routes import Route, rounded, to_numpy
from polyloss.conformance.subject import RESOLUTION, Draw, Subject

__all__: list[str] = []

CALLS = 10  # of one draw
ORDINALS = ("first", "second", "third")
SIZES = (1, 2, 3, 5, 8, 17, 32, 33, 40, 64, 100, 255, 257, 300, 513, 1025, 1100)
LARGEST = {1: 3, 2: 40, 3: 300, 6: 1100}  # by the size of the draw
ELEMENTS = 5000
LARGE_SIZES = (*SIZES[:8:2], 300, 4099, 17_001, 70_001)  # of the first call of a draw: what is large is done otherwise

Array = np.ndarray
Random = np.random.Generator


class Made(NamedTuple):
    """The arrays and options of a call."""

    arguments: dict[str, Array]  # as they are meant
    options: dict[str, Any]
    items: tuple[int, ...]  # the shape of the loss
    unread: dict[str, Callable[[Array], Array]]  # from the items that are kept to what nobody may read of an argument
    ignored: Array | bool = False


class Dice:
    """What decides on the form of a call: the same for all calls of that form."""

    def __init__(self, seed: tuple[int, ...], largest: int, large: bool) -> None:
        self.rng, self.room = np.random.default_rng(seed), 2 * LARGE_SIZES[-1] if large else ELEMENTS
        self.sizes = LARGE_SIZES if large else tuple(n for n in SIZES if n <= largest)
        self.usual = self.now(0.3)  # no weights, and arrays as most users have them

    def one(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def now(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def size(self, room: int) -> int:
        return int(self.one(*(n for n in self.sizes if n == 1 or n <= room)))

    def shape(self, axes: int, room: int) -> tuple[int, ...]:
        found: list[int] = []
        for _ in range(axes):
            found.append(self.size(room // int(np.prod(found, dtype=int))))
        return tuple(found)


def _softmax(dice: Dice, rng: Random) -> Made:
    k = dice.size(dice.room // 4)
    items = dice.shape(dice.one(1, 1, 2), dice.room // k)
    axis = dice.one(*range(len(items) + 1))
    options: dict[str, Any] = {} if axis == len(items) and dice.now(0.5) else {"axis": axis}
    shape = (*items[:axis], k, *items[axis:])
    keep = np.ones(shape, bool)
    if dice.now(0.3):
        kept = rng.random(k if (alone := dice.now(0.5)) else (*items, k)) < 0.7
        kept[..., 0] = True
        options["class_mask"] = kept if alone else np.moveaxis(kept, -1, axis)
        keep &= np.moveaxis(np.broadcast_to(kept, (*items, k)), -1, axis)
    ignored: Array | bool = False
    if dice.now(0.4):
        targets = rng.random(shape) * (rng.random(shape) < 0.7) / k * keep
    else:
        labels = rng.integers(k, size=items)
        labels = labels * np.take_along_axis(np.moveaxis(keep, axis, -1), labels[..., None], -1)[..., 0]
        dtype = (
            dice.one("int64", "int32", "int16", "int8", "uint8", "uint64") if k < 128 else dice.one("int64", "int32")
        )
        if dice.now(0.3):
            options["ignore_index"] = dice.one(0, k - 1) if dtype.startswith("u") else dice.one(-100, -1, 0)
            labels = np.where(rng.random(items) < 0.3, options["ignore_index"], labels)
            ignored = labels == options["ignore_index"]
        targets = labels.astype(dtype)
    if dice.now(0.3):
        options["class_weights"] = rng.random(k) * (rng.random(k) < 0.9)
    if dice.now(0.3):
        options["label_smoothing"] = dice.one(0.125, 0.5, 1.0)
    if dice.now(0.2):
        options["z_loss"] = dice.one(0.0625, 0.5)

    def unread(kept: Array) -> Array:
        return np.asarray(~(keep & np.expand_dims(kept, axis)))

    logits = dice.one(0.1, 1, 20) * rng.standard_normal(shape)
    if dice.now(0.2):
        logits = np.where(rng.random(shape) < 0.9, logits, -np.inf)
        np.moveaxis(logits, axis, -1)[..., 0] = 0.0
    found: dict[str, Callable[[Array], Array]] = {"logits": unread}
    if targets.shape == shape:
        found["targets"] = lambda kept: np.broadcast_to(~np.expand_dims(kept, axis), shape)
    return Made({"logits": logits, "targets": targets}, options, items, found, ignored)


def _sigmoid(dice: Dice, rng: Random) -> Made:
    items = dice.shape(dice.one(1, 2, 3), dice.room)
    options: dict[str, Any] = {}
    if dice.now(0.3):
        options["label_smoothing"] = dice.one(0.125, 1.0)
    if dice.now(0.3):
        options["pos_weight"] = 3 * rng.random(dice.one((), items[-1:], (*items[:-1], 1), items))
    targets = rng.random(items)
    if dice.now(0.5):
        targets = (targets < 0.5).astype(dice.one("bool", "int8", "int64", "uint8", "float64"))
    logits = dice.one(0.1, 1, 20) * rng.standard_normal(items)
    if dice.now(0.2):
        logits = np.where(rng.random(items) < 0.9, logits, np.copysign(np.inf, logits))
    unread: dict[str, Callable[[Array], Array]] = {"logits": np.invert, "targets": np.invert}
    if "pos_weight" in options:
        unread["pos_weight"] = _of_no_item(np.shape(options["pos_weight"]))
    return Made({"logits": logits, "targets": targets}, options, items, unread)


def _of_no_item(shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Where an array of that shape, which is broadcast to the items, is of none that is kept."""

    def unread(kept: Array) -> Array:
        places = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        return np.asarray(~np.isin(places, np.broadcast_to(places, kept.shape)[kept]))

    return unread


def _pairs(dice: Dice, rng: Random) -> Made:
    positives = dice.shape(dice.one(1, 2), dice.room // 8)
    items = (*positives, dice.size(dice.room // int(np.prod(positives)))) if dice.now(0.5) else positives
    scores = {"positive_scores": rng.standard_normal(positives), "negative_scores": rng.standard_normal(items)}
    return Made(scores, {}, items, {"negative_scores": np.invert})


def _hinge(dice: Dice, rng: Random) -> Made:
    made = _pairs(dice, rng)
    return made._replace(options={"margin": dice.one(1.0, 0.25, -0.5)})


def _contrastive(dice: Dice, rng: Random) -> Made:
    items = dice.shape(dice.one(1, 2), dice.room // 8)
    shape = (*items, dice.size(8))
    first, second = rng.standard_normal(shape), rng.standard_normal(shape)
    similar = rng.random(items) if dice.now(0.5) else rng.random(items) < 0.5
    options = {"margin": dice.one(1.0, 2.5)}
    return Made({"first": first, "second": second, "similar": similar}, options, items, {"first": _embedding(shape)})


def _embedding(shape: tuple[int, ...]) -> Callable[[Array], Array]:
    return lambda kept: np.broadcast_to(~kept[..., None], shape)


def _distances(dice: Dice, rng: Random) -> Made:
    items = dice.shape(dice.one(1, 2), dice.room)
    similar = rng.random(items) if dice.now(0.5) else (rng.random(items) < 0.5).astype(dice.one("bool", "uint8"))
    arguments = {"distances": 2 * rng.random(items), "similar": similar}
    return Made(arguments, {"margin": dice.one(1.0, 2.5)}, items, {"distances": np.invert})


def _info_nce(dice: Dice, rng: Random) -> Made:
    n, d = max(2, dice.size(40)), dice.size(16)
    arguments = {"queries": rng.standard_normal((n, d)), "positives": rng.standard_normal((n, d))}
    options: dict[str, Any] = {"similarity": dice.one("cosine", "dot"), "temperature": dice.one(0.25, 1.0)}
    if dice.now(0.3):
        options["temperature"] = np.asarray(options["temperature"])
    candidates = n
    if dice.now(0.5):
        m = dice.size(40)
        arguments["negatives"] = rng.standard_normal((m, d) if dice.now(0.5) else (n, m, d))
        options["in_batch"] = dice.now(0.5)
        candidates = m + (n if options["in_batch"] else 1)
    elif dice.now(0.4):
        options["symmetric"] = True
    if dice.now(0.3) and not options.get("symmetric"):
        options["candidate_mask"] = rng.random((n, candidates)) < 0.8
    return Made(arguments, options, (n,), {})


def _probabilities(dice: Dice, rng: Random) -> Made:
    items = dice.shape(dice.one(1, 2), dice.room)
    options = {"eps": 0.125} if dice.now(0.3) else {}
    targets = rng.random(items) if dice.now(0.5) else (rng.random(items) < 0.5).astype(dice.one("bool", "int8"))
    p = rng.uniform(0.05, 0.95, items)
    return Made({"probabilities": p, "targets": targets}, options, items, {"probabilities": np.invert})


def _distributions(dice: Dice, rng: Random) -> Made:
    k = dice.size(dice.room // 4)
    items = dice.shape(dice.one(1, 2), dice.room // k)
    axis = dice.one(*range(len(items) + 1))
    p = rng.uniform(0.05, 1, (*items, k))
    p = np.moveaxis(p / np.sum(p, axis=-1, keepdims=True), -1, axis)
    targets = np.asarray(p[::-1]) if dice.now(0.5) and axis else rng.integers(k, size=items)
    return Made({"probabilities": p, "targets": targets}, {"axis": axis}, items, {})


DRAWS: dict[str, Callable[[Dice, Random], Made]] = {
    "softmax_cross_entropy": _softmax,
    "sigmoid_cross_entropy": _sigmoid,
    "bpr": _pairs,
    "pairwise_hinge": _hinge,
    "contrastive": _contrastive,
    "contrastive_from_distance": _distances,
    "info_nce": _info_nce,
    "binary_log_loss": _probabilities,
    "log_loss": _distributions,
}
SECOND = ("targets", "similar", "weights", "pos_weight", "class_weights")
"""Floating arrays whose dtype decides nothing."""


def _weigh(made: Made, dice: Dice, rng: Random) -> dict[str, Any]:
    """The options of a reduction."""
    items = made.items
    shapes = ((), items, items[:1], (1,) * len(items), (*items[:-1], 1), (1, *items[1:]))
    options: dict[str, Any] = {"reduction": dice.one("mean", "sum", "none")}
    if dice.now(0.5) and not dice.usual:
        weights = rng.random(shape := dice.one(*shapes)) * 2
        finite = all(np.all(np.isfinite(x)) for x in made.arguments.values())  # 0 times infinity is not asked
        options["weights"] = np.asarray(np.where(rng.random(shape) < 0.9, weights, 0.0 if finite else 1.0))
    if dice.now(0.5) and not dice.usual:
        options["where"] = np.asarray(rng.random(dice.one(*shapes)) < 0.8)
    if options["reduction"] == "mean" and dice.now(0.2):
        options["denominator"] = dice.one(3.0, -2.5, np.asarray(7.0))
    return options


def _elsewhere(route: Route, dtype: str, function: str) -> str:
    if route.path in ("compiled", "jit"):
        return "a compiled call is asked for its accuracy, limits, gradients and agreement"
    if dtype in HALF and function in ("info_nce", "log_loss"):
        return "products of 16 bits are the platform's, and probabilities of 16 bits sum to 1 in laws of their own"
    return ""


@law("any call", _elsewhere, functions=tuple(DRAWS))
def any_call(subject: Subject, draw: Draw) -> None:
    """A call drawn at random gives what plain arithmetic in float64 does, and again with other numbers."""
    largest = next((size for n, size in LARGEST.items() if draw.n <= n), SIZES[-1])
    route = subject.route
    times = 1 if route.path == "generic" or route.library == "dask" else 2 if route.library == "jax" else 3
    for i in range(CALLS // 2 if route.compiles else CALLS):
        found = []
        for time in range(times):
            dice = Dice((draw.seed, i), largest, i == 0)
            rng = np.random.default_rng((draw.seed, i, time))
            found += [(x, to_numpy(x).copy()) for x in _asked(subject, dice, rng, f"the {ORDINALS[time]} time")]
        for x, before in found:
            same(x, before, "what a call gave, after later ones")


def _asked(subject: Subject, dice: Dice, rng: Random, what: str) -> list[Any]:
    """Value and gradients of one call, which are what they should be."""
    route, loss = subject.route, subject.row.loss
    made = DRAWS[loss.__name__](dice, rng)
    weighing = _weigh(made, dice, rng)
    meant = made.arguments | made.options | weighing
    kinds = {key: _kind(subject, key, dice) for key in meant}
    meant = {key: rounded(x, kinds[key]) if isinstance(x, np.ndarray) else x for key, x in meant.items()}
    keep = plain.leading(meant.get("where", True), made.items) & ~np.asarray(made.ignored)
    names = subject.row.floating(made.arguments)
    wrt = names[:1] if dice.now(0.5) else dice.one(names, names[-1:])
    value, gradients = _expected(subject, made, meant, keep, wrt)
    asked = dict(meant)
    if dice.now(0.5):
        for key, unread in made.unread.items():
            if _floats(asked[key]):
                asked[key] = np.asarray(np.where(unread(keep), np.nan, asked[key]), asked[key].dtype)
        if np.shape(asked.get("weights", 0.0)) == made.items:
            asked["weights"] = np.where(keep, asked["weights"], np.nan)
    subject.last.clear()
    subject.last.update(asked)
    given = {key: _placed(route, x, kinds[key], dice) for key, x in asked.items()}
    parameters = inspect.signature(loss).parameters
    placed = [name for name in made.arguments if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    args = [given.pop(name) for name in placed] if dice.usual or dice.now(0.5) else []  # the calls that are replayed
    got, found = polyloss.value_and_grad(loss, wrt)(*args, **given)
    wide = "float64" if subject.dtype == "float64" else "float32"
    _close(got, value, f"the value {what}", wide, wide)
    for key, gradient in zip(wrt, found):
        _close(gradient, gradients[key], f"the gradient in {key} {what}", wide, kinds[key])
    if dice.now(0.5):
        _close(loss(*args, **given), value, f"the value alone {what}", wide, wide)
    results = [got, *found]
    if route.autodiff and dice.now(0.7):
        way = dice.one(*{"torch": ("backward", "twice"), "jax": ("vjp",)}.get(route.library, route.autodiff))
        by_name = dict(zip(placed, args)) | given
        key = wrt[0] if dice.usual else dice.one(*(key for key in gradients if _floats(meant.get(key))))

        def of(x: Any) -> Any:
            if key in placed and args:
                return loss(*(x if name == key else by_name[name] for name in placed), **given)
            return loss(*args, **given | {key: x})

        result, gradient = route.pulled(way, of, by_name[key])
        _close(result, value, f"{way}'s value {what}", wide, wide)
        _close(gradient, gradients[key], f"{way}'s gradient in {key} {what}", wide, kinds[key])
        results += [result, gradient]
    return results


def _kind(subject: Subject, key: str, dice: Dice) -> str:
    return str(dice.one("float32", "float64")) if dice.now(0.3) and key in SECOND and not dice.usual else subject.dtype


def _expected(
    subject: Subject, made: Made, meant: dict[str, Any], keep: Array, wrt: tuple[str, ...]
) -> tuple[Any, dict[str, Any]]:
    exact = {key: x.astype(np.float64) if _floats(x) else x for key, x in meant.items()}
    name = subject.row.loss.__name__
    if name not in plain.LOSSES:
        with Route("numpy", "generic").inside():
            value, gradients = polyloss.value_and_grad(subject.row.loss, wrt)(**exact)
        return value, dict(zip(wrt, gradients))
    reduction = {key: exact[key] for key in ("weights", "reduction", "denominator") if key in exact}
    own = {key: exact[key] for key in (*made.arguments, *made.options) if key != "ignore_index"}
    with np.errstate(invalid="ignore"):  # of infinite logits
        return plain.reduced(plain.LOSSES[name](**own), where=keep, **reduction)


def _floats(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _placed(route: Route, x: Any, kind: str, dice: Dice) -> Any:
    """An array of the route, in some layout."""

    def place(x: Array) -> Any:
        return route.array(np.ascontiguousarray(x) if x.ndim else x, kind)

    layouts = dict(LAYOUTS)
    if route.library == "torch":  # which has no negative strides
        layouts = {name: change for name, change in LAYOUTS.items() if not name.startswith("reversed")}
        layouts["negative view"] = lambda place, x: place(-x)._neg_view() if _floats(x) else place(x)
    change = dice.one(*layouts.values())
    if not isinstance(x, np.ndarray):
        return x
    movable = x.ndim > 0 and not dice.usual and route.library in ("numpy", "torch", "cupy")
    return change(place, x) if dice.now(0.4) and movable else place(x)


def _close(got: Any, expected: Any, what: str, computed: str, stored: str) -> None:
    """Equal to the rounding of the dtype in which it was computed, and of that in which it comes."""
    exact = np.abs(np.asarray(expected, np.float64))
    size = np.max(exact, where=np.isfinite(exact), initial=1e-3)  # near 0 a margin less a distance has no digits
    allowed = RESOLUTION[computed] * (exact + 10 * size) + 2.0**-44  # what plain arithmetic loses of logits below 100
    if stored in HALF:
        bits, step, _ = HALF[stored]
        allowed = allowed + (exact + step) * 2.0**-bits
    elif stored != computed:
        allowed = allowed + exact * np.finfo(stored).eps
    compare(to_numpy(got).astype(np.float64), expected, what.strip(), computed, allowed, size)
