"""The parts of ``bench/int4.py``."""
