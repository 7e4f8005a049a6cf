"""The stand-in for CuPy, which a dry run of ``python -m benchmarks.gpu`` takes too; benchmarks/ is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layouts import results

from polyloss.backends.cuda import compiled

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent.parent.parent)
    from benchmarks.gpu.stand_in import LIBRARY, DeviceArray, Stalled, launching, to_device, to_host

__all__ = ["LIBRARY", "DeviceArray", "Stalled", "launching", "on_device", "to_device", "to_host"]


def on_device(loss: Any, *arrays: Any, launches: bool = True, **options: Any) -> list[Any]:
    """`layouts.results` on the device: the mean and its gradient, the items and theirs."""
    given, more = [to_device(a) for a in arrays], {name: to_device(a) for name, a in options.items()}
    with launching() as device:
        got = results(loss, *given, **more)
        assert not launches or device.launched, "takes no kernel"
    assert not compiled.failures, compiled.failures
    assert all(type(x) is DeviceArray for x in got)
    return [to_host(x) for x in got]
