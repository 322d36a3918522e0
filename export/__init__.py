"""Everything ONNX: base graphs, residual-stream finder, bake, parity and the runtime.

Nothing is imported here: the runtime is used on servers without torch, so each module is imported
by its own name.
"""
