"""Commands of the command line that need the PyTorch model."""
