"""Result of the prune stage; the kept indices are in `plan.json`."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from minitron_cli.results.base import ModelSize, Result, Sizes
from minitron_cli.results.search import CalibrationUse, CandidateResult
from minitron_cli.spec import Spec


class HeldOut(Spec):
    """A child on held-out text."""

    loss: float
    """Nats per token."""
    kl: float
    """KL from the parent to the child in nats per token."""
    loss_stderr: float | None = None
    """Standard error of the loss; None if it is not known."""
    kl_stderr: float | None = None
    """Standard error of the KL; None if it is not known."""
    degrees_of_freedom: float | None = Field(None, exclude_if=lambda value: value is None)
    """Degrees of freedom of both standard errors; None if they are not known."""


class RepairEffect(Spec):
    """Held-out figures of the plainly pruned and of the repaired child."""

    parent_loss: float
    """Nats per token."""
    before: HeldOut
    """The child before the repair."""
    after: HeldOut
    tokens: int
    """Held-out tokens that each figure is a mean of."""
    kl_difference_stderr: float | None = None
    """Standard error of the KL after less the KL before, of which both are of the same tokens; None if not known."""
    read: int
    """Held-out tokens that each model read: those of the figures, and others by which parts of the repair were kept or
    left out."""
    children: int
    """Children that were measured: the plain one, and one for each part that was tried."""


class RepairResult(Spec):
    """Repairs that were fitted to the child."""

    repairs: tuple[str, ...]
    """Names of the repairs that were kept, sorted. `least_squares of norms` and `of writers` are parts of it."""
    left_out: tuple[str, ...] = ()
    """What took the child further from its parent on held-out text, in the order in which it was tried."""
    is_kept: bool = True
    """Whether any was kept. If none was, the plainly pruned child was written."""
    strengths: Mapping[str, float] | None = None
    """Norm -> strength of its rescaling; None unless norms were rescaled by trial."""
    effect: RepairEffect | None = None
    """None if parent and child did not fit into memory together."""


class RoundResult(Spec):
    """One round of iterative pruning."""

    sizes: Sizes
    """Sizes after the round."""
    samples_scored: int
    """Samples on which the model was scored again before the round; 0 for the first."""
    model: ModelSize


class ServingFinding(Spec):
    """Compatibility of the child with one program that serves or quantizes it."""

    reader: str
    level: str
    reason: str
    nearest: Sizes = Field(default_factory=dict)
    """Sizes to change for the nearest shape without the problem."""


class Parts(Spec):
    """A model by part."""

    embeddings: int
    """Parameters of the embedding and the language-model head."""
    mixer: tuple[int, ...]
    """Parameters of each layer, all but the FFN: attention and norms."""
    ffn: tuple[int, ...]
    """Parameters of each layer's FFN or experts."""
    cache_bytes: int
    """16-bit KV cache of one token."""


class PruneResult(Result):
    """The child and how it was made."""

    schema_name: ClassVar[str] = "prune/2"
    verb: ClassVar[str] = "minitron prune"

    parent: ModelSize
    """The model as it was given, before its head was untied."""
    child: ModelSize
    parts: tuple[Parts, Parts] | None = None
    """Parent and child; None in results of earlier versions."""
    checks: tuple[str, ...]
    """Export checks that the child passed."""
    serving: tuple[ServingFinding, ...]
    candidates: tuple[CandidateResult, ...] = ()
    """Shapes that were scored for a budget, best first; empty if the shape was given."""
    score_tokens: int = 0
    """Held-out tokens on which each candidate was scored."""
    sequence_length: int = 0
    """Tokens per block of the text that was used; 0 if none was."""
    rounds: tuple[RoundResult, ...] = ()
    """Rounds of iterative pruning; empty if there was one."""
    rounds_remove_layers: bool = False
    """Whether the perplexity without each layer was measured before each further round."""
    removal_samples: int | None = None
    """Samples on which it was measured; None if on all."""
    removal_positions: int | None = None
    """Predicted tokens of each of these samples whose loss was taken; None if of all."""
    calibration: CalibrationUse | None = None
    """Text that repairs were fitted on; None if none was asked for."""
    repair: RepairResult | None = None
    """None if no repair was asked for, or none has anything to repair."""
