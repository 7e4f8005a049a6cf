"""The stand-in for CuPy, which a dry run of ``python -m benchmarks.gpu`` takes too; benchmarks/ is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent.parent.parent)
    from benchmarks.gpu.stand_in import LIBRARY, DeviceArray, Stalled, launching, to_device, to_host

__all__ = ["LIBRARY", "DeviceArray", "Stalled", "launching", "to_device", "to_host"]
