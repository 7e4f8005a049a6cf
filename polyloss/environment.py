"""Which array libraries and devices are here, and which path a call on each of them takes."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any

from polyloss.application import Application
from polyloss.dispatch import LIBRARIES, kernels, library_of
from polyloss.primitives import LseCrossEntropy, SoftplusCrossEntropy
from polyloss.version import __version__

__all__ = ["Path", "paths", "report"]

NAMESPACES = {"jax": "jax.numpy", "dask": "array_api_compat.dask.array"}
PRIMITIVES: dict[str, Any] = {
    "softplus cross-entropy": SoftplusCrossEntropy(),
    "log-sum-exp cross-entropy": LseCrossEntropy(),
}


@dataclass(frozen=True)
class Path:
    """What happens to a call on arrays of one library on one device."""

    library: str
    version: str
    device: str
    memory: str
    taken: dict[str, str]  # primitive -> path
    reason: str  # why no faster path is taken, or why the library cannot be used


def paths() -> Iterator[Path]:
    """One `Path` for each array library that polyloss knows, or finds by an entry point, and each of its devices."""
    points = {point.name: point for point in entry_points(group="polyloss.backends")}
    for name in (*LIBRARIES, *points):
        if find_spec(name) is None:
            yield Path(name, "", "", "", {}, "not installed")
            continue
        try:
            xp: Any = points[name].load().xp if name in points else importlib.import_module(_namespace(name))
            devices = _devices(xp)
        except Exception as error:
            yield _unusable(name, error)
            continue
        for device in devices:
            try:
                yield _path(name, xp, device)
            except Exception as error:
                yield _unusable(name, error, device)


def _namespace(name: str) -> str:
    return NAMESPACES.get(name, f"array_api_compat.{name}")


def _unusable(name: str, error: Exception, device: Any = None) -> Path:
    """A broken installation or a missing driver is what this report is for."""
    reason = f"not usable: {type(error).__name__}: {error}"
    return Path(name, _version(name), "" if device is None else str(device), "", {}, reason)


def _devices(xp: Any) -> list[Any]:
    inspect = getattr(xp, "__array_namespace_info__", None)
    if inspect is None:
        return [None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the names of its own devices
        # torch's "meta" device holds no numbers, and Dask's arrays are in no one place.
        found = [d for d in inspect().devices() if d is not None and str(d) not in ("meta", "DASK_DEVICE")]
    return found or [None]


def _path(name: str, xp: Any, device: Any) -> Path:
    on = {} if device is None or str(device) == "cpu" else {"device": device}
    x = xp.ones((2, 2), dtype=xp.float32, **on)
    labels = xp.zeros((2,), dtype=xp.int32, **on)
    library = library_of(x)
    memory = library.memory(x)
    own, reason = library.report(x)
    taken = {}
    for title, primitive in PRIMITIVES.items():
        arrays = (x, labels, None, None) if primitive.rows else (x, x, None)
        fused = Application(primitive, library, x.dtype, arrays, 1).fused()
        taken[title] = own or ("formula" if fused is None else type(fused.kernel).__module__)
    if not (own or reason):
        computing = kernels(memory)
        if computing is None:
            reason = (
                f"there are no kernels for {memory} memory in this version" if memory else "its memory is not known"
            )
        elif "formula" in taken.values():
            reason = computing.report()
    return Path(name, _version(name), "" if device is None else str(device), memory or "", taken, reason)


def _version(name: str) -> str:
    module = sys.modules.get(name)
    found = getattr(module, "__version__", None)
    if found is None:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "unknown"
    return str(found)


def report() -> str:
    """The paths as a table in plain text."""
    rows = [("library", "version", "device", "memory", *PRIMITIVES, "why not faster")]
    for path in paths():
        steps = [path.taken.get(title, "-") for title in PRIMITIVES]
        rows.append((path.library, path.version or "-", path.device or "-", path.memory or "-", *steps, path.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    head = f"polyloss {__version__}, Python {platform.python_version()}, {platform.machine()}, {platform.system()}"
    places = {"host": kernels("host"), "CUDA": kernels("cuda")}
    foot = ["", *(f"Kernels for {place} memory: {k.report()}." for place, k in places.items() if k is not None)]
    return "\n".join([head, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:], *foot])
