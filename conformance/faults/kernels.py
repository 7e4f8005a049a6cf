"""Faults in the kernels for host memory: in what is compiled."""

from __future__ import annotations

from polyloss.conformance.faults.fault import KERNELS, Fault

__all__ = ["FAULTS"]

ROWS = (
    Fault(
        "label-wrapped-from-the-end",
        "backends/cpu/rows.py",
        "                    if y < 0 or y >= classes:\n",
        "                    if y < 0 and y >= -classes:\n"
        "                        y += classes\n"
        "                    if y < 0 or y >= classes:\n",
        KERNELS,
    ),
    Fault(
        "last-row-skipped",
        "backends/cpu/rows.py",
        "last if last < rows else rows):",
        "last if last < rows else rows - 1):",
        KERNELS,
    ),
    Fault(
        "tail-of-a-row-skipped",
        "backends/cpu/rows.py",
        "for k in range(start, stop):\n            e = exp_lifted(",
        "for k in range(start, stop - (stop - start) % 4):\n            e = exp_lifted(",
        KERNELS,
    ),
    Fault(
        "nan-dropped",
        "backends/cpu/rows.py",
        "            s += e\n        return s\n",
        "            s += e if e == e else zero\n        return s\n",
        KERNELS,
    ),
    Fault(
        "two-infinite-logits-are-not-nan",
        "backends/cpu/rows.py",
        "rest = rest if tops < 2 else math.nan",
        "rest = rest if tops < 2 else 1.0",
        KERNELS,
    ),
    Fault(
        "confident-row-by-subtraction",
        "backends/cpu/rows.py",
        "if not rest >= 0.5:",
        "if rest != rest:",
        KERNELS,
    ),
    Fault(
        "kernel's-gradient-off-by-1e-4",
        "backends/cpu/rows.py",
        "scaled(row, top, factor * ((q + pull) / norm), g, n)",
        "scaled(row, top, real(1.0001) * factor * ((q + pull) / norm), g, n)",
        KERNELS,
    ),
    Fault(
        "kernel-without-the-cotangent",
        "backends/cpu/rows.py",
        "slope(row, out, classes, y, xy, top, others, q, z, weight * scale)",
        "slope(row, out, classes, y, xy, top, others, q, z, scale)",
        KERNELS,
    ),
    Fault(
        "rows-race-for-one-place-of-their-statistics",
        "backends/cpu/rows.py",
        "                    write(rests, r, others)\n",
        "                    write(rests, r, others)\n"
        "                    if r & 1 != 0:\n"
        "                        write(rests, r - 1, others)\n",
        ("torch", "jax"),  # who differentiate by what the forward pass has left
    ),
    Fault(
        "offsets-overflow",
        "backends/cpu/rows.py",
        "row = shift(xp, i * field(f, F.x0) + j * field(f, F.x1))",
        "offset = i * field(f, F.x0) + j * field(f, F.x1)\n"
        "                row = shift(xp, offset if offset < 65536 else offset & 65535)",
        KERNELS,
    ),
)

SOFT = (
    Fault(
        "smoothing-reaches-masked-classes",
        "backends/cpu/soft.py",
        "spread = share if flag(mask, k) != zero else zero",
        "spread = share",
        KERNELS,
    ),
    Fault(
        "kernel-smooths-by-one-class-too-few",
        "backends/cpu/soft.py",
        "share = smoothing / real(count) if count > 0 else smoothing",
        "share = smoothing / real(count - 1) if count > 1 else smoothing",
        KERNELS,
    ),
    Fault(
        "tied-maxima-left-out-by-the-kernel",
        "backends/cpu/soft.py",
        "s += zero if k == a else exp_neg(logit(row, mask, k) - top)",
        "s += zero if logit(row, mask, k) == top else exp_neg(logit(row, mask, k) - top)",
        KERNELS,
    ),
    Fault(
        "zero-target-on-an-infinite-gap-is-nan",
        "backends/cpu/soft.py",
        "gap = zero if (q == zero) & (gap == inf) else gap",
        "gap = gap + zero",
        KERNELS,
    ),
    Fault(
        "class-weights-miss-the-smoothing",
        "backends/cpu/soft.py",
        "            q *= read(c, k)\n",
        "            q = t * kept * read(c, k) + spread\n",
        KERNELS,
    ),
)

LANES = (
    Fault(
        "label-clamped-by-the-kernel",
        "backends/cpu/lanes.py",
        "ok = (label >= zero) & (label < real(classes))",
        "label = zero if label < zero else (label if label < real(classes) else real(classes - 1))\n"
        "                ok = label == label",
        KERNELS,
    ),
    Fault(
        "last-lanes-skipped",
        "backends/cpu/lanes.py",
        "n = inner - j0 if inner - j0 < LANES else LANES",
        "n = inner - j0 if inner - j0 < LANES else LANES\n            n -= n % 4 if n > 4 else 0",
        KERNELS,
    ),
    Fault(
        "infinite-logit-minus-itself",
        "backends/cpu/lanes.py",
        "gap = zero if a == m else m - a",
        "gap = m - a",
        KERNELS,
    ),
    Fault(
        "class-stride-ignored",
        "backends/cpu/lanes.py",
        "store(tx, k * LANES + j, load_x(base, j * x1 + k * x2))",
        "store(tx, k * LANES + j, load_x(base, j * x1 + k * (x2 if x2 < 1 else 1)))",
        KERNELS,
    ),
    Fault(
        "tied-tops-counted-once",
        "backends/cpu/lanes.py",
        "load_double(high, j) + float(count)",
        "load_double(high, j) + 1.0",
        KERNELS,
    ),
)

ELEMENTS = (
    Fault(
        "steps-between-elements-ignored",
        "backends/cpu/elements.py",
        "store(out, j, load(base, i * row + k * column))",
        "store(out, j, load(base, i * row + k * (column if column < 1 else 1)))",
        KERNELS,
    ),
    Fault(
        "tail-of-a-block-not-summed",
        "backends/cpu/elements.py",
        "        for j in range(n):\n            s += load(lb, j)\n",
        "        for j in range(n - (n % 4 if n > 4 else 0)):\n            s += load(lb, j)\n",
        ("numpy", "torch"),
    ),
    Fault(
        "large-arrays-wrap-around",
        "backends/cpu/elements.py",
        "at = block * BLOCK\n",
        "at = (block * BLOCK) & 65535\n",
        KERNELS,
    ),
    Fault(
        "weights-missing-in-the-kernel's-gradient",
        "backends/cpu/elements.py",
        "store_gradient(g, at + j, w * scale * slope(xj, a, b, e))",
        "store_gradient(g, at + j, scale * slope(xj, a, b, e))",
        KERNELS,
    ),
    Fault(
        "masked-logit-read-by-the-kernel",
        "backends/cpu/elements.py",
        "store(xb, j, zero if off else load(xb, j))",
        "store(xb, j, load(xb, j))",
        ("numpy", "torch"),
    ),
    Fault(
        "smoothed-target-subtracted-from-1",
        "backends/cpu/elements.py",
        "return p * (t * keep + smooth), (one - t) * keep + smooth",
        "return p * (t * keep + smooth), one - (t * keep + smooth)",
        KERNELS,
    ),
)

ARITHMETIC = (
    Fault(
        "subnormal-numbers-flushed-to-0",
        "backends/cpu/arithmetic.py",
        "return exp_lifted(x) * drop",
        "y = exp_lifted(x) * drop\n"
        "        return zero if y < real(1.1754943508222875e-38 if single else 2.2250738585072014e-308) else y",
        KERNELS,
    ),
    Fault(
        "bits-of-a-nan-in-the-exponent",
        "backends/cpu/arithmetic.py",
        "return e * from_bits(bits(shifted) << mantissa)",
        "return from_bits(bits(e) + ((bits(shifted) << mantissa) - (integer(127 if single else 1023) << mantissa)))",
        KERNELS,
    ),
    Fault(
        "bfloat16-truncated",
        "backends/cpu/arithmetic.py",
        'builder.select(builder.fcmp_unordered("uno", x, x), nan, rounded)',
        'builder.select(builder.fcmp_unordered("uno", x, x), nan, bits)',
        ("numpy", "torch"),
    ),
    Fault(
        "row-statistics-in-16-bits",
        "backends/cpu/arithmetic.py",
        "        u = one + x\n",
        "        x = from_bits((bits(x) >> 13) << 13)\n        u = one + x\n",
        KERNELS,
    ),
    Fault(
        "exponential-one-term-short",
        "backends/cpu/arithmetic.py",
        "0.00836875088853, 0.00138144755195)",
        "0.00836875088853)",
        KERNELS,
    ),
    Fault(
        "constant-of-single-precision-among-doubles",
        "backends/cpu/arithmetic.py",
        "log2 = real(0.6931471805599453)",
        "log2 = real(np.float32(0.6931471805599453))",
        KERNELS,
    ),
)

TRANSFORMS = (
    Fault(
        "log-softmax-by-subtraction",
        "backends/cpu/transforms.py",
        "store(out, k, (zero if v == top else v - top) - tail)",
        "store(out, k, v - (top + tail))",
        ("numpy", "torch"),
    ),
    Fault(
        "logsumexp-of-minus-infinities-is-nan",
        "backends/cpu/transforms.py",
        "if top == inf or top == -inf:  # however",
        "if top == inf:  # however",
        ("numpy", "torch"),
    ),
    Fault(
        "logsumexp-of-infinity-beside-a-nan",
        "backends/cpu/transforms.py",
        "lse = lse if v == v else v",
        "lse += zero",
        ("numpy", "torch"),
    ),
)

# Found later, by looking for what no check saw: each has survived once, and a check was made for it.
SURVIVORS = (
    Fault(
        "mask-of-each-element-read-by-rows",
        "backends/cpu/elements.py",
        "gather_flag(lb, kp, field(f, F.keep0), field(f, F.keep1), columns, at, n)",
        "gather_flag(lb, kp, field(f, F.keep0), 0 if columns != size else field(f, F.keep1), columns, at, n)",
        ("numpy", "torch"),
    ),
    Fault(
        "weights-of-each-column-read-as-one",
        "backends/cpu/elements.py",
        "gather_own(wb, wp, field(f, F.w0), field(f, F.w1), columns, at, n)",
        "gather_own(wb, wp, field(f, F.w0), field(f, F.w1) if field(f, F.w0) != 0 else 0, columns, at, n)",
        ("numpy", "torch"),
    ),
    Fault(
        "targets-of-16-bits-read-as-8",
        "backends/cpu/arithmetic.py",
        '"int16": ir.IntType(16)',
        '"int16": ir.IntType(8)',
        ("numpy", "torch"),
    ),
    Fault(
        "lanes-lose-a-block-where-they-are-full",
        "backends/cpu/lanes.py",
        "per = quotient(inner + LANES - 1, LANES)",
        "per = quotient(inner, LANES) + 1",
        ("numpy", "torch"),
    ),
    Fault(
        "soft-targets-beyond-512-classes-lost",
        "backends/cpu/soft.py",
        "linear, lost = compensated(linear, lost, float(gaps))",
        "linear, lost = compensated(linear, lost, float(gaps) if k < 512 else 0.0)",
        ("numpy", "torch"),
    ),
    Fault(
        "second-block-of-exponentials-counts-from-the-start",
        "backends/cpu/soft.py",
        "float(exponentials(row, mask, top, a, k, end))",
        "float(exponentials(row, mask, top, a, 0 if k > 256 else k, end))",
        ("numpy", "torch"),
    ),
    Fault(
        "gradient-of-masked-16-bit-rows-left-as-it-was",
        "backends/cpu/rows.py",
        "                        for k in range(classes):\n                            store(out, k, zero)\n",
        "                        for k in range(classes if x == wide else 0):\n"
        "                            store(out, k, zero)\n",
        ("numpy", "torch"),
    ),
    Fault(
        "last-element-lost-beyond-4096",
        "backends/cpu/elements.py",
        "n = min(BLOCK, size - at)",
        "n = min(BLOCK, size - at) - (1 if size - at == 1 and size > 4096 else 0)",
        ("numpy", "torch"),
    ),
    Fault(
        "label's-logit-read-after-the-gradient-took-its-place",
        "backends/cpu/rows.py",
        "gap = zero if xy == top else top - xy",
        "gap = zero if xy == top else top - load(row, y)",
        ("numpy", "torch"),
    ),
)

FAULTS = ROWS + SOFT + LANES + ELEMENTS + ARITHMETIC + TRANSFORMS + SURVIVORS
