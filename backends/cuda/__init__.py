"""Kernels for CUDA memory: CuPy's arrays and torch's CUDA tensors.

`memory` says which work is taken. `softplus` and `lse` bring the arrays of a call to a kernel, and `call` runs it. The
kernels are Python that Numba compiles: `elements` for softplus cross-entropy, `rows`, `split` and `soft` for
log-sum-exp cross-entropy, `transforms`, and `sums`, which ends a value. They are written in the names of `device` and
`teams`, which stand for `intrinsics` on the hardware, or for `simulator`. `compiled` keeps their machine code, and
`driver` launches it. Numba is imported only to compile.
"""

from polyloss.backends.cuda.memory import KERNELS

__all__ = ["KERNELS"]
