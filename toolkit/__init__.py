"""What needs the PyTorch model: loading, records, activations, evaluation."""
