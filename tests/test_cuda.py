"""The kernels for CUDA memory, as far as a machine without a GPU can tell.

The simulator runs them (`tests/simulated`, in a process of its own, because the device functions are chosen when they
are first imported). The toolchain, where it is installed, compiles them for two architectures: what is looked at is
the language of the virtual machine (PTX) and what the assembler says of registers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import operator
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ptx
import pytest

from polyloss.backends import Unavailable
from polyloss.backends.cuda import compiled, memory
from polyloss.backends.cuda.fields import ROWS_BLOCK, SUMS_BLOCK

HERE = Path(__file__).parent
WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}


@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "simulated").glob("test_*.py")))
def test_in_the_simulator(file: str, pytestconfig: pytest.Config) -> None:
    pytest.importorskip("greenlet")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    kernels = ["--kernels", pytestconfig.getoption("kernels")]
    done = subprocess.run(
        [*command, *kernels, f"tests/simulated/{file}"],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
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


@contextlib.contextmanager
def _pretended(capability: tuple[int, int]) -> Iterator[None]:
    """Numba asks a device for what it is told already."""
    import numba.cuda.dispatcher

    real = numba.cuda.dispatcher.get_current_device
    numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        numba.cuda.dispatcher.get_current_device = real


@functools.cache
def _text(key: tuple[Any, ...], capability: tuple[int, int]) -> str:
    with _pretended(capability):
        return compiled.ptx(key, capability)


def _operations(text: str) -> list[str]:
    """The names of the instructions, as ``ld.global.v4.b32``."""
    return re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", text, re.MULTILINE)


@toolchain
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
def test_every_kernel_compiles_and_spills_no_register(
    launchable_key: tuple[Any, ...], capability: tuple[int, int], record_property: Any
) -> None:
    from polyloss.backends.cuda import driver

    code, said = driver.cubin(_text(launchable_key, capability), capability, ("-verbose", "-Xptxas=-v"))
    assert code.startswith(b"\x7fELF")
    entry = re.search(r"\.visible \.entry (\S+?)\(((?:.|\n)*?)\)", _text(launchable_key, capability))
    assert entry is not None
    assert entry[1].encode() in code
    # One block of 64-bit parameters, without gaps, is what a launch passes.
    kinds = re.findall(r"\.param \.([a-z]\d+)", entry[2])
    letters = importlib.import_module(f"polyloss.backends.cuda.{launchable_key[0]}").PARAMETERS
    assert kinds == [{"q": "u64", "d": "f64"}[letter] for letter in letters]
    assert not any(name.startswith(("atom", "red.")) for name in _operations(_text(launchable_key, capability)))
    registers = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
    record_property("registers", registers)
    assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", said), said
    # What `call.room` leaves to it beside its dynamic shared memory. From 9.0 on what the system takes is counted, too.
    static = int((re.search(r"(\d+) bytes smem", said) or ["", "0"])[1])
    static -= 1024 if capability >= (9, 0) and static else 0
    small = launchable_key[0] in ("rows", "transforms") and "float64" not in launchable_key
    assert static <= (1024 if small else driver.STATIC)
    threads, blocks = compiled.bounds(launchable_key, capability)
    assert registers * threads * blocks <= 65536, "fewer blocks fit on a multiprocessor than the launch wants"


@toolchain
@pytest.mark.parametrize("x", WIDE)
def test_memory_is_read_and_written_16_bytes_at_a_time(x: str) -> None:
    vector = "v2" if x == "float64" else "v4"
    for key in (
        ("rows", x, "int64", "block256", True, True),
        ("rows", x, "int64", "few vectors", True, True),
        ("soft", x, x, True, "block256", True),
        ("elements", x, x, "plain", True, True),
        ("elements", x, "bool", "vectors", True, True),
    ):
        found = _operations(_text(key, (9, 0)))
        assert any(name.startswith(f"ld.global.{vector}.") for name in found), key
        assert any(name.startswith(f"st.global.{vector}.") for name in found), key
    # Without a mask: where there may be one, there are two loops, of which one runs.
    for key in (("rows", x, "int64", "block256", True, True), ("soft", x, "int64", False, "block256", True)):
        found = _operations(_text(key, (9, 0)))
        assert sum(name.startswith(f"ld.global.{vector}.") for name in found) == 4, f"{key}: a row is read once"


@toolchain
@pytest.mark.parametrize("x", ["float32", "float16", "bfloat16"])
def test_arithmetic_is_in_single_precision_with_the_accurate_exponential(x: str) -> None:
    """The exponential is NVIDIA's own of 1 ulp: reduced to [0, 1], ``ex2.approx``, and a product that may underflow."""
    for key in (("rows", x, "int64", "long256", True, True), ("elements", x, x, "plain", True, True)):
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


# The stand-ins of the simulator against what the hardware is told to do.


def _function_text(inputs: int, outputs: int, of: Callable[..., Any]) -> str:
    """PTX of a kernel that stores what the device function makes of the numbers at its first address."""
    import numba.cuda

    from polyloss.backends.cuda import intrinsics

    load, store = intrinsics.load("float32", "float32"), intrinsics.store("float32", "float32")
    if inputs == 1:

        def kernel(a, b):  # type: ignore[no-untyped-def]
            store(b, 0, of(load(a, 0)))

    elif outputs == 1:

        def kernel(a, b):  # type: ignore[no-untyped-def]
            store(b, 0, of(load(a, 0), load(a, 1)))

    else:
        pack, lower, upper = of.pack, of.lower, of.upper  # type: ignore[attr-defined]

        def kernel(a, b):  # type: ignore[no-untyped-def]
            word = pack(load(a, 0), load(a, 1))
            store(b, 0, lower(word))
            store(b, 1, upper(word))

    with _pretended((9, 0)):
        return str(numba.cuda.compile_ptx(kernel, intrinsics.signature("qq"), cc=(9, 0))[0])


def _samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    large = np.concatenate([rng.uniform(0, 110, 300), 10.0 ** rng.uniform(-44, 38, 300), np.arange(0, 105.0)])
    return np.concatenate([large, [0.0, 1.0, np.inf, np.nan]]).astype(np.float32)


@toolchain
@pytest.mark.parametrize("name", ["exp", "log1p"])
def test_the_simulators_functions_are_the_hardwares_to_an_ulp(name: str) -> None:
    from polyloss.backends.cuda import intrinsics, simulator

    x = -_samples() if name == "exp" else _samples()
    text = _function_text(1, 1, getattr(intrinsics, name))
    hardware = np.array([ptx.run(text, [x[i : i + 1]], 1)[0][0] for i in range(len(x))])
    with np.errstate(all="ignore"):
        simulated = getattr(simulator, name)(x)
    np.testing.assert_array_equal(np.isnan(hardware), np.isnan(simulated))
    finite = np.isfinite(simulated)
    np.testing.assert_array_equal(hardware[~finite & ~np.isnan(x)], simulated[~finite & ~np.isnan(x)])
    error = np.abs(hardware[finite] - simulated[finite])
    assert np.all(error <= 2 * np.spacing(np.abs(simulated[finite])))


@toolchain
def test_the_simulators_quotient_and_maximum_are_the_hardwares() -> None:
    from polyloss.backends.cuda import intrinsics, simulator

    rng = np.random.default_rng(1)
    a, b = rng.random(500, np.float32), 1 + rng.random(500, np.float32)
    got = ptx.run(_function_text(2, 1, intrinsics.ratio("float32")), [a, b], 1)[0]
    np.testing.assert_array_equal(got, simulator.ratio("float32")(a, b))
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1], np.float32)
    a, b = (m.ravel() for m in np.meshgrid(special, special))
    got = ptx.run(_function_text(2, 1, intrinsics.maximum("float32")), [a, b], 1)[0]
    np.testing.assert_array_equal(got, simulator.maximum("float32")(a, b))


@toolchain
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_simulators_halves_are_the_hardwares_bit_for_bit(dtype: str) -> None:
    from polyloss.backends.cuda import intrinsics, simulator

    rng = np.random.default_rng(2)
    ties = (np.arange(200, dtype=np.uint32) * 0x8000 + 0x3F800000).view(np.float32)
    ties = np.concatenate([ties, 2.0 ** np.arange(-30.0, -10), [65504, 65519, 65520, np.inf, -np.inf, np.nan, 3e38]])
    a = np.concatenate([ties, rng.standard_normal(300) * 10.0 ** rng.uniform(-30, 30, 300)]).astype(np.float32)
    b = a[::-1].copy()
    of = dict(zip(("lower", "upper", "pack"), intrinsics.halves(dtype)))
    got = ptx.run(_function_text(2, 2, types.SimpleNamespace(**of)), [a, b], 2)  # type: ignore[arg-type]
    lower, upper, pack = simulator.halves(dtype)
    with np.errstate(all="ignore"):
        words = [pack(*pair) for pair in zip(a, b)]
        np.testing.assert_array_equal(got[0].view(np.float32), np.array([lower(w) for w in words]))
        np.testing.assert_array_equal(got[1].view(np.float32), np.array([upper(w) for w in words]))


@toolchain
@pytest.mark.parametrize("distance", [1, 2, 4, 8, 16])
def test_the_simulators_shuffle_is_the_hardwares(distance: int) -> None:
    import numba.cuda

    from polyloss.backends.cuda import intrinsics, simulator

    shuffle = intrinsics.shuffle
    load, store = intrinsics.load("float32", "float32"), intrinsics.store("float32", "float32")

    def kernel(a, b):  # type: ignore[no-untyped-def]
        store(b, 0, shuffle(load(a, 0), distance))

    with _pretended((9, 0)):
        text = str(numba.cuda.compile_ptx(kernel, intrinsics.signature("qq"), cc=(9, 0))[0])
    x = np.arange(32, dtype=np.float32)
    seen: dict[int, Any] = {}
    simulator.launch(
        lambda: seen.update({simulator.thread(): simulator.shuffle(x[simulator.thread()], distance)}), 1, 32, 0, ()
    )
    got = ptx.run(text, [x], 1)[0]
    np.testing.assert_array_equal(got.view(np.float32), [seen[i] for i in range(32)])


@toolchain
@pytest.mark.parametrize("operator", [operator.add, operator.sub, operator.mul, operator.and_])
def test_what_32_bit_integers_make_has_64_bits_as_in_the_simulator(operator: Callable[[Any, Any], Any]) -> None:
    """So none is beyond its type but where a kernel narrows to 32 bits itself, and there the simulator looks at it."""
    import numba.cuda

    from polyloss.backends.cuda import intrinsics

    def device(i, j):  # type: ignore[no-untyped-def]
        return operator(i, j)

    with _pretended((9, 0)):
        found = numba.cuda.compile_ptx(device, (intrinsics.int32, intrinsics.int32), cc=(9, 0), device=True)[1]
    assert found == numba.cuda.types.int64


# The launch, with a driver that only remembers.


class Seen(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in (
                *("context", "kernel", "stream", "blocks", "threads", "dynamic", "size", "room", "launches"),
                *("refusal", "mode", "loading", "ready"),
            )
        ),
        ("parameters", ctypes.c_char * 512),
        ("name", ctypes.c_char * 512),
        ("code", ctypes.c_char * 4),
    )


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from polyloss.backends.cuda import driver

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NOT RUN: there is no C compiler")
    path = tmp_path / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, HERE / "driver_stub.c"], check=True)
    loaded = ctypes.CDLL(str(path))
    cached = (driver.library, driver._context, driver._handle, driver._attribute, compiled.kernel)
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(driver, "_opened", lambda: loaded)
    monkeypatch.setattr(compiled, "failures", {})
    monkeypatch.setenv("POLYLOSS_CACHE_DIR", str(tmp_path / "cache"))
    try:
        with _pretended((9, 0)):
            yield loaded
    finally:
        for function in cached:
            function.cache_clear()


@toolchain
@pytest.mark.parametrize("device", [0, 1])
def test_a_launch_tells_the_driver_the_stream_the_sizes_and_the_parameters(stub: Any, device: int) -> None:
    parameters = SUMS_BLOCK.pack(1 << 40, -1, 3, 4, 5, 6.5)
    kernel = compiled.kernel("sums", "float32")
    for _ in range(2):
        kernel((device, 0x77), 3, parameters, 0)
    seen = Seen.in_dll(stub, "seen")
    assert seen.launches == 2
    assert (seen.blocks, seen.threads, seen.dynamic, seen.stream) == (3, 1024, 0, 0x77)
    assert bytes(bytearray(seen)[Seen.parameters.offset :][: seen.size]) == parameters
    assert seen.context == 0x1000 + device, "not in the context of the array's device"
    assert stub.depth_of_contexts() == 1, "the user's context is not the current one any more"
    assert seen.code == b"\x7fELF"
    assert b"kernel" in seen.name


SUM = SUMS_BLOCK.pack(8, 0, 8, 0, 1, 1.0)


@toolchain
def test_a_kernel_is_made_in_the_context_of_its_device_and_while_a_stream_is_captured(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compiled.ptx

    def written(key: Any, capability: tuple[int, int]) -> str:
        current = ctypes.c_void_p()
        stub.cuCtxGetCurrent(ctypes.byref(current))
        contexts.append(current.value)
        return real(key, capability)

    contexts: list[int | None] = []
    monkeypatch.setattr(compiled, "ptx", written)
    seen = Seen.in_dll(stub, "seen")
    seen.mode = 0  # forbids to load while any stream is captured
    kernel = compiled.kernel("sums", "float32")
    for device in (1, 0):
        kernel((device, 0), 1, SUM)
        assert (seen.loading, seen.ready, seen.mode) == (2, 2, 0)
        assert stub.depth_of_contexts() == 1
    assert contexts == [0x1001], "the machine code serves both devices, which are alike"


@toolchain
def test_where_machine_code_cannot_be_made_the_driver_gets_the_ptx(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvjitlink

    def older(*arguments: Any) -> None:
        raise RuntimeError("ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.setattr(nvjitlink, "add_data", older)
    compiled.kernel("sums", "float32")((0, 0), 1, SUM)
    seen = Seen.in_dll(stub, "seen")
    assert seen.launches == 1
    assert seen.code == _text(("sums", "float32"), (9, 0)).encode()[:4]


@toolchain
@pytest.mark.parametrize(("status", "passing"), [(2, True), (900, True), (222, False)])
def test_a_refusal_is_remembered_of_that_device_if_it_will_not_pass(
    stub: Any, monkeypatch: pytest.MonkeyPatch, status: int, passing: bool
) -> None:
    made, real = [], compiled.ptx
    monkeypatch.setattr(compiled, "ptx", lambda *key: (made.append(key), real(*key))[1])
    seen = Seen.in_dll(stub, "seen")
    kernel = compiled.kernel("sums", "float32")
    seen.refusal = status
    with pytest.raises(Unavailable, match=f"status {status}"):
        kernel((0, 0), 1, SUM)
    assert stub.depth_of_contexts() == 1
    seen.refusal = 0
    kernel((1, 0), 1, SUM)  # another device
    if passing:
        kernel((0, 0), 1, SUM)
    else:
        with pytest.raises(Unavailable, match=f"status {status}"):
            kernel((0, 0), 1, SUM)
    assert seen.launches == 1 + passing
    assert len(made) == 1, "compiled again"


@toolchain
def test_a_long_row_may_have_all_the_shared_memory_there_is(stub: Any) -> None:
    key = ("rows", "float32", "int64", "long512", True, True)
    compiled.kernel(*key)((0, 0), 1, ROWS_BLOCK.pack(*range(19), 0.0, 1.0, 1.0), 200_000)
    seen = Seen.in_dll(stub, "seen")
    assert seen.dynamic == 200_000 <= seen.room
    # With what is static, no more than a block may have.
    _, said = importlib.import_module("polyloss.backends.cuda.driver").cubin(_text(key, (9, 0)), (9, 0), ("-verbose",))
    static = int(re.search(r"(\d+) bytes smem", said)[1])  # type: ignore[index]
    assert seen.room + static <= 232448


@toolchain
def test_a_kernel_is_compiled_once_and_its_file_read_by_every_process_after(
    stub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def launched() -> bytes:
        compiled.kernel.cache_clear()  # as in a new process
        compiled._given.cache_clear()
        compiled.kernel("sums", "float32")((0, 0), 1, SUM)
        return bytes(Seen.in_dll(stub, "seen").code)

    made, real = [], compiled.ptx
    monkeypatch.setattr(compiled, "ptx", lambda *of: (made.append(of), real(*of))[1])
    assert [launched(), launched()] == [b"\x7fELF"] * 2
    assert len(made) == 1
    (file,) = (tmp_path / "cache").iterdir()
    assert re.fullmatch(r"sums-float32-sm_90-[0-9a-f]{32}\.ptx", file.name)

    file.write_bytes(file.read_bytes()[:-9] + b"damaged.\n")
    assert launched() == b"\x7fELF"
    assert len(made) == 2

    # Whatever it depends on, a new file.
    texts = {path: text + b"#" * (path.stem == "intrinsics") for path, text in compiled.SOURCES.texts.items()}
    with monkeypatch.context() as patch:
        patch.setattr(compiled.SOURCES, "texts", texts)
        launched()
    for package in ("numba-cuda", "numba"):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "version", lambda name, other=package: "0" if name == other else version(name))
            launched()
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CUDA_DEFAULT_PTX_CC", "8.0")
        launched()
    with monkeypatch.context() as patch:
        other = types.SimpleNamespace(abs_path=__file__)
        patch.setattr("cuda.pathfinder.load_nvidia_dynamic_lib", lambda name: other)
        launched()
    assert len(made) == 7
    assert len(list((tmp_path / "cache").iterdir())) == 5, "of an edit, of which the files know nothing, none is kept"

    # And where nobody says which NVVM it is, there is no file.
    def unknown(name: str) -> Any:
        raise RuntimeError(f"{name} was not found")

    monkeypatch.setattr("cuda.pathfinder.load_nvidia_dynamic_lib", unknown)
    launched()
    assert len(made) == 8
    assert len(list((tmp_path / "cache").iterdir())) == 5


@toolchain
@pytest.mark.parametrize("family", ["elements", "lanes", "rows", "soft", "split", "sums", "transforms"])
def test_what_a_kernel_is_compiled_from_is_among_its_sources(family: str) -> None:
    """Every device function that its modules hold was written in one of them."""
    package = compiled.__name__.rpartition(".")[0]
    found = {f"{package}.{path.stem}" for path in compiled.SOURCES.of(compiled.modules((family,)))}
    held = [value for name in found for value in vars(importlib.import_module(name)).values()]
    assert {name for value in held if (name := str(getattr(value, "__module__", ""))).startswith(package)} <= found


def test_without_the_toolchain_or_a_driver_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.missing.cache_clear()
    if not memory.missing(0):
        pytest.skip("NOT RUN: this machine has a GPU and the toolchain")
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    memory.missing.cache_clear()
    assert "pip install" in memory.missing(0)
    monkeypatch.undo()
    memory.missing.cache_clear()
