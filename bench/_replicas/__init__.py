"""A Ray cluster of this machine, for ``bench/replicas.py``."""
