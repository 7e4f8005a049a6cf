"""Measurements against the peers, one module a question: ``python -m benchmarks.<module>``."""
