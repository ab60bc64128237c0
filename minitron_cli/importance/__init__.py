"""Importance of every layer, head, neuron, expert and hidden channel from one pass over a calibration set."""
