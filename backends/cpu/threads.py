"""Several threads for one call: a small pool of our own.

No threading layer of Numba's is used. ``workqueue`` aborts the process when two threads call at once, ``omp`` kills a
forked child, and ``tbb`` is not found in a virtual environment. Kernels run without the GIL, so Python's own threads
do, and survive all of that: the calling thread takes blocks like every other, so a call whose helpers are busy, asleep,
or lost in a fork is slower and right. Which thread treats a block changes no bit of the result.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

from polyloss import dispatch
from polyloss.backends.cpu.compiled import Kernel, Progress

__all__ = ["limit", "run"]

PATIENCE = 20_000
"""How often the caller looks whether its helpers are done before it sleeps: some 20 us, the time that waking takes."""

_jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
_workers = 0
_lock = threading.RLock()  # a signal handler or a __del__ may compute a loss while it is held
_finalizing = sys.is_finalizing  # held here: the names of a module may go before its functions do


def limit() -> int:
    """How many threads one call may use: NUMBA_NUM_THREADS, and no more than the processors this process may run on.

    One, where `dispatch.shared` says that the processors are taken.
    """
    if dispatch.shares():
        return 1
    try:
        most = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        most = os.cpu_count() or 1
    try:
        asked = int(os.environ.get("NUMBA_NUM_THREADS", most))
    except ValueError:
        asked = most
    return max(1, min(most, asked))


def run(kernel: Kernel, parameters: bytes, blocks: int, threads: int) -> int:
    """The kernel over all blocks; not 0 where a target is invalid.

    Threads take blocks by a counter in memory until there are none, each in one call that needs no GIL. They take much
    at first: two that write side by side would meet in one fresh huge page, which the system would clear for both.
    """
    if _finalizing():  # no thread may start or end any more
        return kernel.all(parameters, 0, blocks)
    progress = Progress()
    parts = 2 * threads
    returned: SimpleQueue[None] = SimpleQueue()

    def help() -> None:
        try:
            kernel.shares(parameters, progress, blocks, parts, 0)
        finally:
            returned.put(None)

    for _ in range(_started(min(threads, blocks) - 1)):
        _jobs.put(help)
    interruption = None
    while progress[1] < blocks:  # a helper works on the caller's arrays, so nothing may interrupt this
        try:
            kernel.shares(parameters, progress, blocks, parts, PATIENCE)
            if progress[1] < blocks:
                returned.get()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
    return progress[2]


def _started(helpers: int) -> int:
    """That many helpers, or as many as there can be."""
    global _workers
    with _lock:
        while _workers < helpers:
            try:
                threading.Thread(target=_serve, args=(_jobs,), name="polyloss", daemon=True).start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down: the caller does more
                break
            _workers += 1
        return min(helpers, _workers)


def _serve(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()


def _after_fork() -> None:
    """The child has none of the parent's threads, and its queue may have been copied while one held its lock."""
    global _jobs, _workers, _lock
    _jobs, _workers, _lock = SimpleQueue(), 0, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
