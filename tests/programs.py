"""Programs that tests run in processes of their own, and which must end by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

LONG = 60  # seconds; what hangs would hang for ever


def python(*parts: str, patience: float = LONG, **environment: str) -> str:
    """What the program prints; it must end by itself, with status 0."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(textwrap.dedent(part) for part in (IMPORTS, *parts))],
        capture_output=True,
        text=True,
        timeout=patience,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


IMPORTS = """
    import os, signal, sys, threading, time
    import numpy as np
    import polyloss
"""

COMPUTE = """
    from polyloss.backends.cpu import threads
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((300, 1000), np.float32), rng.integers(0, 1000, 300)
    A, B = rng.standard_normal((20_000, 10), np.float32), rng.integers(0, 10, 20_000)
    S = rng.standard_normal(300_000, np.float32)
    T = (S > 0.5).astype(np.float32)
    def results():
        found = []
        for loss, x, t in (
            (polyloss.softmax_cross_entropy, X, Y),
            (polyloss.softmax_cross_entropy, A, B),
            (polyloss.sigmoid_cross_entropy, S, T),
        ):
            value, gradient = polyloss.value_and_grad(loss)(x, t)
            found.append(value.tobytes() + gradient.tobytes())
        return found
    limit, threads.limit = threads.limit, lambda: 1
    SERIAL = results()
    threads.limit = lambda: 3
    def right():
        return results() == SERIAL
"""
"""`right()` is whether a loss on every kernel has the bits of a serial computation."""

FORK = """
    def in_child(f, patience=20):
        pid = os.fork()
        if not pid:
            signal.alarm(patience)
            try:
                os._exit(0 if f() else 1)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(2)
        status = os.waitpid(pid, 0)[1]
        if status:
            print("the child ended with status", status, file=sys.stderr)
        return status == 0
"""
"""`in_child(f)` is whether f() is true in a forked child, which is killed where it hangs."""
