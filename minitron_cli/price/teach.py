"""Work of storing a teacher's signals: its pass over the text, the draws, and the bytes on disk."""

from dataclasses import dataclass

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.distill.teaching import CHUNK_BYTES, ENTRY_BYTES
from minitron_cli.price.work import ITEM_BYTES, Moved, Subject, Work
from minitron_cli.results.price import Price
from minitron_cli.results.teach import SplitSignals, TeachResult
from minitron_cli.signals.config import Sampled, TeachConfig
from minitron_cli.signals.encoding import Encoding

IDS_OF_50 = 20.0  # different ids among 50 draws: of Qwen2.5-0.5B on prose (benchmarks/results/signals-disk.md)


@dataclass(frozen=True)
class Teaching:
    """What the price depends on."""

    teacher: Subject
    config: TeachConfig
    length: int
    """Tokens of a block."""
    blocks: int
    held_out_blocks: int
    epochs: int = 1
    compute_dtype: str = "float32"
    """Name of the dtype that the teacher's weights are cast to."""

    @property
    def encoding(self) -> Encoding:
        """How the signals of the training text are stored."""
        return Encoding(self.config.signals, self.teacher.shape.sizes["vocab"])

    @property
    def ids(self) -> float:
        """Different ids of a position, about: their number grows with the square root of the draws."""
        signals = self.config.signals
        return min(signals.draws, IDS_OF_50 * (signals.draws / 50) ** 0.5) if isinstance(signals, Sampled) else 0

    @property
    def token_bytes(self) -> float:
        """Bytes of a token of the training text, about."""
        return self.encoding.token_bytes(self.ids, self.epochs) + self.encoding.block_bytes(self.epochs) / self.length

    @property
    def size_bytes(self) -> int:
        """Size of all signals on disk, about."""
        held_out = self.held_out_blocks * self.length * self.encoding.token_bytes(self.ids)
        return round(self.blocks * self.length * self.token_bytes + held_out)


def work(making: Teaching) -> Work:
    """Work of storing signals."""
    teacher, size, vocab = making.teacher, making.size_bytes, making.encoding.vocab
    batch = min(making.config.batch_size, making.blocks)
    run = teacher.runs(batch, making.length, making.compute_dtype)
    held = max(teacher.weights_bytes, teacher.shape.parameters() * ITEM_BYTES[making.compute_dtype])
    return Work(
        what=f"{making.blocks + making.held_out_blocks:,} blocks of {making.length:,} tokens, {making.config.signals}",
        passes=tuple(derive.passes(_result(making))),
        model=run,
        moved={
            "load the model": Moved(starts=1, read=teacher.weights_bytes),
            "write the signals": Moved(written=size),
        },
        certain={"teacher": held},
        transient={
            "activations": run.layer_bytes(),
            "logits": 2 * min(CHUNK_BYTES, making.length * vocab * ENTRY_BYTES),
        },
        disk={"signals": size},
        remedies=("batch_size=1",) if batch > 1 else (),
    )


def _result(making: Teaching) -> TeachResult:
    """What will have been done, with nothing measured yet."""
    signals = making.config.signals
    train, held_out = (
        SplitSignals(blocks=blocks, positions=0, ids=0, size_bytes=0, shards=())
        for blocks in (making.blocks, making.held_out_blocks)
    )
    return TeachResult(
        teacher=model_size(making.teacher.shape, making.length),
        kind=signals.kind,
        count=signals.draws if isinstance(signals, Sampled) else signals.k,
        epochs=making.epochs,
        temperature=making.config.temperature,
        vocab=making.encoding.vocab,
        sequence_length=making.length,
        train=train,
        validation=held_out,
    )


def pays_from(price: Price) -> int:
    """Pass over the text, of one student or of several, from which signals take less time than a live teacher.

    Each pass of a live teacher takes what it takes to compute the signals; loading and writing come once.
    """
    whole, models = price.seconds, [part.seconds for part in price.parts if part.name.startswith("teacher")]
    known = [seconds for seconds in models if seconds is not None]
    if whole is None or len(known) < len(models) or not sum(known):
        return 2
    return int(whole / sum(known)) + 1
