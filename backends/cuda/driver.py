"""NVIDIA's driver, as far as it is needed: to load a kernel and to launch it on a stream of another library.

The driver's interface is that of C and fixed for good, so ctypes calls it: a launch of packed parameters takes a
microsecond or two, where Numba's own would look at each argument.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "OLDEST",
    "STATIC",
    "Refused",
    "capability",
    "cubin",
    "devices",
    "function",
    "image",
    "library",
    "making",
    "passing",
    "shared_memory",
]

OLDEST = (8, 0)
"""The compute capability from which on a pair of halves is rounded in one instruction."""

MINOR, MAJOR, SHARED_OPT_IN, SHARED_OF_ALL = 76, 75, 97, 81  # device attributes
MAX_DYNAMIC_SHARED, SHARED_CARVEOUT = 8, 9  # function attributes
POINTER, SIZE, END = 1, 2, 0  # of packed parameters
STATIC = 2048  # bytes of shared memory that a kernel has beside the dynamic ones, at most
RELAXED = 2  # the mode of a capture that forbids the capturing thread nothing
PASSING = frozenset([2, *range(900, 909)])  # out of memory, or a stream is being captured

_address = ctypes.c_void_p
_local = threading.local()


class Refused(RuntimeError):
    """What the driver would not do. As Numba's own error, it has a ``code``."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} of the CUDA driver failed with status {code}")
        self.code = code


def passing(error: Exception) -> bool:
    """Whether what failed may work another time: no memory was left, or a stream was being captured."""
    return isinstance(error, MemoryError) or getattr(error, "code", None) in PASSING


def _opened() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@functools.cache
def library() -> Any:
    """The driver's library; `OSError` where there is none."""
    found = _opened()
    _check(found.cuInit(0), "cuInit")
    for name, arguments in {
        "cuLaunchKernel": [_address, *[ctypes.c_uint] * 7, _address, _address, _address],
        "cuCtxGetCurrent": [_address],
        "cuCtxPushCurrent_v2": [_address],
        "cuCtxPopCurrent_v2": [_address],
        "cuDevicePrimaryCtxRetain": [_address, ctypes.c_int],
        "cuModuleLoadData": [_address, ctypes.c_char_p],
        "cuModuleGetFunction": [_address, _address, ctypes.c_char_p],
        "cuFuncSetAttribute": [_address, ctypes.c_int, ctypes.c_int],
        "cuThreadExchangeStreamCaptureMode": [_address],
        "cuDeviceGet": [_address, ctypes.c_int],
        "cuDeviceGetAttribute": [_address, ctypes.c_int, ctypes.c_int],
        "cuDeviceGetCount": [_address],
    }.items():
        getattr(found, name).argtypes = arguments
    return found


def _check(status: int, what: str) -> None:
    if status:
        raise Refused(what, status)


def devices() -> int:
    """How many there are."""
    count = ctypes.c_int()
    _check(library().cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    return count.value


@functools.cache
def _handle(device: int) -> int:
    handle = ctypes.c_int()
    _check(library().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    return handle.value


@functools.cache
def _attribute(device: int, attribute: int) -> int:
    value = ctypes.c_int()
    _check(library().cuDeviceGetAttribute(ctypes.byref(value), attribute, _handle(device)), "cuDeviceGetAttribute")
    return value.value


def capability(device: int) -> tuple[int, int]:
    """The compute capability of a device."""
    return _attribute(device, MAJOR), _attribute(device, MINOR)


@functools.cache
def _context(device: int) -> int:
    """The context that the device's libraries share."""
    context = _address()
    _check(library().cuDevicePrimaryCtxRetain(ctypes.byref(context), _handle(device)), "cuDevicePrimaryCtxRetain")
    return context.value or 0


def image(text: str, capability: tuple[int, int]) -> bytes:
    """What the driver is to load for PTX: machine code by nvJitLink, if that is as new as what wrote the PTX.

    Otherwise the PTX, for the driver's own compiler.
    """
    try:
        return cubin(text, capability)[0]
    except Exception:  # whatever it was: the driver says whether it can do without
        return text.encode()


def cubin(text: str, capability: tuple[int, int], options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """The machine code of PTX by nvJitLink, and what it says of it."""
    from cuda.bindings import nvjitlink

    data = text.encode()
    flags = ["-arch=sm_{}{}".format(*capability), "-O3", *options]
    handle = nvjitlink.create(len(flags), flags)
    try:
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "polyloss")
            nvjitlink.complete(handle)
        except Exception as error:
            said = _log(nvjitlink.get_error_log_size, nvjitlink.get_error_log, handle)
            raise RuntimeError(f"{error}: {said}") from error
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
        return bytes(code), _log(nvjitlink.get_info_log_size, nvjitlink.get_info_log, handle)
    finally:
        nvjitlink.destroy(handle)


def _log(size: Any, read: Any, handle: Any) -> str:
    text = bytearray(size(handle))
    if text:
        read(handle, text)
    return text.decode(errors="replace").strip("\0\n ")


class _Elsewhere:
    """Makes a device's context the thread's, where another one's is, or none."""

    def __init__(self, context: int) -> None:
        self.context = context

    def __enter__(self) -> None:
        current = _address()
        _check(library().cuCtxGetCurrent(ctypes.byref(current)), "cuCtxGetCurrent")
        self.pushed = (current.value or 0) != self.context
        if self.pushed:
            _check(library().cuCtxPushCurrent_v2(self.context), "cuCtxPushCurrent")

    def __exit__(self, *error: Any) -> None:
        if self.pushed:
            _check(library().cuCtxPopCurrent_v2(ctypes.byref(_address())), "cuCtxPopCurrent")


@contextmanager
def making(device: int) -> Iterator[None]:
    """In it a kernel is made: the device's context is the thread's, which Numba asks, though a stream be captured."""
    exchange, mode = library().cuThreadExchangeStreamCaptureMode, ctypes.c_int(RELAXED)
    with _Elsewhere(_context(device)):
        _check(exchange(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")
        try:
            yield
        finally:
            _check(exchange(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")


class _Packed:
    """Room for the parameters of a launch, which the driver has copied when it returns."""

    def __init__(self) -> None:
        self.room = ctypes.create_string_buffer(512)
        self.at = ctypes.addressof(self.room)
        self.size = ctypes.c_size_t()
        self.extra = (_address * 5)(POINTER, self.at, SIZE, ctypes.addressof(self.size), END)


def function(text: str, code: bytes, device: int) -> Callable[[int, int, int, int, bytes], None]:
    """What launches a kernel of PTX and its `image`: ``launch(stream, blocks, threads, dynamic, parameters)``.

    To be called while it is `making` for the device.
    """
    name = re.search(r"\.visible \.entry ([^\s(]+)\(", text)
    assert name is not None
    driver, context = library(), _context(device)
    module, handle = _address(), _address()
    _check(driver.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(ctypes.byref(handle), module, name[1].encode()), "cuModuleGetFunction")
    if ".extern .shared" in text:  # more than 48 KiB must be asked for
        room = _attribute(device, SHARED_OPT_IN) - STATIC
        _check(driver.cuFuncSetAttribute(handle, MAX_DYNAMIC_SHARED, room), "cuFuncSetAttribute")
        _check(driver.cuFuncSetAttribute(handle, SHARED_CARVEOUT, 100), "cuFuncSetAttribute")  # percent
    if hasattr(driver, "cuFuncLoad"):  # of CUDA 12.4; else the first launch loads it, which a capture may forbid
        _check(driver.cuFuncLoad(handle), "cuFuncLoad")
    launch, kernel, current, move = driver.cuLaunchKernel, handle.value, driver.cuCtxGetCurrent, ctypes.memmove

    def run(stream: int, blocks: int, threads: int, dynamic: int, parameters: bytes) -> None:
        packed = getattr(_local, "packed", None)
        if packed is None:
            packed = _local.packed = _Packed()
            _local.current = _address()
            _local.at = ctypes.byref(_local.current)
        packed.size.value = len(parameters)
        move(packed.at, parameters, len(parameters))
        current(_local.at)
        if _local.current.value == context:
            status = launch(kernel, blocks, 1, 1, threads, 1, 1, dynamic, stream, None, packed.extra)
        else:
            with _Elsewhere(context):
                status = launch(kernel, blocks, 1, 1, threads, 1, 1, dynamic, stream, None, packed.extra)
        _check(status, "cuLaunchKernel")

    return run


def shared_memory(device: int) -> tuple[int, int]:
    """Bytes of shared memory that one block may have, at most, and that a multiprocessor has."""
    return _attribute(device, SHARED_OPT_IN), _attribute(device, SHARED_OF_ALL)
