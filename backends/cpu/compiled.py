"""Kernels as machine code: compiled by Numba once, kept on disk, and loaded without Numba.

Numba turns the Python of a kernel into LLVM's language, and llvmlite turns that into machine code, which is a kernel's
file in the `cache`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm

from polyloss.backends import Unavailable
from polyloss.backends.cache import Sources, surroundings
from polyloss.backends.cpu.handler import HANDLER

__all__ = ["SOURCES", "Kernel", "Progress", "assembly", "failures", "fingerprint", "kernel", "language", "processor"]


Progress = ctypes.c_int64 * 3
"""Of the threads that share a call: blocks that were taken, blocks that are done, and 1 if a target is invalid."""


class Kernel(NamedTuple):
    """A kernel's two entries. They run without the GIL, and return 1 if a target is invalid, else 0."""

    all: Callable[[bytes, int, int], int]
    """``all(parameters, start, stop)`` treats these blocks."""

    shares: Callable[[bytes, Any, int, int, int], int]
    """``shares(parameters, progress, blocks, parts, patience)`` takes a part of what is left until nothing is.

    A part is one of ``parts``. Then it looks ``patience`` times whether the others are done too. Several threads may be
    in it at once.
    """

    handler: int
    """The address of the `handler`, for a kernel whose key starts with that; else 0."""


_ALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)
_SHARES = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
_NAMES = ("polyloss_all", "polyloss_shares", "polyloss_xla")
_lock = threading.RLock()
_loaded: dict[tuple[Any, ...], Kernel] = {}
failures: dict[tuple[Any, ...], str] = {}
"""Why a kernel could not be made."""
_engines: list[Any] = []  # they own the machine code
_busy: list[Any] = []
_orphaned = ""


def kernel(module: str, *options: Any) -> Kernel:
    """The kernel that ``build(*options)`` of that module of this package makes.

    ``kernel("handler", module, *options)`` is the same kernel with a handler of XLA's calls.
    """
    key = module, *options
    return _loaded.get(key) or _first(key)


def _first(key: tuple[Any, ...]) -> Kernel:
    with _lock:
        if key not in _loaded:
            if key in failures or _orphaned:
                raise Unavailable(failures.get(key, _orphaned))
            _busy.append(key)
            try:
                _loaded[key] = _load(_cached(key))
            except Exception as error:  # of Numba, LLVM or the system; the formula takes over, and the report says why
                failures[key] = f"{type(error).__name__}: {error}"
                raise Unavailable(failures[key]) from error
            finally:
                _busy.pop()
        return _loaded[key]


@functools.cache
def processor() -> tuple[str, str]:
    """The name and the features of this machine's processor, as LLVM knows them."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@functools.cache
def _given() -> bytes:
    """All that machine code depends on beside its sources and the kernel's options."""
    return surroundings(version("numba"), version("llvmlite"), *processor())


SOURCES = Sources(Path(__file__).parent)


def _modules(key: tuple[Any, ...]) -> tuple[str, str]:
    return "compiled", key[1] if key[0] == "handler" else key[0]


def fingerprint(key: tuple[Any, ...]) -> str:
    """A hash of all that a kernel's machine code depends on beside its options."""
    return SOURCES.fingerprint(_modules(key), _given())


def _cached(key: tuple[Any, ...]) -> bytes:
    """The machine code, from its file or compiled."""
    return SOURCES.kept(key, ".o", _modules(key), _given(), lambda: _compile(key))


def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = processor()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=name, features=features, opt=3, jit=True)


def language(key: tuple[Any, ...]) -> str:
    """The kernel in LLVM's language, optimised, as a function of the name and signature that `_load` expects."""
    import numba
    from numba import types

    module, *options = key
    if module == "handler":
        return language(tuple(options)) + HANDLER
    build = importlib.import_module(f"polyloss.backends.cpu.{module}").build
    function = build(*options)
    signature = types.int64(types.voidptr, types.int64, types.int64)
    compiled = numba.cfunc(signature, error_model="numpy", fastmath={"contract", "nsz"})(function)
    inner = compiled.native_name.removeprefix("cfunc.")
    # Numba's own entry would report exceptions by Python's C API; a kernel has none, and must need nothing of Python.
    return f"""{compiled.inspect_llvm()}

define i64 @{_NAMES[0]}(ptr %fields, i64 %start, i64 %stop) {{
  %result = alloca i64
  %exception = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %exception, ptr %fields, i64 %start, i64 %stop)
  %value = load i64, ptr %result
  ret i64 %value
}}

define i64 @{_NAMES[1]}(ptr %fields, ptr %progress, i64 %blocks, i64 %parts, i64 %patience) {{
entry:
  %done = getelementptr i64, ptr %progress, i64 1
  %bad = getelementptr i64, ptr %progress, i64 2
  br label %next
next:
  %start = load atomic i64, ptr %progress monotonic, align 8
  %left = sub i64 %blocks, %start
  %any = icmp sgt i64 %left, 0
  br i1 %any, label %take, label %wait
take:
  %part = sdiv i64 %left, %parts
  %none = icmp slt i64 %part, 1
  %size = select i1 %none, i64 1, i64 %part
  %stop = add i64 %start, %size
  %exchange = cmpxchg ptr %progress, i64 %start, i64 %stop monotonic monotonic
  %taken = extractvalue {{ i64, i1 }} %exchange, 1
  br i1 %taken, label %share, label %next
share:
  %found = call i64 @{_NAMES[0]}(ptr %fields, i64 %start, i64 %stop)
  %before = atomicrmw or ptr %bad, i64 %found monotonic
  %others = atomicrmw add ptr %done, i64 %size release
  br label %next
wait:
  %turn = phi i64 [ 0, %next ], [ %turns, %again ]
  %finished = load atomic i64, ptr %done acquire, align 8
  %all = icmp sge i64 %finished, %blocks
  br i1 %all, label %end, label %again
again:
  %turns = add i64 %turn, 1
  %patient = icmp slt i64 %turns, %patience
  br i1 %patient, label %wait, label %end
end:
  %result = load atomic i64, ptr %bad monotonic, align 8
  ret i64 %result
}}
"""


def _module(key: tuple[Any, ...]) -> Any:
    module = llvm.parse_assembly(language(key))
    for function in module.functions:
        if not function.is_declaration and function.name not in _NAMES:
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(_machine(), llvm.create_pipeline_tuning_options()))
    return module


def assembly(key: tuple[Any, ...]) -> str:
    """The machine code in words, for those who want to see whether a loop uses vectors."""
    return str(_machine().emit_assembly(_module(key)))


def _compile(key: tuple[Any, ...]) -> bytes:
    return bytes(_machine().emit_object(_module(key)))


def _load(code: bytes) -> Kernel:
    empty = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(empty, _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    addresses = [engine.get_function_address(name) for name in _NAMES]
    return Kernel(_ALL(addresses[0]), _SHARES(addresses[1]), addresses[2])


def _after_fork() -> None:
    """Another thread of the parent may have held the lock; or one of Numba's and LLVM's, which nobody can replace."""
    global _lock, _orphaned
    _lock = threading.RLock()
    if _busy:
        _orphaned = "this process was forked while another thread of its parent compiled a kernel"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
