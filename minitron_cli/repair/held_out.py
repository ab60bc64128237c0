"""Share of the calibration samples that fits do not see. Imports no torch, so that settings can check it."""

HELD_OUT = 4
"""One sample of this many is held out of a fit, to choose its ridge by."""
