"""Benchmarks: what is measured (`cases`), against what (`baseline`), how (`measure`, `memory`).

Run by `metadnas bench`, and by pytest-benchmark from the repository's `bench/`.
"""
