"""What a second hunt planted and the checks let through at first: guards taken away, options that meet."""

from __future__ import annotations

from polyloss.conformance.faults.fault import HOST, Fault

__all__ = ["FAULTS"]

FAULTS = (
    Fault(
        "weights-of-an-earlier-block-kept-behind-a-mask",
        "backends/cpu/elements.py",
        "store(wb, j, zero if off else (load(wb, j) if field(f, F.w) != 0 else one))",
        "store(wb, j, zero if off else load(wb, j))",
        HOST,
    ),
    Fault(
        "weight-0-times-infinity-in-long-rows",
        "backends/cpu/rows.py",
        "item = q * limit(q, gap) + q * tail",
        "item = q * gap + q * tail",
        HOST,
    ),
    Fault(
        "gradient-of-a-part-of-an-array-put-elsewhere",
        "backends/cpu/lse.py",
        "if g_steps is not None and g_steps[3] == steps[3]:",
        "if g_steps is not None:",
        HOST,
    ),
    Fault(
        "a-replay-differentiated-twice-forgets-its-options",
        "replay.py",
        'options = {name: value for name, value in kwargs.items() if name != "denominator"} | {"reduction": "none"}',
        'options = {"reduction": "none"}',
        ("torch",),
    ),
    Fault(
        "an-option-of-another-type-is-taken-after-an-equal-one",
        "replay.py",
        "if name not in options or type(value) is not type(options[name]) or value != options[name]:",
        "if name not in options or value != options[name]:",
        ("numpy", "torch"),
    ),
    Fault(
        "a-shortcut-loses-the-tangent",
        "backends/torch.py",
        "usual = is_grad_enabled() is differentiating and forward_ad._current_level < 0 and not _modes()",
        "usual = is_grad_enabled() is differentiating and not _modes()",
        ("torch",),
    ),
    Fault(
        "a-shortcut-hides-the-loss-from-a-trace",
        "backends/torch.py",
        "usual = is_grad_enabled() is differentiating and forward_ad._current_level < 0 and not _modes()",
        "usual = is_grad_enabled() is differentiating and forward_ad._current_level < 0",
        ("torch",),
    ),
    Fault(
        "nothing-to-average-has-a-nan-for-its-second-derivative",
        "backends/torch.py",
        "result = result / work.divisor if work.divisor else result * 0",
        "result = result / work.divisor",
        ("torch",),
    ),
    Fault(
        "compiled-targets-get-no-gradient",
        "backends/torch.py",
        "        and all(a is None or not a.requires_grad for a in others)\n",
        "",
        ("torch",),
    ),
    Fault(
        "kernels-in-compiled-code-under-torch-func",
        "backends/torch.py",
        "return _level() is None and not dispatch.is_generic()",
        "return not dispatch.is_generic()",
        ("torch",),
    ),
    Fault(
        "loops-of-labels-forget-smoothing",
        "backends/jax_labels.py",
        "        and not (primitive.label_smoothing or primitive.z_loss)  # type: ignore[attr-defined]\n",
        "",
        ("jax",),
    ),
    Fault(
        "a-negative-view-read-as-it-lies-in-memory",
        "backends/torch.py",
        "and x.layout is torch.strided and not x.is_neg()",
        "and x.layout is torch.strided",
        ("torch",),
    ),
    Fault(
        "results-need-a-gradient-that-arguments-by-name-need",
        "gradients.py",
        "{name: dispatch.detached(x) for name, x in (preset | kwargs).items()} if preset or kwargs else kwargs",
        "preset | kwargs",
        ("torch",),
    ),
    Fault(
        "labels-beyond-32-bits-wrapped",
        "backends/jax.py",
        "value = np.clip(value, np.iinfo(kept).min, np.iinfo(kept).max).astype(kept)",
        "value = value.astype(kept)",
        ("jax",),
    ),
    Fault(
        "one-weight-of-a-block-for-all-of-its-rows",
        "backends/dask.py",
        "if any(application.library.strides(cotangent)):",
        "if cotangent.ndim and application.library.strides(cotangent)[-1]:",
        ("dask",),
    ),
    Fault(
        "a-denominator-gets-no-gradient",
        "reduction.py",
        "        if weights is None and divisor is None:\n            return True\n",
        "        if weights is None:\n            return True\n",
        ("torch", "jax"),
    ),
    Fault(
        "a-number-decides-the-dtype",
        "inputs.py",
        "self._widest([arrays[name] for name in deciding])",
        "self._widest(arrays.values())",
        ("numpy",),
    ),
    Fault(
        "a-list-read-in-the-default-dtype",
        "inputs.py",
        "dtype = self.dtype or self.library.float_dtype(numbers_)",
        "dtype = self.library.float_dtype(numbers_)",
        ("torch",),
    ),
    Fault(
        "a-label-beyond-63-bits-is-ignored",
        "inputs.py",
        "return self.xp.where(signed < 0, self.xp.full_like(signed, self.xp.iinfo(signed.dtype).min), signed)",
        "return signed",
        ("numpy", "torch"),
    ),
    Fault(
        "an-error-names-the-place-in-another-order-of-axes",
        "inputs.py",
        "x, bad = (x, bad) if axis is None else (last_axis_to(self, x, axis), last_axis_to(self, bad, axis))",
        "x, bad = x, bad",
        ("numpy", "torch"),
    ),
)
