"""Dask: every loss and gradient lazily, however the arrays are split, with NumPy's numbers and on the kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import polyloss
from polyloss import dispatch
from polyloss.conformance.losses import LOSSES, Row

da = pytest.importorskip("dask.array")

import dask  # noqa: E402
from dask.callbacks import Callback  # noqa: E402

N = 11
KEPT = np.array([True, True, False, True, True, False, False, False, True, True, True])
"""In blocks of 4, 1, 3 and 3: the third keeps no item."""

Chunk = Callable[[str, int, np.ndarray], Any]  # from a name, the number of items, and an array


def _split(sizes: Any, classes: Any = None) -> Chunk:
    """The items of an array in blocks of these sizes, the other axes in blocks of another."""

    def chunk(x: np.ndarray) -> Any:
        return da.from_array(x, chunks=(sizes, *(classes or n for n in x.shape[1:])))

    return chunk


UNEVEN = ((4, 1, 3, 3),)
LAYOUTS: dict[str, Any] = {
    "one block": _split(-1),
    "items": _split(4),
    "items, unevenly": _split(*UNEVEN),
    "classes too": _split(4, 2),
    "an empty block": _split((0, 5, 0, 6), 1),
    "unknown sizes": lambda x: _split(*UNEVEN)(x)[_split(*UNEVEN)(KEPT)],
    "unknown sizes, classes too": lambda x: _split(*UNEVEN, 2)(x)[_split(*UNEVEN)(KEPT)],
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_loss = pytest.mark.parametrize("name", LOSSES)

WEIGHTS = np.linspace(0.5, 1.5, N)
EXTRAS: dict[str, dict[str, Any]] = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "mean": {},
    "weights": {"weights": WEIGHTS},
    "where": {"where": np.arange(N) % 3 != 1},
    "weights, where, none": {"weights": WEIGHTS, "where": np.arange(N) % 3 != 1, "reduction": "none"},
    "denominator": {"weights": WEIGHTS, "denominator": 7.5},
    "nothing to average": {"where": np.zeros(N, bool)},
}


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def _both(
    row: Row, layout: str, extra: dict[str, Any], dtype: str = "float64"
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The arguments in NumPy and in Dask, and those that are differentiable."""
    arguments = row.arguments(5, N, dtype)
    extra = {name: x.astype(dtype) if name == "weights" else x for name, x in extra.items()}
    kept = KEPT if "unknown" in layout else np.ones(N, bool)
    ours, theirs = dict(row.options), dict(row.options)
    for name, x in (arguments | extra).items():
        if not isinstance(x, np.ndarray):
            ours[name] = theirs[name] = x
        elif name in row.shared:
            ours[name], theirs[name] = da.from_array(x, chunks=2), x
        else:
            ours[name], theirs[name] = LAYOUTS[layout](x), x[kept]
    return ours, theirs, row.floating(arguments)


def _refused(row: Row, layout: str) -> bool:
    """The items of in-batch candidates are classes too, whose number must be known."""
    in_batch = row.loss is polyloss.info_nce and "negatives" not in row.draw(np.random.default_rng(0), 2, 1.0)
    return "unknown" in layout and (in_batch or "in_batch" in row.options)


@every_layout
@every_loss
def test_value_and_gradients_are_those_of_numpy(name: str, layout: str) -> None:
    row = LOSSES[name]
    computed = []
    for extra in EXTRAS.values():
        ours, theirs, wrt = _both(row, layout, extra)
        if _refused(row, layout):
            with pytest.raises(ValueError, match=r"queries has a size that is not known yet.*compute_chunk_sizes"):
                row.loss(**ours)
            return
        with Watch() as watch:
            found = polyloss.value_and_grad(row.loss, wrt)(**ours), row.loss(**ours)
        assert not watch.started
        computed.append((found, polyloss.value_and_grad(row.loss, wrt)(**theirs)))
    with np.errstate(all="raise"):  # nothing here is beyond the numbers
        lazily = dask.compute(*(found for found, _ in computed))
    for ((value, gradients), alone), (_, (expected, slopes)) in zip(lazily, computed, strict=True):
        for a, b in ((value, expected), (alone, expected), *zip(gradients, slopes, strict=True)):
            assert a.dtype == b.dtype
            # A sum of so few terms, near 1 in size, in another order.
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14, equal_nan=True)


class Watch(Callback):  # type: ignore[misc]
    """What was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[object] = []

    def _start(self, graph: object) -> None:
        self.started.append(graph)


BIT_EQUAL = [
    name for name, row in LOSSES.items() if row.loss.__name__ in ("softmax_cross_entropy", "sigmoid_cross_entropy")
]


@every_layout
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BIT_EQUAL)
def test_where_the_same_kernel_runs_items_and_gradients_have_the_same_bits(name: str, dtype: str, layout: str) -> None:
    pytest.importorskip("llvmlite")
    row = LOSSES[name]
    ours, theirs, _ = _both(row, layout, {"reduction": "none"}, dtype)
    found = dask.compute(polyloss.value_and_grad(row.loss)(**ours))[0]
    for a, b in zip(found, polyloss.value_and_grad(row.loss)(**theirs), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The number of elements and of threads of each run of a kernel."""
    pytest.importorskip("llvmlite")
    from polyloss.backends.cpu import call, elements, lse, softplus, threads  # noqa: F401

    runs: list[tuple[int, int]] = []

    def spy(library: Any, kernel: Any, parameters: bytes, blocks: int, size: int) -> int:
        runs.append((size, threads.limit()))
        return call.run(library, kernel, parameters, blocks, size)

    for module in (lse, softplus):
        monkeypatch.setattr(module, "run", spy)
    return runs


def test_each_block_takes_one_run_of_a_kernel_on_one_thread(kernels: list[tuple[int, int]]) -> None:
    x, y = da.ones((N, 4), chunks=(UNEVEN[0], 2)), da.ones(N, chunks=UNEVEN, dtype=int)
    sizes = [4 * n for n in UNEVEN[0]]
    value, gradient = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y)
    dask.compute(value, gradient)
    assert sorted(kernels) == sorted((size, 1) for size in sizes)
    kernels.clear()
    polyloss.softmax_cross_entropy(x, y, weights=da.ones(N, chunks=UNEVEN)).compute()
    assert sorted(kernels) == sorted((size, 1) for size in sizes)
    kernels.clear()
    t = da.ones((N, 4), chunks=(4, 2))
    polyloss.sigmoid_cross_entropy(x.rechunk((4, 2)), t).compute()
    polyloss.bpr(t, t).compute()
    assert [size for size, _ in kernels].count(8) == 8  # by elements, where the classes may be split too
    with dispatch.generic():
        loss = polyloss.softmax_cross_entropy(x, y)
    kernels.clear()
    loss.compute()
    assert kernels == []


def test_outside_of_a_task_a_kernel_has_its_threads_again() -> None:
    threads = pytest.importorskip("polyloss.backends.cpu.threads")
    most = threads.limit()
    with dispatch.shared():
        assert threads.limit() == 1
    assert threads.limit() == most


def test_a_sum_is_accumulated_in_double_precision() -> None:
    """As in NumPy, whose kernels do so: also the count of a mean, where float32 has no more odd numbers."""
    n = 2**24 + 3
    x = da.zeros((n,), chunks=2**22, dtype=np.float32)
    x = x[x == 0]
    assert polyloss.sigmoid_cross_entropy(x, x, reduction="sum").compute() == np.float32(
        n * float(np.log(np.float32(2)))
    )
    np.testing.assert_array_max_ulp(polyloss.sigmoid_cross_entropy(x, x).compute(), np.log(np.float32(2)), 1)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 0, "reduction": "sum"}, {"weights": True}])
def test_few_blocks_are_held_at_once(options: dict[str, Any]) -> None:
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def read(block_info: Any = None) -> np.ndarray:
        nonlocal alive, most
        x = np.ones((5, 4), np.float32)
        weakref.finalize(x, gone)
        alive += 1
        most = max(alive, most)
        return x

    blocks = 40
    x = da.map_blocks(read, chunks=((5,) * blocks, (4,)), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    y = da.ones(5 * blocks, chunks=5, dtype=int)
    if "weights" in options:
        options = {"weights": da.ones(5 * blocks, chunks=5)}
    value, gradient = polyloss.value_and_grad(polyloss.softmax_cross_entropy)(x, y, **options)
    dask.compute(value, (gradient * gradient).sum())
    assert alive == 0
    assert most <= 3


X = da.from_array(np.random.default_rng(0).standard_normal((N, 4)), chunks=(4, 2))
Y = da.from_array(np.arange(N) % 4, chunks=4)
U, V = X[X[:, 0] > 0], Y[X[:, 0] > 0]
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {  # found before anything is computed
    "classes": (lambda: polyloss.softmax_cross_entropy(U.T, V), r"logits has a size.*axis 1.*compute_chunk_sizes"),
    "no classes": (lambda: polyloss.softmax_cross_entropy(U, V[:, None]), r"targets are.*\(nan,\), got \(nan, 1\)"),
    "one-hot": (lambda: polyloss.softmax_cross_entropy(U, U > 0), "one-hot"),
    "targets": (lambda: polyloss.sigmoid_cross_entropy(U, U[:, :3]), r"targets must.*\(nan, 4\), got \(nan, 3\)"),
    "class_weights": (lambda: polyloss.softmax_cross_entropy(U, V, class_weights=U[:, 0]), r"class_weights.*\(4,\)"),
    "blocks": (
        lambda: polyloss.softmax_cross_entropy(U, V, weights=[1.0, 2.0]),
        r"weights must have as many blocks as the loss, 3 along axis 0.*got 1.*compute_chunk_sizes",
    ),
    "candidates": (
        lambda: polyloss.info_nce(X, X, U, temperature=0.5),
        r"negatives has a size.*axis 0.*compute_chunk_sizes",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_needs_a_size_says_so(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


W = Y[Y > 1]
SURPRISES: dict[str, tuple[Callable[[], Any], str]] = {  # found in the tasks
    "targets": (
        lambda: polyloss.softmax_cross_entropy(U, W),
        r"targets has a block .* where that of logits has \(\d,\)",
    ),
    "soft targets": (
        lambda: polyloss.sigmoid_cross_entropy(U, X[Y > 1]),
        r"targets has a block of shape .* logits has \(\d, 2\)",
    ),
    "weights": (lambda: polyloss.softmax_cross_entropy(U, V, weights=W), "weights has a block .* that of the loss has"),
    "where": (lambda: polyloss.softmax_cross_entropy(U, V, where=W > 0), "where has a block .* that of the loss has"),
    "similar": (lambda: polyloss.contrastive(U, U, W > 2), "similar has a block .* that of the loss has"),
    "positives": (
        lambda: polyloss.bpr(U[:, 0], W * 1.0),
        "positive_scores has a block .* that of negative_scores has",
    ),
    "queries": (
        lambda: polyloss.info_nce(U, U, X[Y > 1][:, None, :]),
        "queries has a block .* that of negatives has",
    ),
    "one item beside many": (
        lambda: polyloss.softmax_cross_entropy(X[X[:, 0] < 9], Y[Y >= 0], weights=Y[Y == 1] * 1.0),
        r"weights has a block of shape \(1,\) where that of the loss has \(\d,\)",
    ),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_a_size_that_turns_out_wrong_is_an_error_that_names_the_argument(name: str) -> None:
    call, message = SURPRISES[name]
    lazily = call()
    with pytest.raises(ValueError, match=message):
        lazily.compute()


def test_a_known_size_serves_beside_an_unknown_one() -> None:
    every = Y >= 0
    expected = polyloss.grad(polyloss.softmax_cross_entropy)(X, Y).compute()
    for x, y in ((X, Y[every]), (X[every], Y)):
        found = polyloss.grad(polyloss.softmax_cross_entropy)(x, y)
        assert found.shape[1] == 4
        np.testing.assert_array_equal(found.compute(), expected)


def test_transforms_take_unknown_sizes() -> None:
    x = U.compute()
    for transform in (polyloss.sigmoid, polyloss.log_sigmoid, polyloss.softplus):
        np.testing.assert_allclose(transform(U).compute(), transform(x), rtol=1e-14)
    for transform in (polyloss.softmax, polyloss.log_softmax, polyloss.logsumexp):
        np.testing.assert_allclose(transform(U, where=U > -1).compute(), transform(x, where=x > -1), rtol=1e-14)
        np.testing.assert_allclose(transform(U.T, axis=0).compute(), transform(x.T, axis=0), rtol=1e-14)


@pytest.fixture(scope="module", params=["processes", "threads"])
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    distributed = pytest.importorskip("distributed")
    processes = request.param == "processes"
    with (
        dask.config.set({"distributed.worker.memory.terminate": False, "distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=processes, dashboard_address=":0", memory_limit=0
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
        dask.config.set(scheduler=client),
    ):
        yield client


@pytest.mark.parametrize("layout", ["classes too", "unknown sizes"])
def test_a_cluster_computes_every_loss_and_gradient(cluster: Any, layout: str) -> None:
    lazily, expected = [], []
    for row in LOSSES.values():
        if not _refused(row, layout):
            ours, theirs, wrt = _both(row, layout, {"weights": WEIGHTS})
            lazily.append(polyloss.value_and_grad(row.loss, wrt)(**ours))
            expected.append(polyloss.value_and_grad(row.loss, wrt)(**theirs))
    found = cluster.gather(cluster.compute(lazily))
    for (value, gradients), (right, slopes) in zip(found, expected, strict=True):
        for a, b in ((value, right), *zip(gradients, slopes, strict=True)):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_a_graph_grows_with_the_blocks_and_not_with_the_items() -> None:
    """What travels to a scheduler holds no array: all of them come from tasks."""

    def size(items: int) -> int:
        x = da.zeros((10 * items, 5), chunks=(items, 5), dtype=np.float32)
        loss, w = polyloss.softmax_cross_entropy, da.ones(10 * items, chunks=items)
        lazily = [polyloss.value_and_grad(loss)(x, x[:, 0] > 0, weights=weights) for weights in (None, w)]
        return len(cloudpickle.dumps(dask.optimize(*(a for pair in lazily for a in pair))))

    cloudpickle = pytest.importorskip("cloudpickle")
    assert abs(size(100_000) - size(1_000)) < 500
    assert size(1_000) < 100_000
