"""The array libraries of a GPU: whether they can be used here, and how arrays get to the device and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Device", "devices"]


@dataclass(frozen=True)
class Device:
    """A library with a GPU, or why there is none."""

    name: str
    reason: str = ""  # why it is not run
    to_device: Callable[[Any], Any] = field(default=lambda x: x)
    to_host: Callable[[Any], np.ndarray] = np.asarray
    synchronize: Callable[[], None] = lambda: None
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    version: str = ""


def _array(convert: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    """The conversion of arrays; what is none stays as it is."""
    return lambda x: convert(x) if isinstance(x, np.ndarray) else x


def _cupy() -> Device:
    import cupy

    if not cupy.cuda.runtime.getDeviceCount():
        raise RuntimeError("there is no device")
    return Device(
        "cupy",
        to_device=_array(cupy.asarray),
        to_host=cupy.asnumpy,
        synchronize=lambda: cupy.cuda.get_current_stream().synchronize(),
        version=cupy.__version__,
    )


def _torch() -> Device:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch.cuda.is_available() is False")
    return Device(
        "torch",
        to_device=_array(lambda x: torch.from_numpy(np.array(x)).cuda()),
        to_host=lambda x: x.detach().cpu().numpy(),
        synchronize=torch.cuda.synchronize,
        version=torch.__version__,
    )


def _jax() -> Device:
    import jax

    gpu = jax.devices("gpu")[0]
    return Device(
        "jax",
        to_device=_array(lambda x: jax.device_put(x, gpu)),
        to_host=np.asarray,
        synchronize=lambda: jax.effects_barrier(),
        scope=lambda: jax.enable_x64(True),  # the oracle's cases are in float64 too
        version=jax.__version__,
    )


def _simulator() -> Device:
    from benchmarks.gpu import stand_in

    return Device(
        "simulator",
        to_device=_array(stand_in.to_device),
        to_host=stand_in.to_host,
        scope=stand_in.launching,
        version="of polyloss",
    )


def devices(dry: bool) -> list[Device]:
    """All of them; on a dry run the simulator in CuPy's place, and no other."""
    if dry:
        return [_simulator(), *(Device(name, "NOT RUN: a dry run") for name in ("torch", "jax"))]
    found = []
    for name, make in {"cupy": _cupy, "torch": _torch, "jax": _jax}.items():
        try:
            found.append(make())
        except Exception as error:  # a missing package, driver or device
            lines = str(error).splitlines() or [""]
            found.append(Device(name, f"NOT RUN: {type(error).__name__}: {lines[0]}"))
    return found
