"""Importance of layers, heads, neurons, experts and hidden channels, from one pass over a calibration set."""
