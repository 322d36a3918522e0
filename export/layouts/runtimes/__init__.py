"""The layouts safetykit brings along, one file each, free of torch and ONNX at import."""
