"""Benchmarks: one module a benchmark; each writes JSON with the machine that it ran on. Not part of the installed package."""
