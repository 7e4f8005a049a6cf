"""polyloss on a machine with a GPU: is it right, safe, and as fast as the memory? ``python -m benchmarks.gpu``."""
