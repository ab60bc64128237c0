"""Errors that every pass over calibration text can raise."""

from minitron_cli.data.pack import Blocks
from minitron_cli.errors import CheckpointError, DataError

NO_SAMPLES = DataError("the calibration set is empty: give at least one block of text")
DAMAGE = "the weights are damaged, or too large for their dtype: check the checkpoint, or calibrate in float32"


def check_samples(samples: int, blocks: Blocks, setting: str) -> None:
    """DataError unless the text has as many blocks as the samples that `setting` asks for."""
    if not len(blocks):
        raise NO_SAMPLES
    if samples > len(blocks):
        raise DataError(
            f"{setting} is {samples} and the data has {len(blocks)} blocks of {blocks.sequence_length} tokens: "
            f"lower {setting} or data.sequence_length, or add text"
        )


def not_finite_from(layer: int) -> CheckpointError:
    """Error for activations that are not finite from a decoder layer on."""
    return CheckpointError(f"activations are not finite from decoder layer {layer} on; {DAMAGE}")
