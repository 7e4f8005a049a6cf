"""What the kernels compute with: memory by address, and exp and log1p that LLVM vectorises.

LLVM keeps a call of ``math.exp`` in a loop scalar, so exp and log1p are polynomials of our own, about 1 ulp. They need
no flag but ``contract``: ``reassoc`` would delete the rounding by a magic number, and stands only on the functions that
sum. Memory is read and written by intrinsics, in any type that NumPy or torch store; 16-bit floats widen on the way.

Numba is imported here and in the kernels alone, and they are imported only to compile.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "POINTER",
    "STRICT",
    "SUMMING",
    "arithmetic",
    "compensated",
    "field",
    "memory",
    "number",
    "pointer",
    "quotient",
    "whole",
]

_INNER = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by kernels alone

STRICT = {**_INNER, "fastmath": {"contract", "nsz"}}
"""Options of functions in which no operation may be moved."""

SUMMING = {**_INNER, "fastmath": {"contract", "nsz", "reassoc"}}
"""Options of functions that do nothing but sum or take a maximum, in vector lanes."""

POINTER = types.voidptr

_STORED = {  # how a dtype lies in memory
    "bool": ir.IntType(8),
    "int8": ir.IntType(8),
    "uint8": ir.IntType(8),
    "int16": ir.IntType(16),
    "uint16": ir.IntType(16),
    "int32": ir.IntType(32),
    "uint32": ir.IntType(32),
    "int64": ir.IntType(64),
    "uint64": ir.IntType(64),
    "float16": ir.HalfType(),
    "bfloat16": ir.IntType(16),
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
}


def _address(builder: Any, base: Any, index: Any, stored: Any) -> Any:
    return builder.gep(builder.bitcast(base, stored.as_pointer()), [index])


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(POINTER))

    return POINTER(types.int64), generate


@intrinsic
def whole(context: Any, x: Any) -> Any:
    """A float that holds an integer as one. (``int`` would be a function of its own to compile.)"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fptosi(args[0], ir.IntType(64))

    return types.int64(x), generate


@intrinsic
def quotient(context: Any, a: Any, b: Any) -> Any:
    """A // b of natural numbers, b above 0; Numba's own could raise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.udiv(args[0], args[1])

    return types.int64(types.int64, types.int64), generate


def _slot(result: Any, stored: Any) -> Any:
    @intrinsic
    def read(context: Any, fields: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_address(builder, args[0], args[1], stored))

        return result(POINTER, types.int64), generate

    return read


field = _slot(types.int64, ir.IntType(64))
number = _slot(types.float64, ir.DoubleType())


@functools.cache
def memory(dtype: str, wide: str) -> SimpleNamespace:
    """``load(p, i)`` and ``store(p, i, x)`` of that dtype in memory, for numbers that are ``wide`` in registers.

    ``shift(p, i)`` is the pointer to element i.
    """
    stored, number = _STORED[dtype], getattr(types, wide)
    register = ir.DoubleType() if wide == "float64" else ir.FloatType()

    def widen(builder: Any, x: Any) -> Any:
        if dtype == "bfloat16":  # the upper half of a float32
            bits = builder.shl(builder.zext(x, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            x = builder.bitcast(bits, ir.FloatType())
            return x if wide == "float32" else builder.fpext(x, register)
        if dtype == "float16":
            return builder.fpext(x, register)
        if dtype in ("bool", "uint8", "uint16", "uint32", "uint64"):
            return builder.uitofp(x, register)
        if dtype.startswith("int"):
            return builder.sitofp(x, register)
        if dtype == wide:
            return x
        return builder.fpext(x, register) if wide == "float64" else builder.fptrunc(x, register)

    def narrow(builder: Any, x: Any) -> Any:
        if dtype == "float16":
            return builder.fptrunc(x, stored)
        if dtype == "bfloat16":
            word = ir.IntType(32)
            bits = builder.bitcast(x, word)
            upper = builder.lshr(bits, ir.Constant(word, 16))
            odd = builder.and_(upper, ir.Constant(word, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))  # to nearest, ties to even
            nan = builder.or_(bits, ir.Constant(word, 0x400000))
            bits = builder.select(builder.fcmp_unordered("uno", x, x), nan, rounded)
            return builder.trunc(builder.lshr(bits, ir.Constant(word, 16)), stored)
        return x

    @intrinsic
    def load(context: Any, base: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return widen(builder, builder.load(_address(builder, args[0], args[1], stored)))

        return number(POINTER, types.int64), generate

    @intrinsic
    def store(context: Any, base: Any, index: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(narrow(builder, args[2]), _address(builder, args[0], args[1], stored))
            return context.get_dummy_value()

        return types.none(POINTER, types.int64, number), generate

    @intrinsic
    def shift(context: Any, base: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(_address(builder, args[0], args[1], stored), args[0].type)

        return POINTER(POINTER, types.int64), generate

    return SimpleNamespace(load=load, store=store, shift=shift)


def buffer(dtype: str, count: int) -> Any:
    """A function that returns ``count`` numbers of memory on the stack."""
    stored = _STORED[dtype]

    @intrinsic
    def allocate(context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            space = cgutils.alloca_once(builder, ir.ArrayType(stored, count))
            space.align = 64
            return builder.bitcast(space, context.get_value_type(POINTER))

        return POINTER(), generate

    return allocate


@functools.cache
def arithmetic(wide: str) -> SimpleNamespace:
    """The functions and constants of one register type."""
    single = wide == "float32"
    real = np.float32 if single else np.float64
    number = getattr(types, wide)
    whole = types.int32 if single else types.int64
    integer = np.int32 if single else np.int64
    register = ir.FloatType() if single else ir.DoubleType()
    word = ir.IntType(32) if single else ir.IntType(64)

    @intrinsic
    def bits(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], word)

        return whole(number), generate

    @intrinsic
    def from_bits(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], register)

        return number(whole), generate

    @intrinsic
    def maximum(context: Any, a: Any, b: Any) -> Any:
        """The larger one; undefined for a NaN, which the caller must find by itself."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(register, [register, register])
            function = builder.module.declare_intrinsic("llvm.maxnum", [register], kind)
            return builder.call(function, args, fastmath=("nnan", "nsz"))

        return number(number, number), generate

    def polynomial(coefficients: tuple[float, ...]) -> Any:
        """The polynomial with these coefficients, the constant first, by Horner's rule."""

        @intrinsic
        def of(context: Any, x: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                flags = ("contract", "nsz")
                *lower, y = (ir.Constant(register, float(real(c))) for c in coefficients)
                for c in reversed(lower):
                    y = builder.fadd(builder.fmul(y, args[0], flags=flags), c, flags=flags)
                return y

            return number(number), generate

        return of

    # exp(x) = 2^n exp(r), with r = x - n log 2 in [-log 2 / 2, log 2 / 2]. `magic` rounds to an integer, and leaves n,
    # lifted and biased, in the lower bits, from where it becomes the exponent of 2^n. Lifted, the smallest result is
    # still a normal number, so that a subnormal one is rounded once, where it is dropped again. What is less than
    # `least` counts as it, and so little that a sum of them drops to 0. Polynomials: minimax in the relative error of
    # the result, 2^-28 and 2^-64. A NaN may hold any bits: exp(r) is one too, and stays one whatever multiplies it.
    log2e = real(1.4426950408889634)
    high, low = (
        (real(0.693359375), real(-2.12194440054690583e-4))
        if single
        else (real(6.93147180369123816490e-01), real(1.90821492927058770002e-10))
    )
    mantissa = integer(23 if single else 52)
    lift = 64 if single else 128
    magic = real((1.5 * 2.0**23 + 127 if single else 1.5 * 2.0**52 + 1023) + lift)
    drop = real(2.0**-lift)
    least = real(-130.0 if single else -795.0)
    exp_polynomial = polynomial(_EXP32 if single else _EXP64)
    atanh_polynomial = polynomial(_ATANH32 if single else _ATANH64)
    one, two, half, zero = real(1), real(2), real(0.5), real(0)
    log2 = real(0.6931471805599453)
    root2 = real(0.41421356)
    inf = real(np.inf)

    @njit(**STRICT)
    def exp_lifted(x):
        """exp(x) / drop for x <= 0; NaN for NaN."""
        x = least if x < least else x
        shifted = x * log2e + magic
        n = shifted - magic
        r = (x - n * high) - n * low
        e = (exp_polynomial(r) * r + one) * r + one
        return e * from_bits(bits(shifted) << mantissa)

    @njit(**STRICT)
    def exp_neg(x):
        """exp(x) for x <= 0; exactly 0 for -inf, and NaN for NaN."""
        return exp_lifted(x) * drop

    @njit(**STRICT)
    def log1p_unit(x):
        """log(1 + x) for x in [0, 1]: 2 atanh(z), z = f / (2 + f), f = x or, from sqrt(2) - 1 on, (x - 1) / 2."""
        far = x > root2
        f = (x - one) * half if far else x
        z = f / (two + f)
        w = z * z
        return (z * w * atanh_polynomial(w) + two * z) + (log2 if far else zero)

    @njit(**STRICT)
    def log1p(x):
        """log(1 + x) for x >= 0; inf for inf, and NaN for NaN."""
        u = one + x
        n = (bits(u) >> mantissa) - integer(127 if single else 1023)
        m = from_bits(bits(u) - (n << mantissa))  # in [1, 2)
        far = x > one
        f = m - one if far else x
        y = log1p_unit(f) + (real(n) * log2 if far else zero)
        return x if x == inf or x != x else y

    return SimpleNamespace(
        real=real,
        exp_neg=exp_neg,
        exp_lifted=exp_lifted,
        drop=drop,
        log1p_unit=log1p_unit,
        log1p=log1p,
        maximum=maximum,
        inf=inf,
        nan=real(np.nan),
    )


@njit(**STRICT)
def compensated(total, lost, part):
    """``total + part``, and ``lost`` with what the addition rounded away (Neumaier): long sums keep their digits."""
    larger = total + part
    lost += (total - larger) + part if abs(total) >= abs(part) else (part - larger) + total
    return larger, lost


_EXP32 = (0.499999934256, 0.166665203368, 0.04166839212, 0.00836875088853, 0.00138144755195)
_EXP64 = (
    0.50000000000000000441,
    0.16666666666666683488,
    0.041666666666666091574,
    0.008333333333316981185,
    0.001388888888911650033,
    0.00019841269896518257752,
    0.000024801586925522880994,
    2.7557234724941120727e-6,
    2.7557582400873061983e-7,
    2.5112085410289185231e-8,
    2.0826556577237867317e-9,
)
_ATANH32 = (0.6666677650010347899, 0.39977525827727481115, 0.29872180518401543122)
_ATANH64 = (
    0.66666666666666660964,
    0.40000000000006256898,
    0.2857142856908271717,
    0.22222222647270933066,
    0.18181775627668024508,
    0.15387092410817856914,
    0.13250080838426578784,
    0.13251668669074173206,
)
