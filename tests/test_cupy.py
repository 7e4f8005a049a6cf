"""The rules for CuPy's arrays, on a stand-in for CuPy, which needs a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import array_api_compat
import numpy as np
import pytest

from polyloss import backends


class Array:
    """As much of ``cupy.ndarray`` as the rules look at."""

    def __init__(self, x: np.ndarray, device: int, address: int = 512) -> None:
        self.dtype, self.shape, self.strides, self.itemsize = x.dtype, x.shape, x.strides, x.itemsize
        self.data = SimpleNamespace(device_id=device, ptr=address)
        self.device = Device(device)


class Device:
    current: ClassVar = [0]

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        self.current.append(self.number)

    def __exit__(self, *error: Any) -> None:
        self.current.pop()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    cupy, compat = ModuleType("cupy"), ModuleType("array_api_compat.cupy")
    vars(cupy).update(
        ndarray=Array,
        cuda=SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: Device.current[-1])),
        empty=lambda shape, dtype: (Device.current[-1], shape),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", compat)
    monkeypatch.setattr(array_api_compat, "cupy", compat, raising=False)
    path = Path(backends.__file__).parent / "cupy.py"
    spec = importlib.util.spec_from_file_location("polyloss.backends.cupy_on_a_stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LIBRARY


@pytest.mark.parametrize("device", [0, 1])
def test_a_call_runs_on_the_device_of_its_array(library: Any, device: int) -> None:
    x = Array(np.zeros((2, 3)), device)
    with library.scope(x):
        assert Device.current[-1] == device
    assert Device.current == [0]
    assert library.empty((4,), np.float32, x) == (device, (4,))


def test_kernels_take_elements_at_multiples_of_their_size_alone(library: Any) -> None:
    x = np.zeros((2, 3), np.float32)
    assert library.stored(Array(x, 0)) == "float32"
    assert library.stored(Array(x[:, ::2], 0)) == "float32"
    record = np.zeros(4, np.dtype([("x", np.float32), ("flag", np.int8)]))
    for odd in (Array(record["x"], 0), Array(x, 0, address=514)):
        assert library.stored(odd) is None
        assert library.signature(odd) is None
