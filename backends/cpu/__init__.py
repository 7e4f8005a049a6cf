"""Kernels for host memory: NumPy's arrays and torch's CPU tensors.

`host` says which work is taken. `softplus` and `lse` bring the arrays of a call to a kernel, as they lie in memory
(`polyloss.backends.strided`), and `call` runs it. The kernels are Python that Numba compiles: `elements` for softplus
cross-entropy, `rows`, `soft` and `lanes` for log-sum-exp cross-entropy, on the functions of `arithmetic`, with the
parameters of `fields`. `compiled` keeps their machine code, `threads` shares a call among threads; for JAX, XLA calls
them by a `handler`, as `xla` tells it. Numba is imported only to compile.
"""

from polyloss.backends.cpu.host import KERNELS

__all__ = ["KERNELS"]
