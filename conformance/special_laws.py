"""Laws of single losses: labels, classes, what is ignored, what is invalid, and a single item."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import polyloss
from polyloss import dispatch
from polyloss.conformance.compare import compare, same
from polyloss.conformance.laws import law, only
from polyloss.conformance.losses import LOSSES, Row
from polyloss.conformance.routes import Route, to_numpy
from polyloss.conformance.subject import Draw, Subject

__all__ = ["is_refused"]

SOFTMAX = ("softmax_cross_entropy",)
KERNELS = (*SOFTMAX, "sigmoid_cross_entropy", "bpr", "info_nce")  # the losses on a hot primitive
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


def of(subject: Subject, loss: Any, **options: Any) -> Subject:
    """A call of our own on the same route."""
    return Subject(Row(loss, lambda *_: {}, options), subject.route, subject.dtype, subject.last)


@law("no kernel", only("numpy", "torch", path="generic"), once=True, functions=KERNELS)
def no_kernel(subject: Subject, draw: Draw) -> None:
    """The generic path is that of the formula: no kernel is there to be asked."""
    x = subject.route.array(draw.rng.standard_normal(3), subject.dtype)
    assert dispatch.kernels_for(dispatch.library_of(x), x) is None, "there are kernels inside of generic()"


@law("labels of every dtype", once=True, functions=("softmax_cross_entropy", "log_loss"))
def label_dtypes(subject: Subject, draw: Draw) -> None:
    """Labels may have any integer dtype, or be boolean, however many classes there are."""
    for k in (3, 200):
        logits = draw.rng.standard_normal((4, k))
        labels = np.array([0, 1, 1, 0]) + (k - 2 if k > 3 else 0)
        plain = of(subject, polyloss.softmax_cross_entropy)
        expected = plain.items({"logits": logits, "targets": labels})
        for dtype in INTEGERS if k == 3 else INTEGERS[1:-1]:
            got = plain.items({"logits": logits, "targets": labels.astype(dtype)})
            subject.close(got, expected, f"the items with {dtype} labels")
            p = np.full((4, k), 1 / k)
            same_labels = {"probabilities": p, "targets": labels.astype(dtype)}
            got = of(subject, polyloss.log_loss).items(same_labels)
            subject.close(got, np.full(4, np.log(k)), f"the log loss with {dtype} labels", factor=10)


@law("labels and one-hot rows", once=True, functions=SOFTMAX)
def one_hot(subject: Subject, draw: Draw) -> None:
    """An integer label and its one-hot row give the same number, with class weights and smoothing too."""
    logits, labels = draw.rng.standard_normal((5, 4)), draw.rng.integers(4, size=5)
    rows, c = np.eye(4)[labels], np.array([1.0, 2.0, 0.5, 3.0])
    for options in (
        {},
        {"class_weights": c},
        {"class_weights": c, "label_smoothing": 0.1, "weights": np.arange(1.0, 6)},
    ):
        plain = of(subject, polyloss.softmax_cross_entropy, **options)
        hard, slope = plain.value_and_slope({"logits": logits, "targets": labels})
        soft, same_slope = plain.value_and_slope({"logits": logits, "targets": rows})
        subject.close(hard, soft, "the value of labels, beside one-hot rows")
        subject.close(slope, same_slope, "the gradient of labels, beside one-hot rows")
    light = of(subject, polyloss.softmax_cross_entropy, class_weights=np.array([0.25, 0.25]))
    sure = np.array([[0.0, 14.0]])  # alone: its gradient is small, and all of it keeps its digits
    _, slope = light.value_and_slope({"logits": sure, "targets": np.array([1])}, reduction="sum")
    _, same_slope = light.value_and_slope({"logits": sure, "targets": np.array([[0.0, 1.0]])}, reduction="sum")
    subject.close(slope, same_slope, "the gradient of a sure row that weighs little, beside a one-hot row")


@law("shift", once=True, functions=SOFTMAX)
def shift(subject: Subject, draw: Draw) -> None:
    """A shift of all logits that rounds nothing changes no bit."""
    logits = draw.rng.integers(-64, 64, (5, 4)) / 8
    labels = draw.rng.integers(4, size=5)
    plain = of(subject, polyloss.softmax_cross_entropy)
    expected, slopes = plain.value_and_gradients({"logits": logits, "targets": labels})
    value, gradients = plain.value_and_gradients({"logits": logits + 1024, "targets": labels})
    same(value, expected, "the value of shifted logits")
    same(gradients["logits"], slopes["logits"], "the gradient of shifted logits")


@law("masked classes", once=True, functions=SOFTMAX)
def masked_classes(subject: Subject, draw: Draw) -> None:
    """A masked class is as if it were not there, NaN or not, along any axis, smoothed or not, beside masked rows."""
    logits, labels = draw.rng.standard_normal((5, 2, 6)), draw.rng.integers(4, size=(5, 2))
    where = np.arange(5) != 3
    keep = np.array([True, True, True, True, False, False])
    dirty = np.where(keep, logits, np.nan)
    for e in (0.0, 0.25):
        expected, slopes = of(subject, polyloss.softmax_cross_entropy, label_smoothing=e).value_and_gradients(
            {"logits": logits[..., :4], "targets": labels}, where=where
        )
        for axis in (-1, 0):
            masked = of(subject, polyloss.softmax_cross_entropy, class_mask=keep, axis=axis, label_smoothing=e)
            x = np.moveaxis(dirty, -1, axis)
            value, gradients = masked.value_and_gradients({"logits": x, "targets": labels}, where=where)
            gradient = np.moveaxis(to_numpy(gradients["logits"]), axis, -1)
            subject.close(value, expected, f"the value with masked classes, axis={axis}")
            subject.close(gradient[..., :4], slopes["logits"], f"the gradient with masked classes, axis={axis}")
            same(gradient[..., 4:], np.zeros((5, 2, 2)), "the gradient in masked logits")
        some = np.ones((5, 2, 6), bool)
        some[1, 0] = False  # not one
        masked = of(subject, polyloss.softmax_cross_entropy, class_mask=some, label_smoothing=e)
        items, gradients = masked.value_and_gradients({"logits": logits, "targets": labels}, reduction="none")
        same(np.isnan(to_numpy(items)), ~some[..., 0], "which item is NaN, of a row without a class")
        same(to_numpy(gradients["logits"])[1, 0], np.zeros(6), "the gradient in a row without a class")


@law("ignored labels", once=True, functions=SOFTMAX)
def ignored(subject: Subject, draw: Draw) -> None:
    """Rows of the label ``ignore_index`` are masked, beside those of ``where``, -100 among 200 classes too."""
    for k, ignore, dtype in ((4, -100, "int64"), (200, -100, "int16"), (4, 2, "int64"), (200, 255, "uint8")):
        logits, labels = draw.rng.standard_normal((6, k)), draw.rng.integers(k, size=6).astype(dtype)
        labels = np.where(labels == ignore, 0, labels)
        labels[[1, 4]] = ignore
        if 0 <= ignore + k < k:
            labels[0] = ignore + k  # which the ignored label would be, counted from the end
        ignoring = of(subject, polyloss.softmax_cross_entropy, ignore_index=ignore)
        plain = of(subject, polyloss.softmax_cross_entropy)
        for where in (None, np.arange(6) != 3):
            keep = (labels != ignore) & (True if where is None else where)
            value, gradients = ignoring.value_and_gradients({"logits": logits, "targets": labels}, where=where)
            expected, slopes = plain.value_and_gradients({"logits": logits[keep], "targets": labels[keep]})
            subject.close(value, expected, f"the mean with ignore_index={ignore} among {k} classes")
            gradient = to_numpy(gradients["logits"])
            subject.close(gradient[keep], slopes["logits"], "the gradient in the other rows")
            same(gradient[~keep], np.zeros((np.sum(~keep), k)), "the gradient in ignored rows")


WIDEST = 2**24 + 9
"""Classes that single precision does not count."""


@law("many classes", only("numpy", path="kernel", dtypes=("float32",)), once=True, functions=SOFTMAX)
def many_classes(subject: Subject, draw: Draw) -> None:
    """A label is read to its last bit, among more classes than single precision counts."""
    logits, label = np.zeros((1, WIDEST), np.float32), WIDEST - 2
    logits[0, label - 1 : label + 2] = 20, 19, 18
    value, gradients = subject.value_and_gradients({"logits": logits, "targets": np.array([label])})
    total = np.exp(20) + np.exp(19) + np.exp(18) + WIDEST - 3
    subject.close(value, np.log(total) - 19, "the value among many classes")
    near = np.exp([20.0, 19.0, 18.0]) / total - [0, 1, 0]
    subject.close(gradients["logits"][0, label - 1 : label + 2], near, "the gradient at the label")


@law("infinite losses", once=True, functions=(*SOFTMAX, "sigmoid_cross_entropy"))
def infinite(subject: Subject, draw: Draw) -> None:
    """The sum of infinite losses is infinite, and NaN where their weights have both signs, near or far apart."""
    for n in (4, 900):
        given = {"logits": np.zeros(n), "targets": np.ones(n)}
        if subject.row.loss is polyloss.softmax_cross_entropy:
            given = {"logits": np.zeros((n, 3)), "targets": np.ones(n, int)}
        given["logits"][[0, n - 1]] = [-np.inf] if given["logits"].ndim == 1 else [0.0, -np.inf, 0.0]
        for last, expected in ((1.0, np.inf), (-1.0, np.nan)):
            weights = np.append(np.ones(n - 1), last)
            what = f"of infinite losses, the last one times {last}"
            with np.errstate(invalid="ignore"):
                same(subject.value(given, weights=weights, reduction="sum"), np.asarray(expected), f"the sum {what}")
                mean, _ = subject.value_and_gradients(given, weights=weights, denominator=2.0)
                same(mean, np.asarray(expected), f"the mean {what}")


@law("infinite logits", once=True, functions=SOFTMAX)
def infinite_logits(subject: Subject, draw: Draw) -> None:
    """One infinite logit takes its limit, and two are NaN, wherever they are in a row, with labels and soft targets."""
    plain = of(subject, polyloss.softmax_cross_entropy)
    for k in (4, 40, 600, 2000):
        logits = draw.rng.standard_normal((3, k))
        logits[0, 1] = logits[1, [1, k - 2]] = np.inf
        for targets in (np.ones(3, int), np.eye(k)[np.ones(3, int)]):
            items, gradients = plain.value_and_gradients({"logits": logits, "targets": targets}, reduction="none")
            first = np.array([0.0, np.nan]).astype(to_numpy(items).dtype)
            same(to_numpy(items)[:2], first, f"the items with infinite logits, of {k} classes")
            same(np.abs(to_numpy(gradients["logits"])[0]), np.zeros(k), f"the gradient with an infinite logit, of {k}")
            assert np.all(np.isnan(to_numpy(gradients["logits"])[1])), f"a gradient of two infinite logits, of {k}"


@law("masked queries", once=True, functions=("info_nce",))
def masked_queries(subject: Subject, draw: Draw) -> None:
    """A candidate that is masked for a query is as if it were not there; its own positive is never dropped."""
    q, p = draw.rng.standard_normal((2, 4, 3))
    plain = of(subject, polyloss.info_nce, temperature=0.5)
    mask = np.ones((4, 4), bool)
    mask[:, 3] = False  # its own positive stays, for query 3
    got = plain.items({"queries": q, "positives": p}, candidate_mask=mask)
    without = plain.items({"queries": q[:3], "positives": p[:3]})
    subject.close(got[:3], without, "the items without a candidate", factor=10)
    full = plain.items({"queries": q, "positives": p})
    subject.close(got[3:], full[3:], "the item whose own positive was masked", factor=10)
    mask = np.roll(np.triu(np.ones((4, 4), bool)), 1, axis=0)  # for each query another one
    got = plain.items({"queries": q, "positives": p}, candidate_mask=mask, where=np.arange(4) != 0)
    without = plain.items({"queries": q[1:], "positives": p[1:]}, candidate_mask=mask[1:, 1:])
    subject.close(got[1:], without, "the items without a candidate and a row", factor=10)
    both = [plain.items({"queries": a, "positives": b}, candidate_mask=m) for a, b, m in ((q, p, mask), (p, q, mask.T))]
    got = plain.items({"queries": q, "positives": p}, candidate_mask=mask, symmetric=True)
    subject.close(got, (both[0] + both[1]) / 2, "the items of both ways", factor=10)
    own, kept = draw.rng.standard_normal((4, 3, 3)), np.arange(3) != np.arange(4)[:, None] % 3
    options = {"where": np.arange(4) != 0, "reduction": "sum"}
    mask = np.concatenate([np.ones((4, 1), bool), kept], axis=1)
    got, slopes = plain.value_and_gradients(
        {"queries": q, "positives": p, "negatives": own}, candidate_mask=mask, **options
    )
    few = {"queries": q, "positives": p, "negatives": own[kept].reshape(4, 2, 3)}
    expected, gradients = plain.value_and_gradients(few, **options)
    subject.close(got, expected, "the sum without a row, and without a negative of each query's own", factor=10)
    for key in ("queries", "positives"):
        subject.close(slopes[key], gradients[key], f"the gradient in {key} without negatives and a row", factor=10)
    expected = np.zeros_like(own)
    expected[kept] = to_numpy(gradients["negatives"]).reshape(-1, 3)
    subject.close(slopes["negatives"], expected, "the gradient in negatives, some of them masked", factor=10)


@law("temperature", once=True, functions=("info_nce",))
def temperature(subject: Subject, draw: Draw) -> None:
    """A temperature divides the similarities: with the dot product, it is a factor of the queries."""
    q, p = draw.rng.standard_normal((2, 4, 3))
    plain = of(subject, polyloss.info_nce, similarity="dot")
    got, slopes = plain.value_and_gradients({"queries": q, "positives": p}, temperature=0.25)
    expected, gradients = plain.value_and_gradients({"queries": 4 * q, "positives": p}, temperature=1.0)
    subject.close(got, expected, "the value at a temperature of 1/4", factor=10)
    subject.close(to_numpy(slopes["queries"]) / 4, gradients["queries"], "the gradient in the queries", factor=10)
    subject.close(slopes["positives"], gradients["positives"], "the gradient in the positives", factor=10)
    own, shared = draw.rng.standard_normal((4, 2, 3)), draw.rng.standard_normal((2, 3))
    for name, further in (("no", {}), ("own", {"negatives": own}), ("shared", {"negatives": shared})):
        array = {"queries": q, "positives": p, "temperature": np.asarray(0.25), **further}
        slopes = plain.value_and_gradients(array, in_batch=True)[1]
        along = -np.sum(q * to_numpy(slopes["queries"])) / 0.25  # of what depends on the quotient alone
        subject.close(slopes["temperature"], along, f"the gradient in the temperature, {name} negatives", factor=10)
        for similarity in ("dot", "cosine"):
            both = of(subject, polyloss.info_nce, similarity=similarity, in_batch=True)
            slopes = both.value_and_gradients(array)[1]
            # Hotter or colder: by differences, to a few digits in float32.
            ahead, behind = (
                to_numpy(both.value(array | {"temperature": np.asarray(0.25 + step)}))
                for step in (2.0**-10, -(2.0**-10))
            )
            what = f"the gradient in the temperature, {similarity}, {name} negatives"
            expected = (ahead.astype(np.float64) - behind) * 2.0**9
            compare(
                slopes["temperature"],
                expected,
                f"{what}, beside differences",
                subject.dtype,
                0.01 * np.abs(expected) + 1e-3,
            )
            given = both.given(array, {})
            at = functools.partial(_at_temperature, {key: x for key, x in given.items() if key != "temperature"})
            for way in subject.route.autodiff:
                _, got = subject.route.pulled(way, at, given["temperature"])
                subject.close(got, slopes["temperature"], f"{way}'s {what.removeprefix('the ')}", factor=10)


def _at_temperature(given: dict[str, Any], t: Any) -> Any:
    return polyloss.info_nce(**given, temperature=t)


@law("many candidates", once=True, functions=("info_nce",))
def many_candidates(subject: Subject, draw: Draw) -> None:
    """A long row of candidates, whose gradient may take the place of its similarities, is that of the formula."""
    q, p = draw.rng.standard_normal((2, 70, 3))
    plain = of(subject, polyloss.info_nce, temperature=0.5)
    given = {"queries": q, "positives": p}
    value, gradients = plain.value_and_gradients(given)
    expected, slopes = plain.on(Route("numpy", "generic")).value_and_gradients(given)
    subject.close(value, expected, "the value of many candidates", factor=10)
    for key, gradient in gradients.items():
        subject.close(gradient, slopes[key], f"the gradient in {key} of many candidates", factor=10)


@law("one item alone", once=True)
def alone(subject: Subject, draw: Draw) -> None:
    """An item without a batch axis has the loss of a batch of one."""
    row = subject.row
    if row.loss is polyloss.info_nce:
        query, positive, negatives = (draw.rng.standard_normal(shape) for shape in ((4,), (4,), (3, 4)))
        one = {"queries": query, "positives": positive, "negatives": negatives}
        batch = {"queries": query[None], "positives": positive[None], "negatives": negatives}
        plain = of(subject, polyloss.info_nce, temperature=1.0)
        for mask in (None, np.array([False, True, False, True])):
            value, gradients = plain.value_and_gradients(one, candidate_mask=mask)
            expected, slopes = plain.value_and_gradients(batch, candidate_mask=mask)
            subject.close(value, expected, "the loss of one query", factor=10)
            for key in one:
                got = np.reshape(to_numpy(gradients[key]), slopes[key].shape)
                subject.close(got, slopes[key], f"the gradient in {key} of one query", factor=10)
        return
    arguments = subject.draw(draw, 1)
    expected, slopes = subject.value_and_gradients(arguments, reduction="none")
    options = {"axis": 0} if "axis" in row.options else {}
    one = {key: np.asarray(x) for key, x in row.take(arguments, 0).items()}
    value, gradients = subject.value_and_gradients(one, reduction="none", **options)
    subject.close(value, to_numpy(expected)[0], "the loss of one item")
    for key, gradient in gradients.items():
        subject.close(gradient, to_numpy(slopes[key])[0], f"the gradient in {key} of one item")


@law("batch axis", only("jax", path="kernel", dtypes=("float32",)), once=True, functions=KERNELS)
def batch_axis(subject: Subject, draw: Draw) -> None:
    """A batch by `jax.vmap`, along any axis, has the values and gradients of its parts."""
    import jax

    arguments = subject.draw(draw, 3)
    key = subject.row.floating(arguments)[0]
    given = subject.given(arguments, {})
    parts = (arguments[key], arguments[key][::-1].copy())
    expected = [subject.value_and_gradients(arguments | {key: part}) for part in parts]
    for axis in range(parts[0].ndim + 1):
        both = jax.vmap(jax.value_and_grad(lambda x: subject.row.loss(**given | {key: x})), in_axes=axis)
        values, gradients = both(subject.route.array(np.stack(parts, axis=axis), subject.dtype))
        for value, gradient, (one, slopes) in zip(values, gradients, expected):
            subject.close(value, one, f"the value of a batch along axis {axis}")
            subject.close(gradient, slopes[key], f"the gradient of a batch along axis {axis}", factor=10)


INVALID: dict[str, tuple[str, tuple[Any, ...]]] = {
    "sigmoid_cross_entropy": ("targets", (2.0, -1.0)),
    "softmax_cross_entropy": ("targets", (4, -1)),
    "contrastive": ("similar", (2.0, -1.0)),
    "contrastive_from_distance": ("distances", (-1.0,)),
    "binary_log_loss": ("probabilities", (1.5, -0.5)),
    "log_loss": ("targets", (-1, 4)),
}
"""An argument, and what is invalid there: on both sides of what is valid."""
MANY = 70_000  # items, for several threads


@law("invalid values", once=True, functions=tuple(INVALID))
def invalid(subject: Subject, draw: Draw) -> None:
    """An invalid value is an error that names its argument, or where nobody may look, NaN in its own item alone."""
    function = subject.row.loss.__name__
    key, values = INVALID[function]
    calls = [(LOSSES[function].arguments(draw.seed, 4), bad) for bad in values]
    if subject.route.library in ("numpy", "torch") and subject.dtype == "float32":
        calls.append((LOSSES[function].arguments(draw.seed, MANY), values[0]))
    if function == "softmax_cross_entropy":  # long rows, too
        long = {"logits": draw.rng.standard_normal((4, 200)), "targets": draw.rng.integers(200, size=4)}
        calls += [(long, bad) for bad in (200, -1)]
        calls += [(LOSSES["softmax_cross_entropy, soft"].arguments(draw.seed, 4), bad) for bad in (1.5, -0.5)]
    for arguments, bad in calls:
        if isinstance(bad, float):
            arguments[key] = arguments[key].astype(np.float64)
        is_refused(subject, key, arguments, bad)
    if function in ("softmax_cross_entropy", "log_loss"):
        _beyond_32_bits(subject)
    if function == "log_loss":
        _sums_near_one(subject)
    if function == "softmax_cross_entropy":
        _along_another_axis(subject)
        labels = LOSSES[function].arguments(draw.seed, 4)
        labels["targets"] %= 3  # of the classes that the mask keeps
        for options in ({"label_smoothing": 0.25}, {"class_mask": np.array([True, True, True, False])}):
            for bad in values:
                is_refused(subject, key, labels, bad, **options)


def _along_another_axis(subject: Subject) -> None:
    """Raises AssertionError where an error names another place than that of the argument as it was given."""
    logits, targets = np.zeros((3, 5)), np.zeros((3, 5))
    targets[2, 1] = 7
    try:
        of(subject, subject.row.loss, axis=0).value({"logits": logits, "targets": targets})
    except ValueError as error:
        if "(2, 1)" not in str(error):
            raise AssertionError(f"the error does not say that (2, 1) is invalid: {error}") from error


def _sums_near_one(subject: Subject) -> None:
    """Raises AssertionError where a row that sums to 1 to 1e-3 is refused, or one that does not is taken."""
    arguments = {"probabilities": np.full((4, 2), 0.5), "targets": np.array([0, 1, 1, 0])}
    is_refused(subject, "probabilities", arguments, 0.501)
    near = {"probabilities": np.full((4, 2), 0.5 + 2.0**-12), "targets": arguments["targets"]}
    subject.close(subject.items(near), -np.log(near["probabilities"][:, 0]), "items whose probabilities sum to 1.0005")


def _beyond_32_bits(subject: Subject) -> None:
    """Raises AssertionError where a label is read without its upper half; JAX would do it, so it gets NumPy's array."""
    route = subject.route
    p = route.array(np.full((2, 2), 0.5), subject.dtype)
    wide: list[tuple[int, str, dict[str, Any]]] = [(2**32 + 1, "int64", {}), (2**64 - 1, "uint64", {})]
    if subject.row.loss is polyloss.softmax_cross_entropy:
        wide.append((2**64 - 100, "uint64", {"ignore_index": -100}))
    for label, dtype, options in wide:
        labels = np.array([label, 0], dtype)
        subject.last.update({"targets": labels} | options)
        given = labels if route.library == "jax" else route.array(labels)
        try:
            items = subject.row.loss(p, given, reduction="none", **options)
        except ValueError as error:
            if "targets" not in str(error):
                raise AssertionError(f"the error does not name targets: {error}") from error
        else:
            assert np.isnan(to_numpy(items)[0]), f"a label of {label} is taken for one in range: {items}"


def is_refused(subject: Subject, key: str, arguments: dict[str, np.ndarray], bad: Any, **options: Any) -> None:
    """Raises AssertionError where a bad value is neither an error nor NaN in its own item alone."""
    n = len(arguments[key])
    for place in (n // 2,) if n < MANY else (0, n // 2, n - 1):  # whichever thread comes to it, and when
        _is_refused_at(of(subject, subject.row.loss, **options), key, arguments, bad, place)


def _is_refused_at(plain: Subject, key: str, arguments: dict[str, np.ndarray], bad: Any, place: int) -> None:
    broken = arguments[key].copy()
    broken[place] = bad
    try:
        value = plain.value(arguments | {key: broken}, reduction="none")
        items = to_numpy(value)
    except ValueError as error:
        for said in (key, f"({place},"):
            if said not in str(error):
                raise AssertionError(f"the error does not name {said}: {error}") from error
        return
    looked = (plain.route.library, plain.route.device) in ((name, "cpu") for name in ("numpy", "torch", "jax"))
    looked = looked and plain.route.path not in ("compiled", "jit")
    assert not looked, f"{bad} in {key} is no error"
    clean = plain.items(arguments)
    same(items[place], np.full_like(items[place], np.nan), f"the item with {bad} in {key}")
    others = np.arange(len(items)) != place
    wide = "float64" if plain.dtype == "float64" else "float32"  # in which losses of 16 bits come back
    Subject(plain.row, plain.route, wide).close(items[others], clean[others], "the other items")
