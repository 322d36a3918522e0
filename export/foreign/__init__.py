"""Base graphs that somebody else exported: recognised, checked against the checkpoint, and brought to our conventions.

recognise   which layout a folder has, and which of its files is which graph
merged      decoders that hold two graphs in an ``If``
normalise   inputs, outputs and symbolic sizes by our names; the token embedding split off
weights     the decoder's weights, dequantised where needed, against the checkpoint's
importing   all of it, into an export folder; the weights file is copied byte for byte
rows        whether a decoder understands rows that are padded on the left
"""
