"""Benchmarks: what dvrt claims, measured; each prints a table or one JSON object."""
