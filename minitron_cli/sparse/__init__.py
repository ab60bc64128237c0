"""Sparse weights inside dense tensors: which are zero, by what pattern, and the file that keeps record of it."""
