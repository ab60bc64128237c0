"""What a user says about a cut: the shape or the budget, and how survivors are ranked."""

from typing import Literal

from pydantic import Field, model_validator

from minitron_cli.model.axes import Axis, Count
from minitron_cli.scores.metric import Activation, Metric
from minitron_cli.spec import Amount, Spec, of_whole

BLOCK_RANKINGS = ("block_perplexity", "block_task")
"""Rankings of layers by contiguous blocks: one block is removed, not single layers."""


class Ranking(Spec):
    """How the survivors of every axis are chosen."""

    width: Metric = Field(Activation(), discriminator="kind")
    """Score of channels, heads, neurons and experts. Best in Muralidharan et al. 2024: batch l2, sequence mean."""
    layers: Literal["block_importance", "perplexity", "block_perplexity", "block_task"] = "block_importance"
    """Score of layers: 1 - cosine of input and output, or the perplexity gained by removing the layer. Or of the
    contiguous block that goes: the perplexity gained, or the task's score lost (measured with importance.blocks)."""
    invert: bool = False
    """Keep the worst instead of the best: a control for experiments."""
    head_residual: Literal["none", "paper", "laco"] = "none"
    """What the least important query heads that stay take over from those that go (Muralidharan et al. 2024, sec. 2.3).
    paper: q + (q - q'), as printed; laco: q + (q' - q), which is q', with the sign of the work it cites."""


class Budget(Spec):
    """How large the child may be."""

    target: Amount
    """Parameters of the child, such as 4B, or 50% of the parent's."""
    count: Count = "total"
    """Which parameters the target counts. The published "4B" of Llama-3.1-Minitron is 4.51B in total."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """How far the child may be from the target on either side, as a fraction of it."""

    def goal(self, whole: int = 0) -> int:
        """The target in parameters, where the parent has `whole`."""
        return round(of_whole(self.target, whole))


REPAIRS = ("rotate", "least_squares", "rescale")
RepairName = Literal["auto", "none", "rotate", "least_squares", "rescale", "all"]


class PruneConfig(Spec):
    """One cut. Give a `shape`, or a `budget` and the `axes` to cut; without either the search's winner is cut."""

    shape: dict[Axis, int] | None = None
    """Sizes of the axes to change; the others keep the parent's."""
    drop_layers: tuple[int, ...] = ()
    """Layers to remove, counted from 0, instead of the least important ones."""
    budget: Budget | None = None
    """Choose the shape: feasible shapes nearest to an even cut are scored, the best is taken."""
    axes: tuple[Axis, ...] = ("hidden", "ffn")
    """What a budget may cut. Width before depth, heads last (Muralidharan et al. 2024, best practices)."""
    candidates: int = Field(8, ge=1)
    """How many shapes a budget scores."""
    size: Amount | None = None
    """Of a search for several sizes, the one to cut: its target, as it was given there."""
    rounds: int = Field(1, ge=1)
    """Cut in so many equal rounds and score what is left before each; one is as good (Muralidharan et al. 2024)."""
    ranking: Ranking = Ranking()
    """How the survivors of every axis are chosen."""
    repair: RepairName = "auto"
    """Mend the cut without training: keep directions of the residual stream instead of channels (rotate), fit each
    matrix to what the parent computes in its place (least_squares), or both (all). rescale sets norms right and does no
    more; least_squares does it by the way. auto: all that the model allows, if there is text to fit on."""
    repair_samples: int = Field(128, ge=1)
    """Blocks of training text that a repair is fitted on."""
    untie: bool = False
    """Give a model whose embedding is its language-model head too a head of its own: then a rotation is exact, and the
    head is counted."""

    @property
    def repairs(self) -> frozenset[str]:
        """What is to be mended, by name. A norm that was solved for has nothing left to rescale."""
        both = frozenset({"rotate", "least_squares"})
        return both if self.repair in ("auto", "all") else frozenset({self.repair} & set(REPAIRS))

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "PruneConfig":
        if self.budget and (self.shape or self.drop_layers):
            raise ValueError("give a shape or a budget, not both")
        if self.size and (self.budget or self.shape or self.drop_layers):
            raise ValueError("size picks a winner of the search: leave out the shape or the budget")
        if self.drop_layers and (self.shape or {}).get("layer"):
            raise ValueError("give drop_layers or the number of layers, not both")
        if self.drop_layers and self.rounds > 1:
            raise ValueError("drop_layers are removed at once: give the number of layers instead, or one round")
        if self.ranking.layers in BLOCK_RANKINGS and self.rounds > 1:
            raise ValueError("a contiguous block of layers is removed at once: rank layers one by one, or one round")
        if self.ranking.head_residual != "none" and self.rounds > 1:
            raise ValueError("head_residual changes weights, and rounds carry over indices alone: use one round")
        if len(set(self.drop_layers)) < len(self.drop_layers) or min(self.drop_layers, default=0) < 0:
            raise ValueError("drop_layers lists different layers, counted from 0")
        return self
