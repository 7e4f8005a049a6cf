"""Faults in the formulas: primitives, losses, transforms, reduction, and what reads their arguments."""

from __future__ import annotations

from polyloss.conformance.faults.fault import Fault

__all__ = ["FAULTS"]

PRIMITIVES = (
    Fault("no-max-shift", "primitives.py", "exps = xp.exp(-gap)", "exps = xp.exp(x) / xp.exp(top)"),
    Fault(
        "probability-minus-one-at-the-label",
        "primitives.py",
        "top = xp.where(at_top > total / 2, rest - total * (r.others / norm), total / norm - at_top)",
        "top = total / norm - at_top",
    ),
    Fault(
        "logsumexp-minus-the-label's-logit",
        "primitives.py",
        "return linear + library.sum(q) * library.xp.log1p(r.others[..., 0])",
        "return library.sum(q * ((r.top + library.xp.log1p(r.others)) - (r.top - r.gap)))",
    ),
    Fault(
        "formula-without-the-cotangent",
        "primitives.py",
        "gx = cotangent * self._slope(library, r, q)",
        "gx = self._slope(library, r, q)",
    ),
    Fault(
        "formula's-gradient-off-by-1e-4",
        "primitives.py",
        "gx = cotangent * (b * xp.where(up, near, far)",
        "gx = 1.0001 * cotangent * (b * xp.where(up, near, far)",
    ),
    Fault(
        "gradient-in-binary-targets-of-the-wrong-sign",
        "primitives.py",
        "gt = cotangent * -(keep * x)",
        "gt = cotangent * (keep * x)",
    ),
    Fault(
        "pos-weight-on-the-negative-term",
        "primitives.py",
        "return (a if p is None else p * a), b",
        "return a, (b if p is None else p * b)",
    ),
    Fault(
        "smoothing-by-one-class-too-few",
        "primitives.py",
        "t = t * (1 - e) + e / x.shape[-1]",
        "t = t * (1 - e) + e / max(x.shape[-1] - 1, 1)",
    ),
    Fault(
        "smoothing-counts-masked-classes",
        "primitives.py",
        "kept * (e / xp.where(n > 0, n, xp.ones_like(n)))",
        "kept * (e / x.shape[-1])",
    ),
    Fault(
        "label-clamped",
        "primitives.py",
        "label = xp.expand_dims(labels, axis=-1)",
        "label = xp.expand_dims(xp.clip(labels, 0, x.shape[-1] - 1), axis=-1)",
        ("jax", "dask"),  # elsewhere the label has been refused before
    ),
    Fault(
        "tied-maxima-left-out",
        "primitives.py",
        "library.sum(xp.where(is_top, zero, exps))",
        "library.sum(xp.where(gap == 0, zero, exps))",
    ),
    Fault(
        "tied-maxima-added-up",
        "primitives.py",
        "is_top = xp.expand_dims(xp.argmax(x, axis=-1), axis=-1) == library.positions(x)",
        "is_top = x == xp.max(x, axis=-1, keepdims=True)",
    ),
    Fault(
        "infinity-times-zero-is-nan",
        "primitives.py",
        "return xp.where((weight == 0) & (x == math.inf), xp.zeros_like(x), x)",
        "return x",
    ),
    Fault(
        "infinite-logit-without-its-limit",
        "primitives.py",
        "gap = xp.where(fixed, zero, library.spread(top, x) - x)",
        "gap = library.spread(top, x) - x",
    ),
    Fault(
        "z-loss-gradient-without-its-factor-2",
        "primitives.py",
        "slope = slope + 2 * self.z_loss",
        "slope = slope + self.z_loss",
    ),
    Fault(
        "absolute-value-without-a-slope-at-0",
        "primitives.py",
        "return library.xp.where(x >= 0, -x, x)",
        "return -library.xp.abs(x)",
        ("torch", "jax"),
    ),
    Fault(
        "derivative-of-the-top's-exponential-forgotten",
        "primitives.py",
        "others = others + (xp.sum(xp.where(is_top, exps, zero), axis=-1, keepdims=True) - 1)",
        "others = others + 0",
        ("torch", "jax"),
    ),
    Fault(
        "class-weights-missing-in-the-gradient-of-the-targets",
        "primitives.py",
        "(lead if c is None else c * lead)",
        "lead",
    ),
)

REDUCTION = (
    Fault(
        "mean-over-the-count-instead-of-the-weights",
        "reduction.py",
        "return self.call.library.total(self.clean(w))",
        "return self.call.library.total(self.call.xp.ones_like(w))",
    ),
    Fault(
        "ignored-rows-stay-in-the-denominator",
        "reduction.py",
        "return self.call.library.total(self.clean(w))",
        "return self.call.library.total(w)",
    ),
    Fault(
        "class-weights-missing-in-the-denominator",
        "reduction.py",
        "w = mass if w is None else w * mass",
        "w = self.call.xp.ones_like(mass) if w is None else w",
    ),
    Fault(
        "mean-over-elements-instead-of-items",
        "reduction.py",
        "return math.prod(self.shape)",
        "return math.prod(self.like.shape)",
    ),
    Fault(
        "mask-by-a-product",
        "reduction.py",
        "return self.call.xp.where(keep, x, self.call.xp.zeros_like(x))",
        "return x * self.call.xp.astype(keep, x.dtype)",
    ),
    Fault(
        "rows-masked-after-the-primitive-alone",
        "reduction.py",
        "if self.keep is None:\n            return x\n",
        "if self.keep is None or rows:\n            return x\n",
    ),
    Fault(
        "mean-of-nothing-with-a-gradient",
        "reduction.py",
        "w = xp.where(d != 0, w / xp.where(d != 0, d, one), xp.zeros_like(w))",
        "w = w / d",
    ),
    Fault(
        "gradient-by-way-of-the-denominator-missing",
        "reduction.py",
        'if self.mass_pull is None or self.kind != "mean":',
        'if self.mass_pull is None or self.kind == "mean":',
    ),
)

LOSSES = (
    Fault(
        "ignore-index-as-an-index-from-the-end",
        "classification.py",
        "reduce.mask(y != ignored)",
        "reduce.mask((y != ignored) & (y != ignored + of.shape[axis]))",
    ),
    Fault(
        "soft-targets-normalised-secretly",
        "classification.py",
        'return call.unit_interval("targets", reduce.clean(to_last_axis(call, call.cast(t), axis), rows=True), axis)',
        't = call.unit_interval("targets", reduce.clean(to_last_axis(call, call.cast(t), axis), rows=True), axis)\n'
        "            mass = call.xp.sum(t, axis=-1, keepdims=True)\n"
        "            return t / call.xp.where(mass > 0, mass, call.xp.ones_like(mass))",
    ),
    Fault(
        "gradient-written-into-the-logits",
        "classification.py",
        "items = reduce.apply(primitive, x, t, c, mask, prepare=prepare, axis=axis)",
        "items = reduce.apply(primitive, x, t, c, mask, prepare=prepare, axis=axis, disposable=True)",
        ("numpy", "torch", "dask"),
    ),
    Fault(
        "hinge-with-a-slope-at-its-kink",
        "ranking.py",
        "library.xp.where(self.margin - x <= 0, ",
        "library.xp.where(self.margin - x < 0, ",
    ),
    Fault("margin-of-the-wrong-sign", "ranking.py", "short = self.margin - x", "short = -self.margin - x"),
    Fault(
        "positive-pulled-by-its-first-negative-alone",
        "ranking.py",
        "self.call.library.sum(gradient) if self.many",
        "gradient[..., 0] if self.many",
    ),
    Fault(
        "distance-without-its-square",
        "contrastive.py",
        "return (s * near) * near + ((1 - s) * short) * short",
        "return s * near + ((1 - s) * short) * short",
    ),
    Fault(
        "pairs-beyond-the-margin-still-pushed",
        "contrastive.py",
        "return near, xp.where(short <= 0, xp.zeros_like(short), short)",
        "return near, short",
    ),
    Fault(
        "gradient-nan-at-distance-0",
        "vectors.py",
        "xp.sqrt(xp.where(zero, xp.ones_like(squares), squares))",
        "xp.sqrt(squares)",
    ),
    Fault(
        "cosine-of-a-zero-vector-is-nan",
        "vectors.py",
        "direction = xp.where(zero, xp.zeros_like(y), y / root)",
        "direction = x / xp.sqrt(xp.expand_dims(call.library.sum(x * x), axis=-1))",
    ),
    Fault(
        "temperature-squared",
        "retrieval.py",
        "scores = call.library.divided(similarities, t)",
        "scores = call.library.divided(similarities, t * t)",
    ),
    Fault(
        "temperature-missing-in-the-gradient",
        "retrieval.py",
        '"positives": lambda: backs[1](to_p(gp) / t)[one]',
        '"positives": lambda: backs[1](to_p(gp))[one]',
    ),
    Fault(
        "column-loss-missing",
        "retrieval.py",
        "return None if row is None or column is None else (row + column) / 2",
        "return row",
        ("numpy", "torch"),
    ),
    Fault(
        "column-gradient-not-turned-back",
        "retrieval.py",
        "return (row + column) / 2, (g + self.columns.library.xp.matrix_transpose(h),)",
        "return (row + column) / 2, (g + h,)",
    ),
    Fault(
        "candidate-mask-drops-the-positive",
        "retrieval.py",
        "return labels, None if mask is None else mask | (xp.expand_dims(labels, axis=-1) == column)",
        "return labels, mask",
    ),
    Fault(
        "masked-query-stays-a-candidate",
        "retrieval.py",
        "if in_batch and reduce.keep is not None and reduce.keep.ndim:",
        "if in_batch and reduce.keep is not None and reduce.keep.ndim > 1:",
    ),
    Fault(
        "log-of-one-minus-p",
        "evaluation.py",
        "-library.log1p(-xp.where(one, xp.zeros_like(q), q))",
        "-xp.log(1 - xp.where(one, xp.zeros_like(q), q))",
    ),
    Fault(
        "gradient-where-probabilities-are-clipped",
        "evaluation.py",
        "return library.xp.where(kept, slope, library.xp.zeros_like(slope))",
        "return slope",
    ),
    Fault(
        "zero-log-zero-is-nan",
        "evaluation.py",
        "return t, xp.where((t == 0) & (q == 0), xp.ones_like(q), q)",
        "return t, q",
    ),
)

TRANSFORMS = (
    Fault(
        "sigmoid-as-one-minus-the-other",
        "transforms.py",
        "call.xp.where(v >= 0, 1 / (1 + e), e / (1 + e))",
        "call.xp.where(v >= 0, 1 / (1 + e), 1 - 1 / (1 + e))",
    ),
    Fault(
        "logsumexp-of-nothing-is-a-number",
        "transforms.py",
        "lse = xp.where(empty, xp.full_like(lse, -math.inf), lse)",
        "lse = lse + 0",
    ),
)

ARGUMENTS = (
    Fault(
        "weights-aligned-from-the-right",
        "inputs.py",
        "aligned = x[(..., *(None,) * (len(shape) - len(given)))] if given and len(given) < len(shape) else x",
        "aligned = x",
    ),
    Fault(
        "class-axis-swapped-instead-of-moved",
        "inputs.py",
        "return call.xp.permute_dims(x, (*(i for i in range(x.ndim) if i != axis), axis))",
        "last = x.ndim - 1\n"
        "    return call.xp.permute_dims(x, tuple({axis: last, last: axis}.get(i, i) for i in range(x.ndim)))",
    ),
    Fault(
        "labels-read-as-8-bit-integers",
        "inputs.py",
        "signed = self.xp.astype(y, self.library.index_dtype(), copy=False)",
        "signed = self.xp.astype(self.xp.astype(y, self.xp.int8), self.library.index_dtype())",
    ),
    Fault(
        "invalid-value-passes-where-nobody-may-look",
        "inputs.py",
        "return x * xp.where(bad, self.library.undefined(one), one)",
        "return x * one",
        ("jax", "dask"),
    ),
    Fault(
        "16-bit-gradient-comes-back-wide",
        "inputs.py",
        "return self.library.result(x if x.dtype == own else self.xp.astype(x, own))",
        "return self.library.result(x)",
    ),
    Fault(
        "stale-options-replayed",
        "replay.py",
        "found.append((name, type(value), value))",
        "found.append((name, type(value)))",
        ("numpy", "torch", "jax"),
    ),
    Fault(
        "two-arrays-taken-for-one-that-stood-in-both-places",
        "replay.py",
        "if len({*map(id, args)}) < len(args):",
        "if False:",
        ("numpy", "torch"),
    ),
    Fault(
        "shortcut-of-other-options",
        "replay.py",
        "or value != options[name]:",
        ":",
        ("numpy", "torch"),
    ),
    Fault(
        "replayed-call-forgets-weights-and-mask",
        "replay.py",
        "if like.keep is not None or reduction.weights is not None or reduction.mass is not None:",
        "if reduction.mass is not None:",
        ("numpy", "torch"),
    ),
    Fault(
        "classes-of-the-gradient-put-back-by-a-transposition",
        "application.py",
        "return self.library.xp.permute_dims(gradient, (*range(axis), last, *range(axis, last)))",
        "order = (*range(axis), last, *range(last - 1, axis - 1, -1))\n"
        "        return self.library.xp.permute_dims(gradient, order)",
    ),
    Fault(
        "half-of-each-direction-missing-in-the-gradient",
        "application.py",
        "self.wanted, self.scale = wanted, scale",
        "self.wanted, self.scale = wanted, 1.0",
        ("numpy", "torch"),
    ),
    Fault(
        "gradients-in-the-order-of-the-alphabet",
        "gradients.py",
        "else (wrt,) if isinstance(wrt, str) else tuple(wrt)",
        "else (wrt,) if isinstance(wrt, str) else tuple(sorted(wrt))",
    ),
    Fault(
        "keywords-of-a-partial-loss-forgotten",
        "gradients.py",
        "return formula, parameters, given + loss.args, preset | loss.keywords",
        "return formula, parameters, given + loss.args, preset",
    ),
)

# Found later, by looking for what no check saw: each has survived once, and a check was made for it.
SURVIVORS = (
    Fault(
        "shortcut-of-options-that-are-gone",
        "replay.py",
        "if len(args) != 2 or len(kwargs) != len(options):",
        "if len(args) != 2 or len(kwargs) > len(options):",
        ("numpy", "torch"),
    ),
    Fault(
        "denominator-as-a-constant",
        "reduction.py",
        "return not self.call.library.differentiates(weights, None if isinstance(divisor, int) else divisor)",
        "return not self.call.library.differentiates(weights)",
        ("torch",),
    ),
    Fault(
        "temperature-as-a-constant-of-autodiff",
        "retrieval.py",
        '    t = call.real("temperature", temperature)\n',
        '    t = call.library.stop_gradient(call.real("temperature", temperature))\n',
        ("torch", "jax"),
    ),
    Fault(
        "temperature-by-the-projected-queries",
        "retrieval.py",
        "-library.total(q * to_q(gp, gn)) / t / t",
        "-library.total(q * backs[0](to_q(gp, gn))) / t / t",
    ),
    Fault(
        "log-loss-gradient-in-targets-of-the-wrong-sign",
        "evaluation.py",
        "gt = cotangent * _minus_log(library, q)",
        "gt = -cotangent * _minus_log(library, q)",
    ),
    Fault(
        "log-loss-clips-before-its-axis-moved",
        "evaluation.py",
        "reduce.clean(to_last_axis(call, p, axis), rows=True), axis)\n        return _rows",
        "reduce.clean(p, rows=True), axis)\n        return _rows",
    ),
    Fault(
        "log-loss-eps-left-out-of-rows",
        "evaluation.py",
        'primitive = RowLogLoss(number("eps", eps, 0, 0.5))',
        'primitive = RowLogLoss(0 * number("eps", eps, 0, 0.5))',
    ),
    Fault(
        "similar-gradient-of-the-wrong-sign",
        "contrastive.py",
        '"second": -g, "similar": gs}',
        '"second": -g, "similar": None if gs is None else -gs}',
    ),
    Fault(
        "transform-not-turned-back",
        "transforms.py",
        'return call.result("x", last_axis_to(call, fast, axis))\n'
        "    v = call.cast(v)\n"
        "    through, around = _both_ways(call, v)\n"
        "    p =",
        'return call.result("x", fast)\n    v = call.cast(v)\n    through, around = _both_ways(call, v)\n    p =',
        ("numpy", "torch"),
    ),
    Fault(
        "logsumexp-keeps-a-dimension-elsewhere",
        "transforms.py",
        "call.xp.expand_dims(fast, axis=axis) if keepdims",
        "call.xp.expand_dims(fast, axis=-1) if keepdims",
        ("numpy", "torch"),
    ),
    Fault(
        "own-negatives-beside-the-batch-pulled-by-half",
        "retrieval.py",
        "g = g + library.matmul(xp.expand_dims(gn, axis=-2), n)[:, 0, :]",
        "g = g + library.matmul(xp.expand_dims(gn, axis=-2), n)[:, 0, :] * (0.5 if in_batch else 1.0)",
    ),
    Fault(
        "ignored-labels-of-unsigned-targets",
        "inputs.py",
        "signed = self.xp.astype(y, self.library.index_dtype(), copy=False)",
        "signed = self.xp.astype(y, self.library.index_dtype(), copy=False)\n"
        '        if self._kind(y.dtype) == "uint":\n'
        "            signed = self.xp.where(signed > 254, signed - 256, signed)",
    ),
)

FAULTS = PRIMITIVES + REDUCTION + LOSSES + TRANSFORMS + ARGUMENTS + SURVIVORS
