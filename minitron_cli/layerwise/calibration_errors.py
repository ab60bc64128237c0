"""Errors that every pass over calibration text can raise."""

from minitron_cli.errors import CheckpointError, DataError

NO_SAMPLES = DataError("the calibration set is empty: give at least one block of text")
DAMAGE = "the weights are damaged, or too large for their dtype: check the checkpoint, or calibrate in float32"


def not_finite_from(layer: int) -> CheckpointError:
    """Error for activations that are not finite from a decoder layer on."""
    return CheckpointError(f"activations are not finite from decoder layer {layer} on; {DAMAGE}")
