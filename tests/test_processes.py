"""A process may fork, use other pools of threads, and end while kernels run: nothing hangs, and every bit is right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from programs import COMPUTE, FORK, python

pytest.importorskip("llvmlite")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


# Forks.


@needs_fork
def test_a_forked_child_computes_after_its_parent_did() -> None:
    code = """
        assert right()
        print(in_child(right), right(), in_child(lambda: in_child(right)))
    """
    assert python(COMPUTE, FORK, code) == "True True True"


@needs_fork
def test_workers_of_a_multiprocessing_pool_compute_after_their_parent_did() -> None:
    code = """
        import multiprocessing
        def work(i):
            return right()
        assert right()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(all(pool.map(work, range(6))))
    """
    assert python(COMPUTE, code) == "True"


@needs_fork
def test_a_child_forked_while_other_threads_are_inside_kernels_computes() -> None:
    code = """
        stop, wrong, found = threading.Event(), [], []
        def busy():
            while not stop.is_set():
                if not right():
                    wrong.append(1)
        busiest = [threading.Thread(target=busy) for _ in range(4)]
        for thread in busiest:
            thread.start()
        for _ in range(12):
            time.sleep(0.011)
            found.append(in_child(right))
        stop.set()
        for thread in busiest:
            thread.join()
        print(all(found), wrong)
    """
    assert python(COMPUTE, FORK, code) == "True []"


@needs_fork
def test_a_child_forked_while_another_thread_compiles_a_kernel_computes(tmp_path: Path) -> None:
    """A lock that a thread of the parent holds stays locked in the child for ever."""
    code = """
        from polyloss.backends.cpu import compiled
        import numba  # so that no lock of the import system is in play
        def compile():
            for kind in ("float32", "float64"):
                compiled.kernel("elements", kind, kind, True, False)
        def right():
            return abs(polyloss.sigmoid_cross_entropy(np.zeros(9), np.ones(9)) - np.log(2)) < 1e-15
        compiling = threading.Thread(target=compile)
        compiling.start()
        found = []
        for _ in range(3):
            time.sleep(0.15)
            found.append(in_child(right, patience=8))
        compiling.join()
        print(found)
    """
    assert python(FORK, code, POLYLOSS_CACHE_DIR=str(tmp_path)) == "[True, True, True]"


@needs_fork
def test_workers_of_a_torch_data_loader_compute_losses() -> None:
    pytest.importorskip("torch")
    code = """
        import torch
        class Losses(torch.utils.data.Dataset):
            def __len__(self):
                return 6
            def __getitem__(self, i):
                x = torch.from_numpy(X).requires_grad_()
                loss = polyloss.softmax_cross_entropy(x, torch.from_numpy(Y))
                loss.backward()
                return right(), loss.detach(), x.grad.sum(0)
        data = Losses()
        _, loss, gradient = data[0]  # so the parent has used the pool, and torch's own
        loader = torch.utils.data.DataLoader(data, 3, num_workers=2, multiprocessing_context="fork", timeout=30)
        for good, losses, gradients in loader:
            print(bool(good.all()), bool((losses == loss).all()), bool((gradients == gradient).all()))
    """
    assert python(COMPUTE, code) == "True True True\nTrue True True"


# Other pools in the same process.


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_every_threading_layer_of_numba_may_be_in_use_beside_it(layer: str) -> None:
    code = """
        import numba
        @numba.njit(parallel=True)
        def theirs(x):
            s = 0.0
            for i in numba.prange(x.size):
                s += x[i]
            return s
        try:
            theirs(np.ones(10))
        except ValueError as error:
            print("unavailable:", str(error).splitlines()[0])
            sys.exit()
        assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
        stop, found = threading.Event(), []
        def beside():
            while not stop.is_set():
                found.append(right())
        ours = [threading.Thread(target=beside) for _ in range(2)]
        for thread in ours:
            thread.start()
        end = time.monotonic() + 0.3
        while time.monotonic() < end or len(found) < 4:
            assert theirs(np.ones(100_000)) == 100_000
        stop.set()
        for thread in ours:
            thread.join()
        print(all(found), in_child(right) if hasattr(os, "fork") else True, right())
    """
    printed = python(COMPUTE, FORK, code, NUMBA_THREADING_LAYER=layer)
    if printed.startswith("unavailable"):
        pytest.skip(f"Numba has no {layer} here, {printed}")
    assert printed == "True True True"


# The end.

used_before = pytest.mark.parametrize("used", [False, True], ids=["first call", "pool in use"])


@used_before
def test_a_call_at_the_interpreters_exit_is_right(used: bool) -> None:
    code = """
        import atexit
        atexit.register(lambda: print(right()))
    """
    assert python(COMPUTE, "right()" * used, code) == "True"


@used_before
def test_a_call_while_the_interpreter_is_torn_down_ends(used: bool) -> None:
    """No thread can start any more, and on Python 3.11 the attempt would wait for ever."""
    code = """
        os.sched_getaffinity = {0: {1, 2, 3}}.get  # several processors, and nothing that this program defines
        X, T = np.zeros(300_000), np.ones(300_000)
        polyloss.sigmoid_cross_entropy(X[:9], T[:9])
        class Last:  # which is destroyed when the names of this program are gone; those of polyloss may be, too
            def __del__(self, loss=polyloss.sigmoid_cross_entropy, X=X, T=T, write=os.write):
                write(1, b"called ")
                if 0.69 < loss(X, T) < 0.7:
                    write(1, b"right")
        last = Last()
        last.itself = last
    """
    assert python(code, "polyloss.sigmoid_cross_entropy(X, T)" * used, patience=10) in ("called", "called right")


def test_threads_that_go_on_at_the_end_of_the_program_do_not_hold_it() -> None:
    code = """
        def forever():
            while True:
                results()
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        def later():
            time.sleep(0.1)
            print(right(), flush=True)
        threading.Thread(target=later).start()
    """
    assert python(COMPUTE, code) == "True"


def test_a_call_is_right_where_no_thread_can_start() -> None:
    code = """
        def refuse(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        print(right(), right())
    """
    assert python(COMPUTE, code) == "True True"
