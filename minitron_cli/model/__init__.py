"""Checkpoints as named tensors over named axes, and models as sizes on these axes. Reads no files."""
