"""Turns scores into kept indices and writes the child's checkpoint. Knows no calibration data."""
