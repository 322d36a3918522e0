"""What is promised, row by row: each module measures some of the rows that :mod:`safetykit.bench.promises` lists."""
