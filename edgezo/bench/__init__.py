"""Benchmarks: tuning steps against plain inference, in processes that take turns."""
