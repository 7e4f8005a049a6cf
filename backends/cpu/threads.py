"""Several threads for one call: a small pool of our own.

No threading layer of Numba's is used. ``workqueue`` aborts the process when two threads call at once, ``omp`` kills a
forked child, and ``tbb`` is not found in a virtual environment. Kernels run without the GIL, so Python's own threads
do, and survive all of that: the calling thread takes parts of the work like every other, so a call whose helpers are
busy, asleep, or lost in a fork is slower and right. Which thread treats a part changes no bit of the result.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["limit", "run"]

Part = Callable[[int, int], int]

_jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
_workers = 0
_lock = threading.Lock()


def limit() -> int:
    """How many threads one call may use: NUMBA_NUM_THREADS, and no more than the processors this process may run on."""
    try:
        most = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        most = os.cpu_count() or 1
    try:
        asked = int(os.environ.get("NUMBA_NUM_THREADS", most))
    except ValueError:
        asked = most
    return max(1, min(most, asked))


def run(kernel: Part, blocks: int, threads: int) -> int:
    """``kernel(start, stop)`` over all blocks; the sum of what it returns."""
    size = -(-blocks // (4 * threads))  # several parts for each, so that a late helper is not waited for
    parts = deque((start, min(start + size, blocks)) for start in range(0, blocks, size))
    count = len(parts)
    done: SimpleQueue[int] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                start, stop = parts.popleft()
            except IndexError:
                return
            done.put(kernel(start, stop))

    helpers = min(threads, count) - 1
    _start(helpers)
    for _ in range(helpers):
        _jobs.put(work)
    work()
    return sum(done.get() for _ in range(count))


def _start(helpers: int) -> None:
    global _workers
    if _workers >= helpers:
        return
    with _lock:
        while _workers < helpers:
            try:
                threading.Thread(target=_serve, args=(_jobs,), name="polyloss", daemon=True).start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down: the caller does it all
                return
            _workers += 1


def _serve(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()


def _after_fork() -> None:
    """The child has none of the parent's threads, and its queue may have been copied while one held its lock."""
    global _jobs, _workers, _lock
    _jobs, _workers, _lock = SimpleQueue(), 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
