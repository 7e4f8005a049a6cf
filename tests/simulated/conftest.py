"""These tests run kernels in the simulator; `tests/test_cuda.py` starts them, in a process of their own."""
