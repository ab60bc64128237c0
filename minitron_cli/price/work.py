"""Work that a stage is about to do, as far as shapes and settings tell. Knows no clock and imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minitron_cli.cost.compute import Pass
from minitron_cli.distill.config import DistillConfig
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.model.shape import Shape
from minitron_cli.model.softmax import TOKENS, chunk_entries

Decoder = Literal["forward", "observed", "training"]
"""How a decoder runs: alone, under the observers of a calibration, or forward and backward."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
"""Bytes of a number of each dtype."""

LARGER = "use a device with more memory, or smaller models"
"""What to do about work that does not fit, where no setting is known to be enough."""

QUICK_FLOPS, QUICK_BYTES = 2 * 10**11, 1 << 28

DECODERS: Mapping[str, Decoder] = {"calibration": "observed", "training": "training"}
"""Kind of work -> how its decoder runs, where it is not a forward pass alone."""


@dataclass(frozen=True)
class Subject:
    """A model as far as its price goes: no weights are read."""

    config: Mapping[str, Any]
    """Its config.json."""
    shape: Shape
    dtype: str
    """Name of the torch dtype that its weights run in."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of its weights in memory; a tied head counts once."""
        return self.shape.parameters() * ITEM_BYTES[self.dtype]

    def runs(self, batch: int, length: int, dtype: str | None = None) -> "Run":
        """The model on batches of this many sequences and tokens, in its own dtype or in another."""
        return Run(self.config, self.shape, batch, length, dtype or self.dtype)


@dataclass(frozen=True)
class Run:
    """A model and the batches that it runs, on which the speed of its parts depends."""

    config: Mapping[str, Any]
    shape: Shape
    batch: int
    """Sequences that run at once."""
    length: int
    """Tokens of a sequence."""
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        """Tokens that run at once."""
        return self.batch * self.length

    def logits_bytes(self, chunks: int) -> int:
        """Memory of so many chunks of logits in fp32, as likelihoods are computed on a CPU; on an accelerator more."""
        entries = min(self.shape.sizes["vocab"], chunk_entries("cpu"))
        return chunks * min(self.tokens, TOKENS) * entries * ITEM_BYTES["float32"]

    def layer_bytes(self) -> int:
        """Memory of one decoder layer's forward pass, at its widest: the stream, the attention and the neurons.

        Of experts, each token is copied for those that it uses.
        """
        sizes = self.shape.sizes
        attention = (sizes["head"] + self.shape.groups) * (self.shape.key_dim + sizes["head_dim"])
        chosen = self.shape.active.get("expert", 0)
        neurons = 3 * (max(chosen, 1) * sizes.get("ffn", 0) + sizes.get("shared_ffn", 0)) + chosen * sizes["hidden"]
        others = 3 * max(sizes.get(axis, 0) for axis in ("dense_ffn", "own_ffn"))
        scanned = 3 * sizes.get("mamba_head", 0) * sizes.get("mamba_dim", 0)
        widest = 4 * sizes["hidden"] + max(attention, neurons, others, scanned)
        return self.tokens * widest * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Moved:
    """Bytes that are moved and numbers that are updated beside the models' FLOPs."""

    read: int = 0
    """Bytes read from disk."""
    written: int = 0
    """Bytes written to disk, synced and hashed."""
    starts: int = 0
    """Times that the code of a model is imported and its modules are made."""
    weighed: int = 0
    """Weights whose magnitude is summed by row and by column."""
    updates: int = 0
    """Parameters that an optimizer updates, over all steps."""
    products: int = 0
    """FLOPs of matrix products of statistics and solves, in fp32."""
    solves: int = 0
    """The same in fp64."""

    def times(self, count: int) -> "Moved":
        """As much for each of `count` repetitions."""
        return Moved(**{name: value * count for name, value in vars(self).items()})


@dataclass(frozen=True)
class Work:
    """Everything that the price of a stage is computed from."""

    what: str
    """Steps, batches or samples."""
    passes: tuple[Pass, ...]
    model: Run
    """Model whose speed stands for all passes but the training."""
    teacher_device: str = ""
    """Device of a teacher that runs elsewhere than its student; its head does not."""
    student: Run | None = None
    """Model that is trained, if one is."""
    training: DistillConfig | None = None
    """Settings of its training."""
    observed: ObserverOptions = field(default_factory=ObserverOptions)
    """Measurements of a calibration."""
    moved: Mapping[str, Moved] = field(default_factory=dict)
    """Name of a part -> what it moves."""
    certain: Mapping[str, int] = field(default_factory=dict)
    """Part of the memory of a process -> its bytes, which it takes whatever the batches are."""
    host: Mapping[str, int] = field(default_factory=dict)
    """The same in the host's memory beside an accelerator, as far as a setting moves it there."""
    transient: Mapping[str, int] = field(default_factory=dict)
    """The same for what depends on the batches, estimated."""
    disk: Mapping[str, int] = field(default_factory=dict)
    """Part of the disk space -> bytes."""
    remedies: tuple[str, ...] = ()
    """Settings that shrink what depends on the batches, the most effective first."""
    weight_remedies: tuple[str, ...] = ()
    """Settings that shrink what is certainly in memory."""
    sharding: str = ""
    """Setting that divides what is certainly in memory among processes with an accelerator each; empty if none does."""
    left_out: tuple[str, ...] = ()
    """Work whose cost is not known beforehand."""
    processes: int = 1
    """Processes that share the work."""

    def repeated(self, count: int, what: str) -> "Work":
        """Work that is done so often, one after the other; all results are kept, and checkpoints of one."""
        return replace(
            self,
            what=f"{count:,} {what} of {self.what}",
            passes=self.passes * count,
            moved={name: moved.times(count) for name, moved in self.moved.items()},
            disk={name: size * (1 if name == "checkpoints" else count) for name, size in self.disk.items()},
        )

    @property
    def is_quick(self) -> bool:
        """Whether it is over in seconds, of which a probe of the speed would be a part."""
        moved = sum(one.read + one.written for one in self.moved.values())
        return sum(one.flops for one in self.passes) < QUICK_FLOPS and moved < QUICK_BYTES
