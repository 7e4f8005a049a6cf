"""The table of equivalents: calls of other libraries, and the polyloss calls that equal them.

Every row is a function that draws one random case of both calls. `TABLE` has them by the text of README's table, so
that no row of either is without the other. `test_other_libraries` goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

import polyloss

REDUCTIONS = ("mean", "sum", "none")

Array = Any


@dataclass(frozen=True)
class Draw:
    """A source of random inputs; `to` makes a NumPy array one of the library under test."""

    rng: np.random.Generator
    dtype: str
    to: Callable[[np.ndarray], Array]
    reductions: tuple[str, ...] = REDUCTIONS

    def one_of(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Small, ordinary or large numbers."""
        return np.asarray(self.rng.standard_normal(shape) * self.one_of(0.01, 1.0, 20.0), self.dtype)

    def uniform(self, shape: tuple[int, ...], low: float = 0.5, high: float = 2.0) -> np.ndarray:
        return np.asarray(self.rng.uniform(low, high, shape), self.dtype)

    def fractions(self, shape: tuple[int, ...]) -> np.ndarray:
        """Targets in [0, 1], both ends included."""
        return np.clip(self.uniform(shape, -0.5, 1.5), 0, 1)

    def maybe(self, x: np.ndarray) -> Array | None:
        return self.one_of(None, self.to(x))


@dataclass(frozen=True)
class Pair:
    """Two calls whose values agree, and their gradients in `inputs`."""

    inputs: dict[str, np.ndarray]  # by our parameter names, in the order of theirs
    theirs: Callable[..., Array]
    ours: Callable[..., Array]  # a loss, or a partial of one: else it has no gradient but the library's own
    scale: float  # the largest number that theirs adds or subtracts
    names: dict[str, Any]  # of what README's two cells call by name, beside the inputs
    factor: float = 1.0  # theirs is this times ours
    others: dict[str, np.ndarray] = field(default_factory=dict)  # more arguments of both, so that they can be traced
    key: tuple[Any, ...] = ()  # what the two calls depend on beside the arrays' numbers: JAX compiles once for each

    def ours_in_order(self, *arrays: Array) -> Array:
        return self.factor * self.ours(**dict(zip((*self.inputs, *self.others), arrays, strict=True)))


# Differentiating.


def modules(*names: str) -> Any:
    return [pytest.importorskip(name) for name in names]


def by_torch(loss: Callable[..., Any], arrays: dict[str, Array]) -> tuple[Array, list[Array]]:
    """The value, and by backward() half the gradients: a cotangent of 1 would not show that it is multiplied by."""
    leaves = [x.clone().requires_grad_() for x in arrays.values()]
    value = loss(*leaves)
    value.sum().mul(0.5).backward()
    return value.detach(), [x.grad for x in leaves]


def by_jax(loss: Callable[..., Any], arrays: Sequence[Array], wanted: int = 1) -> tuple[Array, tuple[Array, ...]]:
    """Likewise by jax.grad, in the first `wanted` arrays."""
    (jax,) = modules("jax")
    gradients = jax.grad(lambda *xs: 0.5 * loss(*xs).sum(), tuple(range(wanted)))(*arrays)
    return loss(*arrays), gradients


# Of torch.


def cross_entropy_of_labels(draw: Draw, torch: Any) -> Pair:
    k = draw.one_of(2, 3, 10, 200)
    items = (draw.one_of(1, 2, 5), *draw.one_of((), (3,), (2, 2)))
    x, c = draw.normal((items[0], k, *items[1:])), draw.uniform((k,))
    c[0] = draw.one_of(0, 1)
    ignored = draw.one_of(-100, -1, 0)
    y = np.where(draw.rng.random(items) < 0.3, ignored, draw.rng.integers(k, size=items))
    y.flat[0] = k - 1  # never ignored, never of weight 0
    weight, reduction = draw.maybe(c), draw.one_of(*draw.reductions)
    options = {"label_smoothing": draw.one_of(0.0, 0.1, 1.0), "ignore_index": ignored, "reduction": reduction}
    total = np.sum(c[y[y != ignored]]) if weight is not None else np.sum(y != ignored)
    scale = 2 * (1 + np.ptp(x)) * {"mean": y.size / total, "sum": y.size, "none": 1}[reduction]
    theirs = partial(torch.nn.functional.cross_entropy, target=draw.to(y), weight=weight, **options)
    ours = partial(polyloss.softmax_cross_entropy, targets=draw.to(y), axis=1, class_weights=weight, **options)
    names = {"x": x, "y": draw.to(y), "c": weight, "i": ignored, "e": options["label_smoothing"]}
    return Pair({"logits": x}, theirs, ours, scale, names)


def cross_entropy_of_soft_targets(draw: Draw, torch: Any) -> Pair:
    k = draw.one_of(1, 2, 3, 10, 200)
    shape = (draw.one_of(1, 2, 5), k, *draw.one_of((), (3,), (2, 2)))
    x, t, weight = draw.normal(shape), draw.fractions(shape), draw.maybe(draw.uniform((k,)))
    options = {"label_smoothing": draw.one_of(0.0, 0.1), "reduction": draw.one_of(*draw.reductions)}
    rows = {"denominator": x.size / k} if options["reduction"] == "mean" else {}
    theirs = partial(torch.nn.functional.cross_entropy, weight=weight, **options)
    ours = partial(polyloss.softmax_cross_entropy, axis=1, class_weights=weight, **options, **rows)
    scale = 2 * (1 + np.ptp(x)) * (1 + t.sum(axis=1).max()) * (x.size / k if options["reduction"] == "sum" else 1)
    names = {"x": x, "t": t, "c": weight, "e": options["label_smoothing"]}
    return Pair({"logits": x, "targets": t}, theirs, ours, scale, names)


def binary_cross_entropy_with_logits(draw: Draw, torch: Any) -> Pair:
    shape = draw.one_of((), (7,), (4, 3), (2, 3, 5))
    x, t, p = draw.normal(shape), draw.fractions(shape), draw.maybe(draw.uniform(shape[-1:]))
    w = draw.maybe(draw.uniform(draw.one_of(shape, (*shape[:1], *[1] * len(shape[1:]))), 0.0))
    options = {"pos_weight": p, "reduction": draw.one_of(*draw.reductions)}
    every = {"denominator": x.size} if options["reduction"] == "mean" else {}
    theirs = partial(torch.nn.functional.binary_cross_entropy_with_logits, weight=w, **options)
    ours = partial(polyloss.sigmoid_cross_entropy, weights=w, **options, **every)
    scale = 4 * (1 + np.max(np.abs(x))) * (x.size if options["reduction"] == "sum" else 1)  # either weight is at most 2
    return Pair({"logits": x, "targets": t}, theirs, ours, scale, {"x": x, "t": t, "w": w, "p": p})


def binary_cross_entropy(draw: Draw, torch: Any) -> Pair:
    """Theirs of probabilities, inside (0, 1): it takes 100 for an infinite logarithm."""
    shape = draw.one_of((), (7,), (4, 3))
    p, t, w = draw.uniform(shape, 0.05, 0.95), draw.fractions(shape), draw.maybe(draw.uniform(shape))
    reduction = draw.one_of(*draw.reductions)
    every = {"denominator": p.size} if reduction == "mean" else {}
    theirs = partial(torch.nn.functional.binary_cross_entropy, weight=w, reduction=reduction)
    ours = partial(polyloss.binary_log_loss, weights=w, reduction=reduction, **every)
    scale = 2 / 0.05 * (p.size if reduction == "sum" else 1)
    return Pair({"probabilities": p, "targets": t}, theirs, ours, scale, {"p": p, "t": t, "w": w})


def nll_loss(draw: Draw, torch: Any) -> Pair:
    n, k, reduction = draw.one_of(1, 5, 40), draw.one_of(2, 3, 10), draw.one_of(*draw.reductions)
    p, y, c = draw.uniform((n, k), 0.05, 1.0), draw.to(draw.rng.integers(k, size=n)), draw.to(draw.uniform((k,)))
    p /= p.sum(axis=1, keepdims=True)
    ours = partial(polyloss.log_loss, targets=y, weights=c[y], reduction=reduction)
    scale = 4 / p.min() * (n if reduction == "sum" else 1)
    log_likelihood = partial(torch.nn.functional.nll_loss, target=y, weight=c, reduction=reduction)
    return Pair({"probabilities": p}, lambda p: log_likelihood(p.log()), ours, scale, {"p": p, "y": y, "c": c})


def margin_ranking_loss(draw: Draw, torch: Any) -> Pair:
    shape = draw.one_of((), (6,), (4, 3))
    a, b = draw.normal(shape), draw.normal(shape)
    options = {"margin": draw.one_of(0.0, 0.3, 1.0, 10.0), "reduction": draw.one_of(*draw.reductions)}
    theirs = partial(torch.nn.functional.margin_ranking_loss, target=draw.to(np.ones_like(a)), **options)
    ours = partial(polyloss.pairwise_hinge, **options)
    scale = a.size * (options["margin"] + np.max(np.abs(a)) + np.max(np.abs(b)))
    names = {"a": a, "b": b, "m": options["margin"], "ones": np.ones_like(a)}
    return Pair({"positive_scores": a, "negative_scores": b}, theirs, ours, scale, names)


def logsigmoid(draw: Draw, torch: Any) -> Pair:
    """Rendle 2009, BPR-Opt."""
    shape = draw.one_of((), (6,), (4, 3))
    a, b, reduction = draw.normal(shape), draw.normal(shape), draw.one_of(*draw.reductions)

    def theirs(a: Array, b: Array) -> Array:
        items = -torch.nn.functional.logsigmoid(a - b)
        return items if reduction == "none" else getattr(items, reduction)()

    scale = a.size * (1 + np.max(np.abs(a)) + np.max(np.abs(b)))
    ours = partial(polyloss.bpr, reduction=reduction)
    return Pair({"positive_scores": a, "negative_scores": b}, theirs, ours, scale, {"a": a, "b": b})


def token_mean_over_micro_batches(draw: Draw, torch: Any) -> Pair:
    """Liger's mean, and transformers' fixed_cross_entropy with num_items_in_batch, over one batch that is not split."""
    x, y = draw.normal((12, 50)), draw.rng.integers(50, size=12)
    y[draw.rng.random(12) < 0.3] = -100
    y[:3], y[-1] = -100, 7  # the first micro-batch has nothing to average
    labels, count, sizes = draw.to(y), int(np.sum(y != -100)), (3, 2, 7)

    def ours(logits: Array) -> Array:
        loss = partial(polyloss.softmax_cross_entropy, ignore_index=-100, denominator=count)
        return sum(loss(x, y) for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True))

    batches = list(zip(draw.to(x).split(sizes), labels.split(sizes), strict=True))
    theirs = partial(torch.nn.functional.cross_entropy, target=labels)
    return Pair({"logits": x}, theirs, ours, 2 * (1 + np.ptp(x)), {"batches": batches, "num_items": count})


# Of embeddings, by their published formulas in torch.


def multiple_negatives_ranking_loss(draw: Draw, torch: Any) -> Pair:
    """sentence-transformers, losses/MultipleNegativesRankingLoss.py: cross entropy of scale * cos_sim(a, [p; n])."""
    n, m, d = draw.one_of(2, 3, 8), draw.one_of(0, 1, 8), draw.one_of(2, 5, 32)
    inputs = {"queries": draw.normal((n, d)), "positives": draw.normal((n, d)), "negatives": draw.normal((m, d))}
    if not m:
        del inputs["negatives"]
    ours = partial(polyloss.info_nce, temperature=1 / 20, in_batch=True)
    names = dict(zip("qpn", inputs.values())) if m else {"q": inputs["queries"], "p": inputs["positives"], "n": None}
    scale = _scale_of_cosines(inputs, 20)
    return Pair(inputs, lambda a, *b: ranking_of_cosines(torch, a, torch.cat(b)), ours, scale, names)


def ranking_of_cosines(torch: Any, anchors: Array, candidates: Array) -> Array:
    normalize, cross_entropy = torch.nn.functional.normalize, torch.nn.functional.cross_entropy
    return cross_entropy(20 * normalize(anchors, dim=-1) @ normalize(candidates, dim=-1).T, torch.arange(len(anchors)))


def clip_loss(draw: Draw, torch: Any) -> Pair:
    n, d, t = draw.one_of(2, 3, 8), draw.one_of(2, 5, 32), draw.uniform((), 0.05, 1.0)
    inputs = {"queries": draw.normal((n, d)), "positives": draw.normal((n, d)), "temperature": t}
    ours = partial(polyloss.info_nce, symmetric=True)
    names = dict(zip(("images", "texts", "t"), inputs.values()))
    return Pair(inputs, partial(clip, torch), ours, _scale_of_cosines(inputs, 1 / float(t)), names)


def clip(torch: Any, images: Array, texts: Array, temperature: Array) -> Array:
    """open_clip, loss.py: ClipLoss, with features normalized as in model.py; its logit_scale is 1 / temperature."""
    images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    logits, labels = images @ texts.T / temperature, torch.arange(len(images))
    cross_entropy = torch.nn.CrossEntropyLoss()
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def _scale_of_cosines(inputs: dict[str, np.ndarray], scale: float) -> float:
    """Of scores, and of their derivatives in an embedding (one over its norm) and in a temperature (scale^2)."""
    return max(scale, scale**2) * max(1.0, *(1 / np.linalg.norm(x, axis=-1).min() for x in inputs.values() if x.ndim))


def hadsell(draw: Draw, torch: Any) -> Pair:
    """Hadsell, Chopra & LeCun 2006, eq. 4; their Y is 1 for a dissimilar pair."""
    shape, m, reduction = (
        draw.one_of((3,), (4, 2), (5, 16), (2, 3, 4)),
        draw.one_of(0.5, 1.0, 8.0),
        draw.one_of(*draw.reductions),
    )
    a, b, y = draw.normal(shape), draw.normal(shape), draw.rng.integers(2, size=shape[:-1])

    def theirs(a: Array, b: Array) -> Array:
        d, dissimilar = (a - b).square().sum(-1).sqrt(), draw.to(y)
        items = (1 - dissimilar) * d**2 / 2 + dissimilar * (m - d).clamp_min(0) ** 2 / 2
        return items if reduction == "none" else getattr(items, reduction)()

    ours = partial(polyloss.contrastive, similar=draw.to(1 - y), margin=m, reduction=reduction)
    scale = m + np.size(y) * m**2 + np.sum((a - b) ** 2)
    return Pair({"first": a, "second": b}, theirs, ours, scale, {"a": a, "b": b, "y": draw.to(y), "m": m}, factor=0.5)


# Of optax. Few shapes, because JAX compiles for each.


def _optax_rows(draw: Draw) -> tuple[np.ndarray, np.ndarray, int, dict[str, np.ndarray]]:
    """Logits, labels, their axis, and a mask that keeps the labels."""
    shape, axis, masked = draw.one_of(((4, 200), -1, False), ((2, 5, 3), 1, True))
    x, y = draw.normal(shape), draw.rng.integers(shape[axis], size=np.delete(shape, axis))
    is_label = np.moveaxis(np.arange(shape[axis]) == y[..., None], -1, axis)
    keep = is_label | (draw.rng.random(shape) < 0.6)
    return x, y, axis, {"class_mask": keep} if masked else {}


def optax_labels(draw: Draw, optax: Any) -> Pair:
    x, y, axis, mask = _optax_rows(draw)

    def theirs(x: Array, y: Array, where: Array | None = None) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(x, y, axis=axis, where=where)

    ours = partial(polyloss.softmax_cross_entropy, axis=axis, reduction="none")
    names = {"x": x, "y": y, "k": axis, "mask": mask.get("class_mask")}
    scale = 1 + 2 * np.max(np.abs(x))
    return Pair({"logits": x}, theirs, ours, scale, names, others={"targets": y, **mask}, key=x.shape)


def optax_soft_targets(draw: Draw, optax: Any) -> Pair:
    x, _, axis, mask = _optax_rows(draw)
    t = draw.fractions(x.shape)
    inputs, others = {"logits": x, "targets": t}, mask
    if mask:  # the derivative in the target of a masked class is infinite here and 0 there
        t *= mask["class_mask"]
        inputs, others = {"logits": x}, {"targets": t, **mask}

    def theirs(x: Array, t: Array, where: Array | None = None) -> Array:
        return optax.softmax_cross_entropy(x, t, axis=axis, where=where)

    ours = partial(polyloss.softmax_cross_entropy, axis=axis, reduction="none")
    names = {"x": x, "t": t, "k": axis, "mask": mask.get("class_mask")}
    scale = 2 * (1 + np.ptp(x)) * (1 + t.sum(axis=axis).max())
    return Pair(inputs, theirs, ours, scale, names, others=others, key=x.shape)


def optax_binary(draw: Draw, optax: Any) -> Pair:
    x, t = draw.normal(shape := draw.one_of((), (4, 3))), draw.fractions(shape)
    ours, scale = partial(polyloss.sigmoid_cross_entropy, reduction="none"), 1 + np.max(np.abs(x))
    inputs, theirs = {"logits": x, "targets": t}, optax.sigmoid_binary_cross_entropy
    return Pair(inputs, theirs, ours, scale, {"x": x, "t": t}, key=shape)


def optax_hinge(draw: Draw, optax: Any) -> Pair:
    a, b = draw.normal(shape := draw.one_of((), (4, 3))), draw.normal(shape)
    ours, scale = partial(polyloss.pairwise_hinge, reduction="none"), 1 + np.max(np.abs(a)) + np.max(np.abs(b))
    inputs = {"positive_scores": a, "negative_scores": b}
    ones = np.ones_like(a)
    names = {"a": a, "b": b, "ones": ones}
    return Pair(inputs, lambda a, b: optax.hinge_loss(a - b, ones), ours, scale, names, key=shape)


def optax_ntxent(draw: Draw, optax: Any) -> Pair:
    """Chen 2020: both views of n things, one after the other; an embedding is no candidate of itself."""
    n, d = draw.one_of((2, 5), (8, 16))
    e, t, y = draw.normal((2 * n, d)), draw.uniform((), 0.05, 1.0), np.tile(np.arange(n), 2)
    mask = ~np.roll(np.eye(2 * n, dtype=bool), n, axis=0)

    def ours(queries: Array, temperature: Array) -> Array:
        positives = queries[(np.arange(2 * n) + n) % (2 * n)]
        return polyloss.info_nce(queries, positives, temperature=temperature, candidate_mask=mask)

    inputs = {"queries": e, "temperature": t}
    theirs, names = lambda e, t: optax.ntxent(e, y, t), {"e": e, "t": t, "y": y, "n": n}
    return Pair(inputs, theirs, ours, _scale_of_cosines(inputs, 1 / float(t)), names, key=(n, d))


# Of scikit-learn, which has no gradients.


def log_loss(draw: Draw, metrics: Any) -> Pair:
    n, k, eps = draw.one_of(1, 5, 40), draw.one_of(2, 3, 10), float(np.finfo(draw.dtype).eps)
    y, w, p = draw.rng.integers(k, size=n), draw.maybe(draw.uniform((n,))), draw.uniform((n, k), 0.0)
    p /= p.sum(axis=1, keepdims=True)
    p[0] = np.arange(k) == 0  # clipped from both sides
    theirs = partial(metrics.log_loss, y, sample_weight=w, labels=range(k))
    ours = partial(polyloss.log_loss, targets=y, weights=w, eps=eps)
    return Pair({"probabilities": p}, theirs, ours, -np.log(eps), {"P": p, "y": y, "w": w, "K": range(k)})


def log_loss_of_one_column(draw: Draw, metrics: Any) -> Pair:
    n, eps = draw.one_of(1, 5, 40), float(np.finfo(draw.dtype).eps)
    y, w, p = draw.rng.integers(2, size=n), draw.maybe(draw.uniform((n,))), draw.fractions((n,))
    theirs = partial(metrics.log_loss, y, sample_weight=w, labels=(0, 1))
    ours = partial(polyloss.binary_log_loss, targets=y, weights=w, eps=eps)
    return Pair({"probabilities": p}, theirs, ours, -np.log(eps), {"p": p, "y": y, "w": w})


Row = Callable[[Draw, Any], Pair]

# By the first cell of README's table. What the code in it calls by name is in `Pair.names`.
TABLE: Mapping[str, Mapping[str, Row]] = {
    "torch": {
        "torch `cross_entropy(x, y, weight=c, ignore_index=i, label_smoothing=e)`": cross_entropy_of_labels,
        "torch `cross_entropy(x, t, weight=c, label_smoothing=e)`, t floating": cross_entropy_of_soft_targets,
        "torch `binary_cross_entropy_with_logits(x, t, weight=w, pos_weight=p)`": binary_cross_entropy_with_logits,
        "torch `binary_cross_entropy(p, t, weight=w)`": binary_cross_entropy,
        "torch `nll_loss(p.log(), y, weight=c)`": nll_loss,
        "torch `margin_ranking_loss(a, b, ones, margin=m)`": margin_ranking_loss,
        "torch `-logsigmoid(a - b).mean()`, Rendle 2009": logsigmoid,
        "sentence-transformers MultipleNegativesRankingLoss (scale 20)": multiple_negatives_ranking_loss,
        "CLIP loss": clip_loss,
        "Hadsell 2006": hadsell,
        "token mean over micro-batches (Liger, Hugging Face)": token_mean_over_micro_batches,
    },
    "optax": {
        "optax `softmax_cross_entropy_with_integer_labels(x, y, axis=k, where=mask)`": optax_labels,
        "optax `softmax_cross_entropy(x, t, axis=k, where=mask)`": optax_soft_targets,
        "optax `sigmoid_binary_cross_entropy(x, t)`": optax_binary,
        "optax `hinge_loss(a - b, ones)`": optax_hinge,
        "optax `ntxent(e, y, t)` of two views of n things, SimCLR": optax_ntxent,
    },
    "sklearn.metrics": {
        "scikit-learn `log_loss(y, P, sample_weight=w, labels=K)`": log_loss,
        "scikit-learn `log_loss(y, p, sample_weight=w, labels=[0, 1])`, p 1-D": log_loss_of_one_column,
    },
}
