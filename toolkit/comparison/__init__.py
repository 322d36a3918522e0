"""Comparing models and defences on benchmarks: the grid that says what is compared, and what its answers show."""
