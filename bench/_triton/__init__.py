"""The real Triton server, for ``bench/triton_server.py`` and the tests."""
