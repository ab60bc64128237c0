"""Result of the teach stage; the signals are in its shards."""

from typing import ClassVar, Literal

from minitron_cli.results.base import ModelSize, Result
from minitron_cli.spec import Spec


class SplitSignals(Spec):
    """Signals of one split of the text."""

    blocks: int
    positions: int
    """Positions whose next token is scored, in all blocks."""
    ids: int
    """Stored ids of all positions and passes."""
    size_bytes: int
    shards: tuple[str, ...]
    """Files, in the order of the blocks."""


class TeachResult(Result):
    """What the teacher said of a text."""

    schema_name: ClassVar[str] = "teach/1"
    verb: ClassVar[str] = "minitron teach"

    teacher: ModelSize
    kind: Literal["sampled", "top_k"]
    count: int
    """Draws of each position, or its most probable ids."""
    epochs: int
    """Passes over the text that have draws of their own."""
    temperature: float
    vocab: int
    """Entries of the teacher's vocabulary."""
    sequence_length: int
    train: SplitSignals
    validation: SplitSignals

    @property
    def tokens_read(self) -> int:
        """Tokens that the teacher read."""
        return (self.train.blocks + self.validation.blocks) * self.sequence_length

    @property
    def size_bytes(self) -> int:
        """Size of all signals on disk."""
        return self.train.size_bytes + self.validation.size_bytes

    @property
    def ids_per_position(self) -> float:
        """Different ids that one position has in one pass, on average."""
        return self.train.ids / self.train.positions / self.epochs

    @property
    def position_bytes(self) -> float:
        """Bytes of one position of the training text, with the draws of all passes."""
        return self.train.size_bytes / self.train.positions

    @property
    def what(self) -> str:
        """What is stored, in words."""
        if self.kind == "top_k":
            return f"top {self.count}"
        return f"{self.count} draws" + (f" for each of {self.epochs} passes" if self.epochs > 1 else "")
