"""Result of the importance stage; the scores themselves are in `scores.safetensors`."""

from typing import ClassVar

from minitron_cli.results.base import ModelSize, Result


class ImportanceResult(Result):
    """Calibration that the scores were measured on."""

    schema_name: ClassVar[str] = "importance/1"
    verb: ClassVar[str] = "minitron importance"

    model: ModelSize
    """The scored model."""
    samples: int
    """Blocks of calibration text."""
    sequence_length: int
    """Tokens per block."""
    removed: tuple[int, ...] = ()
    """Numbers of consecutive layers whose removal was measured."""
    removal_samples: int | None = None
    """Blocks of the text on which it was measured; None if on all."""
    removal_positions: int | None = None
    """Predicted tokens of each of these blocks whose loss was taken; None if of all."""
    parent_loss: float | None = None
    """Mean loss of the whole model in nats per token whose loss was taken; None if no layer removal was measured."""

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return self.samples * self.sequence_length
