"""Faults in what polyloss knows of each array library, above all in who differentiates."""

from __future__ import annotations

from polyloss.conformance.faults.fault import HOST, Fault

__all__ = ["FAULTS"]

EVERY_LIBRARY = (
    Fault(
        "sums-lose-what-is-beyond-a-power-of-two",
        "backends/__init__.py",
        "x = self.xp.concat([x[..., : n - power] + x[..., power:], x[..., n - power : power]], axis=-1)",
        "x = x[..., :power]",
        ("torch",),
    ),
)

NUMPY = (
    Fault(
        "sums-one-after-the-other",
        "backends/numpy.py",
        "return np.sum(np.ascontiguousarray(x), axis=-1) if np.ndim(x) else x",
        "return np.cumsum(x, axis=-1)[..., -1] if np.size(x) else np.sum(x, axis=-1)",
        ("numpy", "dask"),
    ),
    Fault(
        "fortran-order-read-as-c-order",
        "backends/numpy.py",
        "return bool(flags.c_contiguous and flags.aligned)",
        "return bool(flags.forc and flags.aligned)",
        ("numpy", "dask"),
    ),
    Fault(
        "count-of-an-earlier-call-replayed",
        "backends/numpy.py",
        "return (x.dtype, x.shape) if",
        "return (x.dtype, x.ndim) if",
        ("numpy",),
    ),
    Fault(
        "shortcut-of-another-count-of-classes",
        "backends/numpy.py",
        "and (x.dtype, x.shape) == like_x",
        "and x.dtype == like_x[0]",
        ("numpy",),
    ),
    Fault(
        "shortcut-of-another-layout",
        "backends/numpy.py",
        "and (flags := y.flags).c_contiguous",
        "and (flags := y.flags).aligned",
        ("numpy",),
    ),
)

TORCH = (
    Fault(
        "rule-of-torch-without-the-cotangent",
        "backends/torch.py",
        "gradients = primitive.vjp(library, cotangents[0], wanted, residuals, *arrays)",
        "gradients = primitive.vjp(library, torch.ones_like(cotangents[0]), wanted, residuals, *arrays)",
        ("torch",),
    ),
    Fault(
        "kernel-rule-of-torch-without-the-cotangent",
        "backends/torch.py",
        "gradient = gradient * cotangent",
        "gradient = gradient",
        ("torch",),
    ),
    Fault(
        "shortcut-of-tensors-that-are-not-looked-at",
        "backends/torch.py",
        "return usual and is_like(x, y)",
        "return usual",
        ("torch",),
    ),
    Fault(
        "large-gradient-without-the-cotangent",
        "backends/torch.py",
        "work.scale = float(cotangent)",
        "work.scale = 1.0",
        ("torch",),
    ),
    Fault(
        "16-bit-gradient-rounded-before-its-cotangent",
        "backends/torch.py",
        "x.numel() <= SMALL and x.dtype in _WIDE",
        "x.numel() <= SMALL",
        ("torch",),
    ),
    Fault(
        "every-cotangent-taken-for-an-expanded-one",
        "backends/torch.py",
        "work.weights = cotangent if work.weights is None",
        "cotangent = cotangent.reshape(-1)[0].expand_as(cotangent)\n"
        "        work.weights = cotangent if work.weights is None",
        ("torch",),
    ),
    Fault(
        "residuals-as-constants-of-the-second-derivative",
        "backends/torch.py",
        "if torch.is_grad_enabled():  # create_graph: the formula is differentiable, residuals are not",
        "if not torch.is_grad_enabled():",
        ("torch",),
    ),
    Fault(
        "second-derivative-without-the-cotangent's",
        "backends/torch.py",
        "torch.autograd.grad(result, arrays[0], cotangent, create_graph=create_graph)",
        "torch.autograd.grad(result, arrays[0], cotangent.detach(), create_graph=create_graph)",
        ("torch",),
    ),
    Fault(
        "compiled-rule-without-the-cotangent",
        "backends/torch.py",
        "_slopes(*ctx.primitive, cotangent, *ctx.saved_tensors)",
        "_slopes(*ctx.primitive, torch.ones_like(cotangent), *ctx.saved_tensors)",
        ("torch",),
    ),
    Fault(
        "steps-of-a-vector-ignored",
        "backends/torch.py",
        "return bool(x.is_contiguous()) and not x.is_neg()",
        "return bool(x.is_contiguous()) or (x.ndim == 1 and x.stride(0) > 1)",
        ("torch",),
    ),
    Fault(
        "autocast-lowers-the-products",
        "backends/torch.py",
        "torch.autocast(kind, enabled=False) if lowering else nullcontext()",
        "torch.autocast(kind, enabled=True) if lowering else nullcontext()",
        ("torch",),
    ),
)

JAX = (
    Fault(
        "rule-of-jax-without-the-tangent",
        "backends/jax.py",
        "part = gradient * t",
        "part = gradient",
        ("jax",),
    ),
    Fault(
        "only-the-last-tangent-counts",
        "backends/jax.py",
        "tangent = tangent + (part if part.ndim",
        "tangent = (part if part.ndim",
        ("jax",),
    ),
    Fault(
        "jvp-of-the-vjp-is-0",
        "backends/jax.py",
        "gradients = primitive.vjp(LIBRARY, jnp.ones_like(items), wanted, None, *arrays)",
        "gradients = primitive.vjp(LIBRARY, jnp.ones_like(items), wanted, None, *jax.lax.stop_gradient(arrays))",
        ("jax",),
    ),
    Fault(
        "sums-in-16-bits",
        "backends/jax.py",
        "return jnp.sum(x, axis=-1)",
        "return jnp.sum(x.astype(jnp.float16), axis=-1).astype(x.dtype)",
        ("jax",),
    ),
    Fault(
        "log1p-of-the-compiler-trusted",
        "backends/jax.py",
        "return jnp.where(x < -0.25, jnp.log(1 + x), jnp.log1p(x))",
        "return jnp.log1p(x)",
        ("jax",),
    ),
    Fault(
        "flag-of-an-invalid-value-never-read",
        "backends/jax.py",
        'if invalid is not None and self.memory(invalid) == "host" and bool(invalid):',
        'if invalid is not None and self.memory(invalid) == "cuda" and bool(invalid):',
        ("jax",),
    ),
    Fault(
        "transposed-kernel-without-the-cotangent",
        "backends/jax_kernels.py",
        "else _slopes.bind(cotangent, x, *rest[:-1], **options)",
        "else _slopes.bind(jnp.ones_like(cotangent), x, *rest[:-1], **options)",
        ("jax",),
    ),
    Fault(
        "forward-tangent-of-elements-not-applied",
        "backends/jax_kernels.py",
        "return _contracted(slopes, tangent) if of.rows else slopes * tangent",
        "return _contracted(slopes, tangent) if of.rows else slopes",
        ("jax",),
    ),
    Fault(
        "slopes-of-the-kernel-without-a-derivative",
        "backends/jax_kernels.py",
        "    if moving:\n",
        "    if moving and linear != 0:\n",
        ("jax",),
    ),
    Fault(
        "batch-axis-not-moved",
        "backends/jax_kernels.py",
        "jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)",
        "jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.reshape(x, (size, *x.shape[1:]))",
        ("jax",),
    ),
)

DASK = (
    Fault(
        "mean-of-the-means-of-blocks",
        "backends/dask.py",
        "return da.sum(x, dtype=wide).astype(x.dtype)",
        "return (da.reduction(x, np.mean, np.mean, dtype=wide) * x.size).astype(x.dtype)",
        ("dask",),
    ),
    Fault(
        "one-cotangent-for-a-whole-block",
        "backends/dask.py",
        "if any(application.library.strides(cotangent)):",
        "if cotangent.ndim > 2:",
        ("dask",),
    ),
)

HOST_CALLS = (
    Fault(
        "partial-sums-in-16-bits",
        "backends/cpu/call.py",
        "return float(np.sum(parts))",
        "return float(np.sum(parts.astype(np.float16), dtype=np.float64))",
        HOST,
    ),
    Fault(
        "last-partial-sum-forgotten",
        "backends/cpu/call.py",
        "return math.fsum(parts.tolist())",
        "return math.fsum(parts.tolist()[: max(parts.size - 1, 1)])",
        HOST,
    ),
    Fault(
        "class-mask-of-the-first-row-for-all",
        "backends/cpu/lse.py",
        "return operand(work, mask, (*items, classes)), classes",
        "return operand(work, mask, (*items, classes)), 0",
        HOST,
    ),
    Fault(
        "smoothing-leaves-the-target-whole",
        "backends/cpu/lse.py",
        "            1 - e,\n",
        "            1.0,\n",
        HOST,
    ),
    Fault(
        "binary-smoothing-not-halved",
        "backends/cpu/softplus.py",
        "1 - e, e / 2, work.factor",
        "1 - e, e, work.factor",
        HOST,
    ),
    Fault(
        "z-loss-left-out-of-prepared-parameters",
        "backends/cpu/lse.py",
        "0, sums, 0, 0, g, 0, 1 - e, e, z, factor)",
        "0, sums, 0, 0, g, 0, 1 - e, e, 0, factor)",
        ("numpy", "torch"),
    ),
    Fault(
        "invalid-targets-pass-the-kernel",
        "backends/cpu/softplus.py",
        "if bad and not work.poison:",
        "if bad and work.poison:",
        ("numpy", "torch"),
    ),
    Fault(
        "first-block-lost-between-threads",
        "backends/cpu/threads.py",
        "progress = Progress()",
        "progress = Progress(1, 1, 0)",
        ("numpy", "torch"),
        processors=2,
    ),
    Fault(
        "invalid-target-forgotten-by-threads",
        "backends/cpu/threads.py",
        "return progress[2]",
        "return 0",
        ("numpy", "torch"),
        processors=2,
    ),
)

# Found later, by looking for what no check saw: each has survived once, and a check was made for it.
SURVIVORS = (
    Fault(
        "class-mask-that-differs-along-the-second-axis-alone",
        "backends/cpu/lse.py",
        "if not any(step for n, step in zip(items, work.library.strides(mask)) if n > 1):\n"
        "        return operand(work, mask[",
        "if not any(step for n, step in zip(items[:1], work.library.strides(mask)) if n > 1):\n"
        "        return operand(work, mask[",
        HOST,
    ),
    Fault(
        "smoothing-halved-in-jax",
        "backends/cpu/xla.py",
        "(LSE.smoothing, smoothing)",
        "(LSE.smoothing, smoothing / 2)",
        ("jax",),
    ),
    Fault(
        "first-pos-weight-for-all-in-jax",
        "backends/cpu/xla.py",
        'if name in ("x", "t", "p", "w"):',
        'if name in ("x", "t", "w"):',
        ("jax",),
    ),
    Fault(
        "derivative-in-targets-of-the-wrong-sign-in-jax",
        "backends/jax_kernels.py",
        "tangent += _contracted(slopes, t) if primitive.rows else slopes * t",
        "tangent += _contracted(slopes, t) if primitive.rows else slopes * (t if i > 1 else -t)",
        ("jax",),
    ),
    Fault(
        "xla's-own-loop-with-the-label's-slope-off",
        "backends/jax_labels.py",
        "jnp.exp(-gap) * share - 1)",
        "jnp.exp(-gap) - 1)",
        ("jax",),
    ),
    Fault(
        "forward-over-forward-without-the-tangent",
        "backends/jax_kernels.py",
        "            return _contracted(slopes, tangent) if primitive.rows else slopes * tangent\n\n        parts",
        "            return _contracted(slopes, 2 * tangent) if primitive.rows else slopes * tangent\n\n        parts",
        ("jax",),
    ),
    Fault(
        "mixed-derivative-missing-in-jax",
        "backends/jax_kernels.py",
        "moving = [i for i in range(first, first + 1 + count) if",
        "moving = [i for i in range(first, first + 1) if",
        ("jax",),
    ),
    Fault(
        "mixed-derivative-missing-in-torch",
        "backends/torch.py",
        "            residuals = None\n",
        "            residuals, arrays = None, (arrays[0], *(a if a is None else a.detach() for a in arrays[1:]))\n",
        ("torch",),
    ),
    Fault(
        "pos-weight-lost-by-compiled-code",
        "backends/torch.py",
        "work = Work(primitive, LIBRARY, x.dtype, (x.contiguous(), t, a), x.ndim - 1, poison=True)",
        "work = Work(primitive, LIBRARY, x.dtype, (x.contiguous(), t, None), x.ndim - 1, poison=True)",
        ("torch",),
    ),
    Fault(
        "options-swapped-for-compiled-code",
        "backends/torch.py",
        "found: Primitive = getattr(importlib.import_module(module), kind)(*options)",
        "found: Primitive = getattr(importlib.import_module(module), kind)(*options[::-1])",
        ("torch",),
    ),
    Fault(
        "shortcut-without-a-graph-after-no-grad",
        "backends/torch.py",
        "usual = is_grad_enabled() is differentiating and forward_ad",
        "usual = forward_ad",
        ("torch",),
    ),
    Fault(
        "strided-logits-read-side-by-side-by-transforms",
        "backends/cpu/host.py",
        "x = x if library.is_contiguous(x) else library.contiguous(x)\n        out",
        "out",
        ("numpy", "torch"),
    ),
    Fault(
        "batched-backward-twice-as-large",
        "backends/torch.py",
        "        return _differentiable(work, formula, cotangent, (x, *arrays[1:]), create_graph=False)",
        "        return 2 * _differentiable(work, formula, cotangent, (x, *arrays[1:]), create_graph=False)",
        ("torch",),
    ),
    Fault(
        "reversed-array-read-forwards",
        "backends/strided.py",
        "columns, step[-1]]",
        "columns, abs(step[-1])]",
        ("numpy",),
    ),
    Fault(
        "only-the-last-axis-counts-in-jax",
        "backends/cpu/xla.py",
        "return _plan(TOTAL, BLOCK, fields)",
        "return _plan(LAST, BLOCK, fields)",
        ("jax",),
    ),
)

FAULTS = EVERY_LIBRARY + NUMPY + TORCH + JAX + DASK + HOST_CALLS + SURVIVORS
