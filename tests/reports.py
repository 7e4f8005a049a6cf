"""A report of conformance as a run would leave it, drawn at random, for the tests of its JSON and its page."""

from __future__ import annotations

import random

from polyloss.conformance.report import Cell, Failure, Report

__all__ = ["realistic"]

FUNCTIONS = """
sigmoid log_sigmoid softplus softmax log_softmax logsumexp sigmoid_cross_entropy softmax_cross_entropy pairwise_hinge
bpr contrastive info_nce contrastive_from_distance binary_log_loss log_loss
""".split()
PLACES = {
    "numpy": ("kernel", "generic"),
    "torch": ("kernel", "generic", "compiled"),
    "jax": ("kernel", "generic", "jit"),
    "dask": ("kernel", "generic"),
    "array_api_strict": ("generic",),
    "cupy": ("generic",),
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
CHECKS = {  # what is typical of its budget; 0 where it has none
    "accuracy": 0.3,
    "autodiff": 0.2,
    "finite differences": 0.05,
    "agreement": 0.12,
    "laws": 0.0,
    "exhaustive": 0.4,
}
UNARY = ("sigmoid", "log_sigmoid", "softplus")
NO_GPU = "CuPy is here, but no CUDA device: cudaErrorNoDevice: no CUDA-capable device is detected"
NO_NATIVE = "there is no bfloat16 in this library"
NOT_SMALL = "exhaustive: all values of a 16-bit dtype only"
LOST = "compiling took longer than the 60 s that --quick gives it"


def realistic(seed: int = 0, faults: int = 3) -> Report:
    """Some thousands of cells, of which so many failed."""
    rng = random.Random(seed)
    cells = [
        _cell(rng, check, function, library, path, dtype)
        for function in FUNCTIONS
        for library, paths in PLACES.items()
        for path in paths
        for dtype in DTYPES
        for check in CHECKS
    ]
    # A function of which laws alone are known, and in no 16-bit dtype.
    cells += [
        _cell(rng, "laws", "value_and_grad", x, path, d) for x in PLACES for path in PLACES[x] for d in DTYPES[:2]
    ]
    passed = [i for i, cell in enumerate(cells) if cell.status == "passed"]
    for i in rng.sample(passed, faults):
        cells[i] = _failed(rng, cells[i])
    return Report(
        cells=tuple(cells),
        environment=ENVIRONMENT,
        options={"level": "quick", "seed": seed, "library": None, "loss": ["bpr", "info_nce"]},
        created="2026-11-24T18:00:00+00:00",
        seconds=41.3,
    )


def _cell(rng: random.Random, check: str, function: str, library: str, path: str, dtype: str) -> Cell:
    def without(status: str, reason: str) -> Cell:
        return Cell(check, function, library, path, dtype, "cuda:0" if library == "cupy" else "cpu", status, reason)  # type: ignore[arg-type]

    if library == "cupy":
        return without("not run", NO_GPU)
    if dtype == "bfloat16" and library in ("numpy", "dask", "array_api_strict"):
        return without("not applicable", NO_NATIVE)
    if check == "autodiff" and library not in ("torch", "jax"):
        return without("not applicable", f"{library} has no autodiff")
    if check == "exhaustive" and (function not in UNARY or dtype not in DTYPES[2:]):
        return without("not applicable", NOT_SMALL)
    if check == "finite differences" and dtype != "float64":
        return without("not applicable", "finite differences need float64")
    if path == "compiled" and function == "info_nce" and (dtype == "bfloat16" or check == "autodiff"):
        return without("not run", LOST)
    budgeted = CHECKS[check] * (2.2 if function in ("softmax_cross_entropy", "info_nce") else 1)
    share = min(rng.lognormvariate(0, 0.5) * budgeted, 0.97) if budgeted else None
    seconds = rng.lognormvariate(-5, 1.5) * (20 if path == "compiled" else 4 if path == "jit" else 1)
    return Cell(check, function, library, path, dtype, "cpu", "passed", "", share, rng.randrange(1, 900), seconds)


def _failed(rng: random.Random, cell: Cell) -> Cell:
    share = None if cell.share is None else rng.choice((1.4, 17.0, 5.2e5))
    failure = Failure(
        law="the gradient is that of the 60-digit oracle" if share else "a masked item adds exactly nothing",
        where="a gap of 40 between the label's logit and the others, <script>alert(1)</script> & K = 2",
        input="x = array([[0., 40.]], dtype=float32), y = array([1])",
        reproduce=f"python -m polyloss conformance --library {cell.library} --loss {cell.function} "
        f"--dtype {cell.dtype} --path {cell.path} --seed 0 --case 'gap 40, label 1'",
        expected="4.248354255291589e-18",
        got="0.0",
        ulps=None if share is None else share * 6,
        budget=None if share is None else 6.0,
    )
    return Cell(
        cell.check,
        cell.function,
        cell.library,
        cell.path,
        cell.dtype,
        cell.device,
        "failed",
        "",
        share,
        cell.cases,
        cell.seconds,
        (failure,),
    )


KERNEL = "polyloss.backends.cpu.elements"
ENVIRONMENT = {
    "polyloss": "0.1.0",
    "python": "3.11.7",
    "system": "Linux",
    "machine": "x86_64",
    "processor": "AMD EPYC 7B13",
    "cores": 2,
    "kernels": "compiled once and kept on disk; 2 threads",
    "libraries": [
        {
            "library": library,
            "version": version,
            "device": device,
            "memory": "host" if device else "",
            "paths": {"softplus cross-entropy": path, "log-sum-exp cross-entropy": path} if path else {},
            "reason": reason,
        }
        for library, version, device, path, reason in (
            ("numpy", "2.4.6", "cpu", KERNEL, ""),
            ("torch", "2.13.0+cpu", "cpu", KERNEL, ""),
            ("jax", "0.10.2", "TFRT_CPU_0", KERNEL, ""),
            ("dask", "2026.8.0", "", "polyloss.backends.dask", ""),
            ("array_api_strict", "2.6.1", "CPU_DEVICE", "formula", "its memory is not known"),
            ("cupy", "13.6.0", "", "", "not usable: CUDARuntimeError: " + NO_GPU),
        )
    ],
}
