"""The kernels for CUDA memory, as far as a machine without a GPU can tell.

The simulator runs them (`tests/simulated`, in a process of its own, because the device functions are chosen when they
are first imported). The toolchain, where it is installed, compiles them for two architectures: what is looked at is
the language of the virtual machine (PTX) and what the assembler says of registers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from polyloss.backends.cuda import compiled

HERE = Path(__file__).parent
WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
FORMS = ("few", "warp", "block64", "block128", "block256", "long256", "long512", "scalar block")


@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "simulated").glob("test_*.py")))
def test_in_the_simulator(file: str) -> None:
    pytest.importorskip("greenlet")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, f"tests/simulated/{file}"], cwd=HERE.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# With the toolchain.


def _missing() -> str:
    for module in ("numba_cuda", "cuda.bindings.nvjitlink"):
        try:
            if importlib.util.find_spec(module) is None:
                return module
        except ImportError:
            return module
    return ""


toolchain = pytest.mark.skipif(bool(_missing()), reason=f"NOT RUN: the toolchain is not installed ({_missing()})")

KEYS: list[tuple[Any, ...]] = [
    *(("rows", x, "int64", form, True, True) for x in WIDE for form in FORMS),
    *(("rows", x, "int64", form, False, True) for x in WIDE for form in ("few", "warp", "block256")),
    *(("rows", x, "int64", form, True, False) for x in WIDE for form in ("few", "block256", "long512")),
    *(("rows", x, "int32", "block256", True, True) for x in WIDE),
    *(("split", x, "", "block512") for x in WIDE),
    *(("split", x, "int64", "") for x in WIDE),
    *(("soft", x, x, True, True, "scalar block", True, True) for x in WIDE),
    *(("soft", x, "int64", False, False, "scalar warp", True, True) for x in WIDE),
    *(("soft", x, "float32", False, False, "scalar block", True, False) for x in WIDE),
    *(("elements", x, x, True, True, True) for x in WIDE),
    *(("elements", x, "bool", False, True, True) for x in WIDE),
    *(("elements", x, "float32", False, False, True) for x in WIDE),
    *(("sums", wide) for wide in ("float32", "float64")),
    *(("transforms", f, x, "") for x in WIDE for f in ("sigmoid", "log_sigmoid", "softplus")),
    *(("transforms", f, x, "scalar warp") for x in WIDE for f in ("softmax", "log_softmax", "logsumexp")),
    *(("transforms", "softmax", x, "scalar block") for x in WIDE),
]


@functools.cache
def _text(key: tuple[Any, ...], capability: tuple[int, int]) -> str:
    import numba.cuda.dispatcher

    there = numba.cuda.dispatcher.get_current_device
    # Numba asks the device for what it is told already.
    numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability)
    try:
        return compiled.ptx(key, capability)
    finally:
        numba.cuda.dispatcher.get_current_device = there


def _operations(text: str) -> list[str]:
    """The names of the instructions, as ``ld.global.v4.b32``."""
    return re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", text, re.MULTILINE)


@toolchain
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: "-".join(map(str, key)))
def test_every_kernel_compiles_and_spills_no_register(
    key: tuple[Any, ...], capability: tuple[int, int], record_property: Any
) -> None:
    from polyloss.backends.cuda import driver

    code, said = driver.cubin(_text(key, capability), capability, ("-verbose", "-Xptxas=-v"))
    assert code.startswith(b"\x7fELF")
    registers = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
    record_property("registers", registers)
    assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", said), said
    threads, blocks = compiled.bounds(key, capability)
    assert registers * threads * blocks <= 65536, "fewer blocks fit on a multiprocessor than the launch wants"


@toolchain
@pytest.mark.parametrize("x", WIDE)
def test_memory_is_read_and_written_16_bytes_at_a_time(x: str) -> None:
    vector = "v2" if x == "float64" else "v4"
    for key in (("rows", x, "int64", "block256", True, True), ("elements", x, x, True, True, True)):
        found = _operations(_text(key, (9, 0)))
        assert any(name.startswith(f"ld.global.{vector}.") for name in found), key
        assert any(name.startswith(f"st.global.{vector}.") for name in found), key
    found = _operations(_text(("rows", x, "int64", "block256", True, True), (9, 0)))
    assert sum(name.startswith(f"ld.global.{vector}.") for name in found) == 4, "a row is read once"


@toolchain
@pytest.mark.parametrize("x", ["float32", "float16", "bfloat16"])
def test_arithmetic_is_in_single_precision_with_the_accurate_exponential(x: str) -> None:
    """The exponential is NVIDIA's own of 1 ulp: a reduction to [0, 1], ``ex2.approx``, and a product that may underflow."""
    for key in (("rows", x, "int64", "long256", True, True), ("elements", x, x, True, True, True)):
        found = _operations(_text(key, (9, 0)))
        assert "ex2.approx.ftz.f32" in found
        assert not any(name in ("fma.rn.ftz.f32", "mul.ftz.f32", "div.full.f32", "lg2.approx.f32") for name in found)
        doubled = [name for name in found if name.endswith(".f64") and name.split(".")[0] in ("fma", "mul", "div")]
        assert len(doubled) <= 3, doubled  # the value of the whole call


@toolchain
def test_halves_are_rounded_in_pairs_by_the_hardware() -> None:
    for x, pair in (("bfloat16", "cvt.rn.bf16x2.f32"), ("float16", "cvt.rn.f16x2.f32")):
        assert pair in _operations(_text(("rows", x, "int64", "block256", True, True), (8, 0)))


@toolchain
def test_a_team_meets_by_shuffles_and_a_block_at_barriers() -> None:
    few = _operations(_text(("rows", "float32", "int64", "few", False, True), (9, 0)))
    assert not any(name.startswith(("shfl", "bar.")) for name in few), "a gradient needs nobody else"
    for form in ("warp", "block256"):
        found = _operations(_text(("rows", "float32", "int64", form, True, True), (9, 0)))
        assert "shfl.sync.bfly.b32" in found
        assert sum(name.startswith("bar.sync") for name in found) == (1 if form == "warp" else 3)
    assert not any(name.startswith(("atom", "red.")) for key in KEYS[:8] for name in _operations(_text(key, (9, 0))))
