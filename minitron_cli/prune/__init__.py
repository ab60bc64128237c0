"""Maps scores to kept indices and streams the child's checkpoint. Knows no calibration data."""
