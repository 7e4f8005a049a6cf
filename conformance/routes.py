"""The ways to a value and its gradient: array libraries, where they compute, and who differentiates.

A `Route` is a library, a device and a path. ``kernel`` is what a user gets, ``generic`` is the formula without kernels,
``compiled`` is torch.compile, and ``jit`` is jax.jit. On each there are one or more *ways* to a gradient: "formula" is
`polyloss.value_and_grad`, the others are the library's own autodiff, with an upstream gradient that is not 1.

Numbers come in and go out as NumPy arrays. A route brings them into its own dtype: bfloat16, which NumPy lacks, is kept
as float32.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import numpy as np

import polyloss
from polyloss.dispatch import generic

__all__ = ["DTYPES", "PATHS", "Route", "from_numpy", "installed", "rounded", "routes", "to_numpy", "wide"]

NAMESPACES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "array_api_strict": "array_api_strict",
    "cupy": "cupy",
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
PATHS = ("kernel", "generic", "compiled", "jit")

Answer = tuple[np.ndarray, np.ndarray | None]


def installed() -> list[str]:
    """The array libraries that can be checked here, in host memory."""
    return [name for name in NAMESPACES if name != "cupy" and find_spec(name) is not None]


def namespace(library: str) -> Any:
    """The module whose functions make arrays of that library."""
    if library in NAMESPACES:
        return importlib.import_module(NAMESPACES[library])
    return published(library).xp


@functools.cache
def published(library: str) -> Any:
    """The `polyloss.backends.Library` that a third party has published under this name."""
    return next(point for point in entry_points(group="polyloss.backends") if point.name == library).load()


def from_numpy(library: str, x: Any, device: str = "cpu") -> Any:
    """``x`` in that library; what is no array stays as it is."""
    if library == "numpy" or not isinstance(x, np.ndarray):
        return x
    if library not in NAMESPACES:
        place = {str(place): place for place in _devices(library)}.get(device)
        return published(library).from_numpy(x, place)
    xp = namespace(library)
    if library == "dask":
        return xp.from_array(x, chunks=tuple(max(1, (n + 1) // 2) for n in x.shape))
    if library == "torch":
        return xp.from_numpy(np.array(x)).to(device)
    if library == "jax":
        import jax

        if device != jax.default_backend().replace("gpu", "cuda"):
            return jax.device_put(np.array(x), jax.devices(device)[0])
    return xp.asarray(np.array(x))


def to_numpy(x: Any) -> np.ndarray:
    """``x`` in host memory; bfloat16 as float32."""
    top = type(x).__module__.partition(".")[0]
    if top in {point.name for point in _points()}:
        return np.asarray(published(top).to_numpy(x))
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
    elif hasattr(x, "get") and type(x).__module__.partition(".")[0] == "cupy":
        x = x.get()
    found = np.asarray(x._array if hasattr(x, "_array") else x)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The floating numbers of ``x`` as that dtype holds them; bfloat16, which NumPy lacks, as float32."""
    if x.dtype.kind != "f" or dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return x.astype(dtype) if x.dtype.kind == "f" else x
    narrow = x.astype(np.float32)
    bits = narrow.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(narrow), narrow, nearest.astype(np.uint32).view(np.float32))


@contextlib.contextmanager
def wide(library: str, dtype: str) -> Iterator[None]:
    """Where float64 exists: for JAX in this context alone."""
    if library == "jax" and dtype == "float64":
        import jax

        enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before 0.8
        with enable(True):
            yield
    else:
        yield


@dataclass(frozen=True)
class Route:
    """A library, a device, and a path."""

    library: str
    path: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.library}{'' if self.device == 'cpu' else ' ' + self.device} {self.path}"

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways to a gradient."""
        own = {
            ("torch", "kernel"): ("formula", "backward"),
            ("torch", "generic"): ("formula", "backward", "func"),
            ("torch", "compiled"): ("compile",),
            ("jax", "kernel"): ("formula", "vjp"),
            ("jax", "generic"): ("formula",),
            ("jax", "jit"): ("jit",),
        }
        return own.get((self.library, self.path), ("formula",))

    @property
    def autodiff(self) -> tuple[str, ...]:
        """The ways of the library's own."""
        return tuple(way for way in self.ways if way != "formula")

    @property
    def compiles(self) -> bool:
        """Whether a call of a new shape takes a tenth of a second and more: it is compiled, or cut into tasks."""
        return self.library in ("jax", "dask") or self.path == "compiled"

    def unless(self, dtype: str) -> str:
        """Why this dtype does not exist on this route; empty where it does."""
        if dtype in ("float16", "bfloat16"):
            if self.library == "array_api_strict":
                return "16-bit dtypes are not in the standard"
            if self.library == "dask":
                return "Dask's arrays are not computed in 16 bits"
        if self.library not in NAMESPACES and not hasattr(namespace(self.library), dtype):
            return f"{self.library} has no {dtype}"
        if self.library == "numpy" and dtype == "bfloat16" and find_spec("ml_dtypes") is None:
            return "NumPy has bfloat16 only with ml_dtypes"
        if self.library == "cupy" and dtype == "bfloat16" and not _cupy_has_bfloat16():
            return "CuPy has bfloat16 only with ml_dtypes, and in its newer versions"
        return ""

    @functools.cached_property
    def missing(self) -> str:
        """Why this route cannot be taken on this machine; empty where it can."""
        try:
            if self.library in NAMESPACES and find_spec(self.library) is None:
                return f"{self.library} is not installed"
            self._touch()
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return f"{self.library} on {self.device} cannot be used: {type(error).__name__}: {first}"
        return ""

    def _touch(self) -> None:
        if self.library == "torch" and self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise RuntimeError("torch sees no CUDA device")
        x = self.array(np.ones(2, np.float32))
        if float(to_numpy(x + x)[0]) != 2:
            raise RuntimeError("1 + 1 is not 2")

    @contextlib.contextmanager
    def inside(self, dtype: str = "float32") -> Iterator[None]:
        """The context in which a call takes this route."""
        with wide(self.library, dtype), generic() if self.path == "generic" else contextlib.nullcontext():
            yield

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """``x`` on this route, its floating numbers in ``dtype``; what is no array stays as it is."""
        if not isinstance(x, np.ndarray):
            return x
        if self.library not in NAMESPACES and dtype is not None and x.dtype.kind == "f" and dtype != "bfloat16":
            x = x.astype(dtype)
        given = from_numpy(self.library, x, self.device)
        if dtype is None or x.dtype.kind != "f" or x.dtype.name == dtype:
            return given
        if self.library == "torch":
            return given.to(getattr(namespace("torch"), dtype))
        if dtype == "bfloat16" and self.library != "jax":
            import ml_dtypes

            return given.astype(ml_dtypes.bfloat16)
        if self.library in ("numpy", "jax", "dask", "cupy"):
            return given.astype(dtype)
        xp = namespace(self.library)
        return xp.astype(given, getattr(xp, dtype))

    def arrays(self, given: dict[str, Any], dtype: str | None = None) -> dict[str, Any]:
        """Every array of ``given`` on this route."""
        return {name: self.array(x, dtype) for name, x in given.items()}

    def items(
        self,
        way: str,
        loss: Callable[..., Any],
        given: tuple[np.ndarray, ...],
        options: dict[str, Any],
        wrt: int,
        dtype: str,
    ) -> Answer:
        """The items of a loss, and the gradient of their sum in the argument at ``wrt``."""
        arrays = [self.array(x, dtype) for x in given]
        kept = self.arrays(options, dtype)
        if way == "formula":
            import inspect

            name = list(inspect.signature(loss).parameters)[wrt]
            value, gradient = polyloss.value_and_grad(loss, name)(*arrays, reduction="none", **kept)
            return to_numpy(value), to_numpy(gradient)

        def of(x: Any) -> Any:
            return loss(*arrays[:wrt], x, *arrays[wrt + 1 :], reduction="none", **kept)

        return self.pulled(way, of, arrays[wrt])

    def pulled(self, way: str, function: Callable[[Any], Any], x: Any, cotangent: Any = None) -> Answer:
        """``function(x)``, and its cotangent (ones) pulled back to ``x``, by the library's autodiff.

        Twice the cotangent is sent, and the gradient is halved: exact, and a rule that ignores it is seen. In torch the
        way "twice" is that of ``create_graph``.
        """
        if way == "formula":
            return to_numpy(function(x)), None
        if self.library == "torch":
            return _pulled_torch(way, function, x, cotangent)
        return _pulled_jax(way, function, x, cotangent)


def _pulled_torch(way: str, function: Callable[[Any], Any], x: Any, cotangent: Any) -> Answer:
    import torch

    if way == "func":
        value, pull = torch.func.vjp(function, x)
        return to_numpy(value), _half(pull(2 * (torch.ones_like(value) if cotangent is None else cotangent))[0])
    if way == "compile":
        torch._dynamo.reset()
        function = torch.compile(function, fullgraph=True, dynamic=False)
    x = x.detach().requires_grad_()
    value = function(x)
    above = 2 * (torch.ones_like(value) if cotangent is None else cotangent)
    (gradient,) = torch.autograd.grad(value, x, above, create_graph=way == "twice")
    return to_numpy(value), _half(gradient)


def _pulled_jax(way: str, function: Callable[[Any], Any], x: Any, cotangent: Any) -> Answer:
    import jax

    def both(x: Any, cotangent: Any) -> Any:
        value, pull = jax.vjp(function, x)
        return value, pull(2 * (jax.numpy.ones_like(value) if cotangent is None else cotangent))[0]

    value, gradient = (jax.jit(both) if way == "jit" else both)(x, cotangent)
    return to_numpy(value), _half(gradient)


def _half(gradient: Any) -> np.ndarray:
    found = to_numpy(gradient)
    return (found.astype(np.float32) if found.dtype == np.float16 else found) / 2


@functools.cache
def _cupy_has_bfloat16() -> bool:
    try:
        import ml_dtypes

        return bool(namespace("cupy").dtype(ml_dtypes.bfloat16) == namespace("cupy").zeros(1, ml_dtypes.bfloat16).dtype)
    except (ImportError, TypeError, ValueError):
        return False


@functools.cache
def _points() -> tuple[Any, ...]:
    return tuple(point for point in entry_points(group="polyloss.backends") if point.name not in NAMESPACES)


@functools.cache
def _devices(library: str) -> list[Any]:
    """The devices that a third party's namespace names; none where it has no such list, or does not load."""
    try:
        inspect = getattr(namespace(library), "__array_namespace_info__", None)
        return [place for place in inspect().devices() if place is not None] if inspect is not None else []
    except Exception:  # is reported in the cells, by `Route.missing`
        return []


def routes(device: str | None = None) -> list[Route]:
    """Every route that polyloss knows of, whether or not it can be taken here: cheap ones first."""
    found = [
        Route("numpy", "kernel"),
        Route("numpy", "generic"),
        Route("torch", "kernel"),
        Route("torch", "generic"),
        Route("array_api_strict", "generic"),
        Route("dask", "kernel"),
        Route("dask", "generic"),
        *(
            Route(point.name, path, str(place))
            for point in _points()
            for place in _devices(point.name) or ["cpu"]
            for path in ("kernel", "generic")
        ),
        Route("jax", "kernel"),
        Route("jax", "generic"),
        Route("jax", "jit"),
        Route("torch", "compiled"),
        Route("cupy", "kernel", "cuda"),
        Route("cupy", "generic", "cuda"),
        *(Route("torch", path, "cuda") for path in ("kernel", "generic", "compiled")),
        *(Route("jax", path, "cuda") for path in ("generic", "jit")),
    ]
    return [route for route in found if device is None or route.device == device]
