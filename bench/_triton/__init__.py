"""The real Triton server, for ``bench/triton.py`` and the tests."""
