"""The kernels, by what they are made for: compiled when they are first launched on a device, and kept.

Numba and NVVM take a second or two to write a kernel in the language of NVIDIA's virtual machine (PTX), which is its
file in the `cache`. A tenth of that is enough to make machine code of it, and that is done in every process.
"""

from __future__ import annotations

import functools
import importlib
import os
import struct
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from polyloss.backends import Unavailable
from polyloss.backends.cache import Sources, surroundings
from polyloss.backends.cuda.fields import FORMS

__all__ = ["SIMULATED", "SOURCES", "Kernel", "bounds", "failures", "kernel", "ptx", "written"]

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""Whether kernels run in `simulator`, on arrays in host memory."""

failures: dict[tuple[Any, ...], str] = {}
"""The kernels that cannot be made, by key and device, and why."""

Key = tuple[Any, ...]
_lock = threading.Lock()


class Bounds(NamedTuple):
    """What the compiler is told of a launch."""

    threads: int  # of a block
    blocks: int  # that a multiprocessor should hold


def bounds(key: Key, capability: tuple[int, int]) -> Bounds:
    """The launch bounds of a kernel: as many blocks as leave it the registers that it needs, which is tested."""
    threads = threads_of(key)
    if key[0] == "sums":
        return Bounds(threads, 1)
    newer, double = capability >= (9, 0), "float64" in key
    pairs = any(part in ("float16", "bfloat16") for part in key)
    unrolled = ("warp" in key and pairs) or ("few vectors" in key and (pairs or double))
    if key[0] == "soft":
        resident = 512 if newer and key[1] != "float64" and not (pairs and "long256" in key) else 256
    elif key[0] in ("rows", "transforms") and unrolled:
        resident = 512 if newer else 256
    else:
        resident = 768 if newer and not double and "float16" not in key else 512
    return Bounds(threads, max(1, resident // threads))


def threads_of(key: Key) -> int:
    """The threads of a block."""
    if key[0] == "sums":  # one block has to read what thousands have left
        return 1024
    form = next((FORMS[part] for part in key[1:] if isinstance(part, str) and part in FORMS), None)
    return form.lanes if form is not None and form.block else 256


@functools.cache
def written(key: Key) -> tuple[Callable[..., None], str]:
    """A kernel as Numba compiles it, and the letters of its parameters."""
    module = importlib.import_module(f"polyloss.backends.cuda.{key[0]}")
    return module.build(*key[1:]), module.PARAMETERS


def ptx(key: Key, capability: tuple[int, int]) -> str:
    """A kernel in the language of NVIDIA's virtual machine."""
    from polyloss.backends.cuda.device import compile_ptx

    function, parameters = written(key)
    return str(compile_ptx(function, parameters, capability, tuple(bounds(key, capability))))


SOURCES = Sources(Path(__file__).parent)


def modules(key: Key) -> tuple[str, ...]:
    """Those that a kernel is made of, with what they import; the last one's name is made at run time, in `device`."""
    return "compiled", key[0], "intrinsics"


@functools.cache
def _given() -> bytes:
    """All that PTX depends on beside its sources, the kernel's options and the architecture."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    nvvm = str(load_nvidia_dynamic_lib("nvvm").abs_path)
    file = os.stat(nvvm)
    return surroundings(version("numba-cuda"), version("numba"), nvvm, file.st_size, file.st_mtime_ns)


def cached(key: Key, capability: tuple[int, int]) -> str:
    """`ptx`, from its file or compiled."""

    def make() -> bytes:
        return ptx(key, capability).encode()

    try:
        given = _given()
    except Exception:  # which NVVM it is, Numba alone finds out
        return make().decode()
    name = *key, "sm_{}{}".format(*capability)
    return SOURCES.kept(name, ".ptx", modules(key), given, make).decode()


class Kernel:
    """A kernel on every device."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.threads = threads_of(key)
        self._loaded: dict[int, Any] = {}
        self._images: dict[tuple[int, int], tuple[str, bytes]] = {}  # by compute capability

    def __call__(self, queue: tuple[int, int], blocks: int, parameters: bytes, dynamic: int = 0) -> None:
        """Launches it on a device's stream, with so many bytes of dynamic shared memory for each block."""
        device, stream = queue
        self.on(device)(stream, blocks, self.threads, dynamic, parameters)

    def on(self, device: int) -> Any:
        """What launches it on that device. `Unavailable` where it cannot be made."""
        return self._loaded.get(device) or self._load(device)

    def _load(self, device: int) -> Any:
        with _lock:
            if (self.key, device) in failures:
                raise Unavailable(failures[self.key, device])
            if device not in self._loaded:
                try:
                    self._loaded[device] = self._simulation() if SIMULATED else self._function(device)
                except Exception as error:  # a toolchain has many ways to fail, and the formula is right without it
                    from polyloss.backends.cuda.driver import passing

                    reason = f"{type(error).__name__}: {error}"
                    if not passing(error):
                        failures[self.key, device] = reason
                    raise Unavailable(reason) from error
            return self._loaded[device]

    def _function(self, device: int) -> Any:
        from polyloss.backends.cuda import driver

        capability = driver.capability(device)
        with driver.making(device):
            if capability not in self._images:
                text = cached(self.key, capability)
                self._images[capability] = text, driver.image(text, capability)
            return driver.function(*self._images[capability], device)

    def _simulation(self) -> Any:
        from polyloss.backends.cuda import simulator

        function, letters = written(self.key)
        layout = struct.Struct(letters)

        def run(stream: int, blocks: int, threads: int, dynamic: int, parameters: bytes) -> None:
            simulator.launch(function, blocks, threads, dynamic, layout.unpack(parameters))

        return run


@functools.cache
def kernel(*key: Any) -> Kernel:
    """The kernel for this key: the module, and what its ``build`` takes."""
    return Kernel(key)
