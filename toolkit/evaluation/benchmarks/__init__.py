"""The figures of published benchmarks as their publishers count them. See :mod:`.metric`."""
