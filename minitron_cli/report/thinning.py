"""Fewer values than were measured, for plots."""

import numpy as np


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` values along the last axis, each the mean of its neighbors."""
    if values.shape[-1] <= most:
        return values
    return np.stack([part.mean(axis=-1) for part in np.array_split(values, most, axis=-1)], axis=-1)
