"""Limits by hand arithmetic: infinities, NaN, ties, zero vectors, kinks, and the largest finite numbers.

Where an oracle would compute infinity minus infinity, the limit is stated here. Numbers are exact in every dtype, or
are compared to a few ulp.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import polyloss

__all__ = ["LIMITS", "Limit", "in_a_long_row"]

INF, NAN = math.inf, math.nan
BIG = 3e38
WITH_NAN = [[NAN, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, NAN], [0.0, NAN, 0.0, 40.0], [0.0, 0.0, 0.0, 0.0]]


@dataclass(frozen=True)
class Limit:
    """A call, and what it must give."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    items: Any
    gradient: Any  # in the first argument; None: not stated
    cotangent: Any = None  # of a transform; None: ones
    plain: bool = True  # whether plain array code, differentiated by the library, has the limit too

    @property
    def name(self) -> str:
        """Of the function."""
        return str(self.function.__name__)

    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(map(np.asarray, self.arguments))


NOTHING = {"softmax": 0.0, "log_softmax": -INF}
"""What a transform with an answer for each class says of one at -inf."""

LONG = 300  # classes: more than lie side by side in vectors, or in the lanes of a warp


def in_a_long_row(limit: Limit) -> Limit:
    """The same beside many classes at -inf, which have probability 0: kernels treat long rows in their own way."""
    k = np.shape(limit.arguments[0])[-1]

    def longer(x: Any, filling: float) -> Any:
        if np.ndim(x) == 0 or np.shape(x)[-1] != k:
            return x
        undefined = np.isnan(x).any(axis=-1, keepdims=True)
        return np.concatenate([x, np.where(undefined, NAN, np.full((*np.shape(x)[:-1], LONG - k), filling))], axis=-1)

    logits, *targets = limit.arguments
    of_rows = [longer(t, 0.0) if np.ndim(t) == np.ndim(logits) else t for t in targets]
    options = {
        name: longer(x, True).astype(np.asarray(x).dtype) if isinstance(x, list) else x
        for name, x in limit.options.items()
    }
    return dataclasses.replace(
        limit,
        arguments=(np.concatenate([logits, np.full((*np.shape(logits)[:-1], LONG - k), -INF)], axis=-1), *of_rows),
        options=options,
        items=longer(limit.items, NOTHING[limit.name]) if limit.name in NOTHING else limit.items,
        gradient=longer(limit.gradient, 0.0),
        cotangent=longer(limit.cotangent, 0.0),
    )


LIMITS: dict[str, Limit] = {
    "an infinite logit takes its limit": Limit(
        polyloss.sigmoid_cross_entropy,
        ([INF, -INF, INF, -INF, NAN], [1.0, 0.0, 0.0, 1.0, 1.0]),
        {},
        [0, 0, INF, INF, NAN],
        [0, 0, 1, -1, NAN],
    ),
    "a class at -inf has probability 0": Limit(
        polyloss.softmax_cross_entropy,
        ([[-INF, 0.0, 0.0], [-INF, 0.0, 0.0]], [1, 0]),
        {},
        [math.log(2), INF],
        [[0, -0.5, 0.5], [-1, 0.5, 0.5]],
    ),
    "0 times inf is 0 in soft targets": Limit(
        polyloss.softmax_cross_entropy,
        ([[-INF, 0.0, 0.0]], [[0.0, 0.5, 0.5]]),
        {},
        [math.log(2)],
        [[0, 0, 0]],
    ),
    "a class of weight 0 costs nothing at -inf": Limit(
        polyloss.softmax_cross_entropy,
        ([[-INF, 0.0, 0.0], [0.0, 0.0, -INF]], [0, 1]),
        {"class_weights": [0.0, 1.0, 1.0]},
        [0, math.log(2)],
        [[0, 0, 0], [0.5, -0.5, 0]],
    ),
    "one logit of +inf takes its limit, two or none finite are nan": Limit(
        polyloss.softmax_cross_entropy,
        ([[INF, 0.0], [INF, 0.0], [INF, INF], [-INF, -INF]], [0, 1, 0, 0]),
        {},
        [0, INF, NAN, NAN],
        [[0, 0], [1, -1], [NAN, NAN], [NAN, NAN]],
        plain=False,
    ),
    "z_loss of an infinite logit leaves the others alone": Limit(
        polyloss.softmax_cross_entropy,
        ([[0.0, INF, 1.0]], [1]),
        {"z_loss": 0.1},
        [INF],
        [[0, INF, 0]],
        plain=False,
    ),
    "z_loss of an infinite logit leaves the others alone, soft": Limit(
        polyloss.softmax_cross_entropy,
        ([[0.0, INF, 1.0]], [[0.0, 1.0, 0.0]]),
        {"z_loss": 0.1},
        [INF],
        [[0, INF, 0]],
        plain=False,
    ),
    "one class is certain": Limit(polyloss.softmax_cross_entropy, ([[3.0], [NAN]], [0, 0]), {}, [0, NAN], [[0], [NAN]]),
    "a nan logit makes its row nan": Limit(
        polyloss.softmax_cross_entropy,
        (WITH_NAN, [1, 0, 3, 0]),
        {},
        [NAN, NAN, NAN, math.log(4)],
        [[NAN] * 4] * 3 + [[-0.75, 0.25, 0.25, 0.25]],
    ),
    "a nan logit makes its row nan, target or not": Limit(
        polyloss.softmax_cross_entropy,
        (WITH_NAN, [[0.0, 0.5, 0.5, 0.0]] * 4),
        {},
        [NAN, NAN, NAN, math.log(4)],
        [[NAN] * 4] * 3 + [[0.25, -0.25, -0.25, 0.25]],
    ),
    "a masked class is not read": Limit(
        polyloss.softmax_cross_entropy,
        ([[NAN, 0.0, 0.0], [INF, 0.0, 0.0]], [1, 0]),
        {"class_mask": [False, True, True]},
        [math.log(2), INF],
        [[0, -0.5, 0.5], [0, 0.5, 0.5]],
    ),
    "ties are no kink": Limit(polyloss.softmax_cross_entropy, ([[1.0, 1.0]], [0]), {}, [math.log(2)], [[-0.5, 0.5]]),
    "confidence keeps its digits": Limit(
        polyloss.softmax_cross_entropy,
        ([[0.0, 40.0], [0.0, 80.0]], [1, 1]),
        {},
        [4.248354255291589e-18, 1.8048513878454153e-35],
        [[4.248354255291589e-18, -4.248354255291589e-18], [1.8048513878454153e-35, -1.8048513878454153e-35]],
    ),
    "the hinge is flat at its kink": Limit(
        polyloss.pairwise_hinge,
        ([1.0, 0.5, NAN], [0.0, 0.0, 0.0]),
        {},
        [0, 0.5, NAN],
        [0, -1, -1],
    ),
    "bpr of a hopeless pair does not overflow": Limit(polyloss.bpr, ([-1e4], [1e4]), {}, [2e4], [-1]),
    "coinciding embeddings have gradient 0": Limit(
        polyloss.contrastive,
        ([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], [1.0, 0.0]),
        {},
        [0, 1],
        [[0, 0], [0, 0]],
    ),
    "a far dissimilar pair has no loss, whatever its square": Limit(
        polyloss.contrastive_from_distance,
        ([1e25, INF], [0.0, 0.0]),
        {},
        [0, 0],
        [0, 0],
    ),
    "embeddings whose difference overflows are far apart": Limit(
        polyloss.contrastive,
        (
            [[0.75 * BIG, 1.0], [0.0, 1.0], [INF, 0.0], [BIG, 0.0]],
            [[-0.75 * BIG, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]],
            [0.0, 0.0, 1.0, 0.0],
        ),
        {},
        [0, 0.25, INF, 0],
        [[0, 0], [0, -1], [0, 0], [0, 0]],
    ),
    "tiny and huge embeddings have a distance": Limit(
        polyloss.contrastive,
        ([[3e-30, 4e-30], [3e18, 4e18]], [[0.0, 0.0], [0.0, 0.0]], [0.0, 1.0]),
        {"margin": 1e-29},
        [(1e-29 - 5e-30) ** 2, 2.5e37],
        None,
    ),
    "a zero vector is similar to nothing": Limit(
        polyloss.info_nce,
        ([[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]),
        {"temperature": 1.0},
        [math.log(2), math.log1p(math.e)],
        [[0, 0], [0, -1 / (1 + math.exp(-1))]],
    ),
    "a certain and wrong probability is infinitely bad": Limit(
        polyloss.binary_log_loss,
        ([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]),
        {},
        [INF, INF, 0, 0],
        None,
    ),
    "a clipped probability is flat": Limit(
        polyloss.binary_log_loss,
        ([0.0, 0.5], [1.0, 1.0]),
        {"eps": 0.25},
        [math.log(4), math.log(2)],
        [0, -2],
    ),
    "the largest logits": Limit(
        polyloss.sigmoid_cross_entropy,
        ([BIG, -BIG, BIG, -BIG], [1.0, 0.0, 0.0, 1.0]),
        {},
        [0, 0, BIG, BIG],
        [0, 0, 1, -1],
    ),
    "signed zeros": Limit(
        polyloss.sigmoid_cross_entropy, ([0.0, -0.0], [0.0, 1.0]), {}, [math.log(2), math.log(2)], [0.5, -0.5]
    ),
    "an infinite distance": Limit(
        polyloss.contrastive_from_distance, ([INF, 0.0], [1.0, 0.0]), {}, [INF, 1], [INF, -2]
    ),
    "infinite scores": Limit(polyloss.bpr, ([INF, -INF, NAN], [0.0, 0.0, 0.0]), {}, [0, INF, NAN], [0, -1, NAN]),
    "log loss of a certain class": Limit(polyloss.log_loss, ([[1.0, 0.0]] * 2, [0, 1]), {}, [0, INF], None),
    "sigmoid": Limit(polyloss.sigmoid, ([0.0, INF, -INF, NAN],), {}, [0.5, 1, 0, NAN], [0.25, 0, 0, NAN]),
    "softplus": Limit(polyloss.softplus, ([0.0, INF, -INF, NAN],), {}, [math.log(2), INF, 0, NAN], [0.5, 1, 0, NAN]),
    "log sigmoid": Limit(
        polyloss.log_sigmoid, ([0.0, INF, -INF, NAN],), {}, [-math.log(2), 0, -INF, NAN], [0.5, 0, 1, NAN]
    ),
    "softmax": Limit(
        polyloss.softmax,
        ([[0.0, -INF, 0.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]],),
        {},
        [[0.5, 0, 0.5], [1, 0, 0], [NAN, NAN, NAN]],
        None,
    ),
    "softmax with a nan": Limit(polyloss.softmax, (WITH_NAN,), {}, [[NAN] * 4] * 3 + [[0.25] * 4], None),
    "log softmax with a nan": Limit(
        polyloss.log_softmax, (WITH_NAN,), {}, [[NAN] * 4] * 3 + [[-math.log(4)] * 4], None
    ),
    "logsumexp with a nan": Limit(polyloss.logsumexp, (WITH_NAN,), {}, [NAN, NAN, NAN, math.log(4)], None),
    "softmax of what a mask keeps": Limit(
        polyloss.softmax,
        ([0.0, NAN, 0.0],),
        {"where": [True, False, True]},
        [0.5, 0, 0.5],
        [0.25, 0, -0.25],
        [1.0, 9.0, 0.0],
    ),
    "log softmax": Limit(
        polyloss.log_softmax,
        ([[0.0, -INF, 0.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]],),
        {},
        [[-math.log(2), -INF, -math.log(2)], [0, -INF, -INF], [NAN, NAN, NAN]],
        None,
    ),
    "log softmax of what a mask keeps": Limit(
        polyloss.log_softmax,
        ([0.0, 1.0, 0.0],),
        {"where": [True, False, True]},
        [-math.log(2), -INF, -math.log(2)],
        [0, 0, 0],
        [0.0, 1.0, 0.0],
    ),
    "log softmax beside infinity": Limit(
        polyloss.log_softmax, ([0.0, INF, 1.0],), {}, [-INF, 0, -INF], [0.3, -0.1, -0.2], [0.3, 0.7, -0.2]
    ),
    "logsumexp": Limit(
        polyloss.logsumexp,
        ([[0.0, -INF, 0.0], [INF, INF, 1.0], [-INF, -INF, -INF]],),
        {},
        [math.log(2), INF, -INF],
        None,
    ),
    "logsumexp of infinities beside a nan": Limit(
        polyloss.logsumexp,
        ([[INF, NAN, 0.0], [NAN, INF, 0.0], [0.0, NAN, INF], [-INF, NAN, -INF], [NAN, -INF, -INF]],),
        {},
        [NAN] * 5,
        None,
    ),
    "logsumexp of nothing": Limit(polyloss.logsumexp, ([-INF, -INF],), {}, -INF, [0, 0]),
    "logsumexp of one infinity": Limit(polyloss.logsumexp, ([INF, 0.0],), {}, INF, [1, 0]),
    "logsumexp of nothing kept": Limit(polyloss.logsumexp, ([1.0, 2.0],), {"where": [False, False]}, -INF, [0, 0]),
}
