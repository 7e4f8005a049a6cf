"""The hardware's side of `device`: what Numba does not offer, as LLVM instructions."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.cuda import libdevice
from numba.cuda.extending import intrinsic

__all__: list[str] = []

SIZES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}

_HALF, _WORD, _LONG = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_GLOBAL = 1  # the address space
_WHOLE_WARP = 0xFFFFFFFF

device = cuda.jit(device=True, forceinline=True)


def signature(letters: str) -> Any:
    """Of a kernel whose parameters are integers (q) and floats (d) of 64 bits."""
    return types.void(*[types.int64 if letter == "q" else types.float64 for letter in letters])


def compile_ptx(kernel: Any, letters: str, capability: tuple[int, int], bounds: tuple[int, int]) -> str:
    """A kernel in the language of NVIDIA's virtual machine; bounds: the threads of a block, and blocks at a time."""
    text, _ = cuda.compile_ptx(kernel, signature(letters), cc=capability, launch_bounds=bounds)
    return str(text)


int32, uint32 = types.int32, types.uint32


@device
def thread():
    return cuda.threadIdx.x


@device
def threads():
    return cuda.blockDim.x


@device
def block():
    return cuda.blockIdx.x


@device
def blocks():
    return cuda.gridDim.x


@device
def barrier():
    cuda.syncthreads()


@device
def warp_barrier():
    """What a lane of the warp read or wrote before, it did before what another one does after."""
    cuda.syncwarp()


@device
def shuffle(x, distance):
    """The x of the lane whose number differs in the bits of ``distance``. All lanes of the warp must come here."""
    return cuda.shfl_xor_sync(_WHOLE_WARP, x, distance)


exp = math.exp  # libdevice's: 1 ulp, with gradual underflow; its core is ex2.approx
log1p = math.log1p


@intrinsic
def opaque(context: Any, x: Any) -> Any:
    """The same number, of which the compiler does not know it: what is computed of it is computed once more."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT])
        return builder.call(ir.InlineAsm(kind, "mov.b32 $0, $1;", "=f,f", side_effect=True), args)

    return types.float32(types.float32), generate


def maximum(wide: str) -> Any:
    """The larger one; where one of them is NaN, the other."""
    return libdevice.fmaxf if wide == "float32" else libdevice.fmax


def ratio(wide: str) -> Any:
    """``a / b`` for b in [1, 2]: 2 ulp in float32, without the slow path that a quotient of any numbers needs."""
    if wide == "float32":
        return libdevice.fast_fdividef

    @device
    def divided(a, b):
        return a / b

    return divided


# Memory.

_STORED = {
    "bool": ir.IntType(8),
    "int8": ir.IntType(8),
    "uint8": ir.IntType(8),
    "int16": _HALF,
    "uint16": _HALF,
    "int32": _WORD,
    "uint32": _WORD,
    "int64": _LONG,
    "uint64": _LONG,
    "float16": ir.HalfType(),
    "bfloat16": _HALF,
    "float32": _FLOAT,
    "float64": _DOUBLE,
}


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, _GLOBAL))


def _element(builder: Any, dtype: str, address: Any, index: Any) -> Any:
    offset = builder.mul(index, ir.Constant(_LONG, SIZES[dtype]))
    return _pointer(builder, builder.add(address, offset), _STORED[dtype])


def load(dtype: str, wide: str) -> Any:
    """Element i at an address, as a number of the registers; 64-bit integers are kept as such."""
    result = types.int64 if wide == "int64" else getattr(types, wide)
    register = {"float32": _FLOAT, "float64": _DOUBLE, "int64": _LONG}[wide]

    def widen(builder: Any, x: Any) -> Any:
        if dtype == "bfloat16":
            x = builder.bitcast(builder.shl(builder.zext(x, _WORD), ir.Constant(_WORD, 16)), _FLOAT)
        if wide == "int64":
            if dtype == "int64":
                return x
            return builder.sext(x, _LONG) if dtype.startswith("int") else builder.zext(x, _LONG)
        if dtype in ("bfloat16", "float16"):
            return x if dtype == "bfloat16" and wide == "float32" else builder.fpext(x, register)
        if dtype == wide:
            return x
        if dtype.startswith("float"):
            return builder.fpext(x, register) if wide == "float64" else builder.fptrunc(x, register)
        return builder.sitofp(x, register) if dtype.startswith("int") else builder.uitofp(x, register)

    @intrinsic
    def read(context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return widen(builder, builder.load(_element(builder, dtype, *args), align=SIZES[dtype]))

        return result(types.int64, types.int64), generate

    return read


def store(dtype: str, wide: str) -> Any:
    """Writes a number as element i at an address, rounded to the nearest."""

    def narrow(builder: Any, x: Any) -> Any:
        if dtype == "float16":
            return builder.fptrunc(x, _STORED[dtype])
        if dtype == "bfloat16":
            return builder.trunc(_packed(builder, "bf16x2", x, ir.Constant(_FLOAT, 0.0)), _HALF)
        return x

    @intrinsic
    def write(context: Any, address: Any, index: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            where = _element(builder, dtype, args[0], args[1])
            builder.store(narrow(builder, args[2]), where, align=SIZES[dtype])
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, getattr(types, wide)), generate

    return write


def _loads(kind: Any, number: Any, count: int) -> Any:
    result, vector = types.UniTuple(number, count), ir.VectorType(kind, count)

    @intrinsic
    def read(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x = builder.load(_pointer(builder, args[0], vector), align=16)
            parts = [builder.extract_element(x, ir.Constant(_WORD, k)) for k in range(count)]
            return context.make_tuple(builder, result, parts)

        return result(types.int64), generate

    return read


def _stored(context: Any, builder: Any, vector: Any, args: Any) -> Any:
    x = ir.Constant(vector, ir.Undefined)
    for k, part in enumerate(args[1:]):
        x = builder.insert_element(x, part, ir.Constant(_WORD, k))
    builder.store(x, _pointer(builder, args[0], vector), align=16)
    return context.get_dummy_value()


load4 = _loads(_WORD, types.uint32, 4)
load2 = _loads(_LONG, types.uint64, 2)


@intrinsic
def store4(context: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _stored(context, builder, ir.VectorType(_WORD, 4), args)

    w = types.uint32
    return types.none(types.int64, w, w, w, w), generate


@intrinsic
def store2(context: Any, address: Any, a: Any, b: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _stored(context, builder, ir.VectorType(_LONG, 2), args)

    return types.none(types.int64, types.uint64, types.uint64), generate


# Words of memory as numbers.


def _cast(source: Any, target: Any, kind: Any) -> Any:
    @intrinsic
    def cast(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], kind)

        return target(source), generate

    return cast


as_float, as_int = _cast(types.uint32, types.float32, _FLOAT), _cast(types.float32, types.uint32, _WORD)
as_double, as_long = _cast(types.uint64, types.float64, _DOUBLE), _cast(types.float64, types.uint64, _LONG)


def _packed(builder: Any, pair: str, lower: Any, upper: Any) -> Any:
    """Two numbers as halves of a word, each rounded to the nearest."""
    kind = ir.FunctionType(_WORD, [_FLOAT, _FLOAT])
    return builder.call(ir.InlineAsm(kind, f"cvt.rn.{pair}.f32 $0, $1, $2;", "=r,f,f"), [upper, lower])


def halves(dtype: str) -> tuple[Any, Any, Any]:
    """Of a word of two 16-bit floats: the lower one and the upper one, and what makes a word of two numbers."""
    pair = "bf16x2" if dtype == "bfloat16" else "f16x2"

    def half(upper: bool) -> Any:
        def widen(builder: Any, word: Any) -> Any:
            if dtype == "bfloat16":
                mask = ir.Constant(_WORD, 0xFFFF0000)
                bits = builder.and_(word, mask) if upper else builder.shl(word, ir.Constant(_WORD, 16))
                return builder.bitcast(bits, _FLOAT)
            bits = builder.trunc(builder.lshr(word, ir.Constant(_WORD, 16)) if upper else word, _HALF)
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), _FLOAT)

        @intrinsic
        def number(context: Any, word: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                return widen(builder, args[0])

            return types.float32(types.uint32), generate

        return number

    @intrinsic
    def pack(context: Any, lower: Any, upper: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _packed(builder, pair, *args)

        return types.uint32(types.float32, types.float32), generate

    return half(False), half(True), pack
