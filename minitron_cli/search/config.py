"""What a user says about a search."""

from pydantic import Field

from minitron_cli.spec import Quantity, Spec
from minitron_cli.trim.spec import Axis, Budget, Ranking


class Retrain(Spec):
    """Lightweight retraining of the best candidates, which settles their order (Muralidharan et al. 2024, sec. 2.3)."""

    top: int = Field(4, ge=1)
    """How many candidates, best zero-shot first."""
    tokens: Quantity = 1_800_000_000
    """Tokens each; the paper's 1.8B. Rankings changed up to about 300 of its 400 steps."""
    batch_size: int = Field(1152, ge=1)
    """Sequences per optimizer step."""
    micro_batch_size: int = Field(1, ge=1)
    """Sequences that run at a time; changes memory and speed, and the result by rounding only."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak of the cosine."""
    warmup_steps: int = Field(10, ge=0)


class SearchConfig(Spec):
    """Enumerate shapes, keep those within the budget, score them, retrain the best few, choose."""

    budget: Budget
    """How large the child may be."""
    space: dict[Axis, tuple[int, ...]] = Field({"hidden": (), "ffn": ()}, min_length=1)
    """Choices per axis; an empty list means serving-friendly steps of it. Other axes keep the parent's size."""
    candidates: int = Field(16, ge=1)
    """How many feasible shapes are scored; nearest to an even cut first."""
    score_blocks: int = Field(64, ge=1)
    """Validation blocks for one score."""
    ranking: Ranking = Ranking()
    """How the survivors of every axis are chosen."""
    retrain: Retrain | None = Retrain()
    """Lightweight retraining; null to trust the zero-shot order."""
    seed: int = 0
