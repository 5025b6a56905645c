"""Benchmarks: each runs two ways to do the same work side by side and prints their ratio."""
