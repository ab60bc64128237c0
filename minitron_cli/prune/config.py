"""Options of `minitron prune`: the shape or the budget, the ranking of what survives, and the repair."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticKnownError

from minitron_cli import methods
from minitron_cli.choices import CheckpointForm, PruneMethod, RepairName, ServingLint
from minitron_cli.model.axes import Axis, Count
from minitron_cli.scores.layer_score import layer_score, rankings
from minitron_cli.scores.metric import Activation, Metric
from minitron_cli.spec import Spec, Target, of_whole

BLOCK_RANKINGS = tuple(rankings(of_blocks=True))
"""Rankings of layers by contiguous blocks: one block is removed, not single layers."""


def _layer_ranking(kind: str) -> str:
    if kind not in (known := rankings()):
        raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, known))})
    return kind


LayerRanking = Annotated[str, AfterValidator(_layer_ranking), WithJsonSchema({"type": "string", "enum": rankings()})]


class Ranking(Spec):
    """Choice of the entries of every axis that are kept."""

    width: Metric = Field(Activation(), discriminator="kind")
    """Score of channels, heads, neurons and experts. Best in Muralidharan et al. 2024: batch l2, sequence mean."""
    layers: LayerRanking = "block_importance"
    """Score of layers. block_importance: 1 - cosine similarity of a layer's input and output; perplexity: perplexity
    gained by removing the layer; collapse: order in which LaCo merges layers (measured with importance.collapse);
    learned: mean of a trained gate (measured with importance.learned).
    The others remove one contiguous block of layers: block_perplexity and block_task by the perplexity gained or the
    task score lost (measured with importance.blocks), block_cosine and block_angle by how far the block's output is
    from its input (measured with importance.block_distances)."""
    invert: bool = False
    """Keep the entries with the lowest scores instead: a control for experiments."""
    head_residual: Literal["none", "paper", "laco"] = "none"
    """Merging of pruned query heads q' into the least important kept heads q (Muralidharan et al. 2024, sec. 2.3).
    paper: q + (q - q'), as printed; laco: q + (q' - q), which is q', with the sign of the work it cites (LaCo)."""


class Budget(Spec):
    """Size of the child."""

    target: Target
    """Parameters of the child, such as 4B, or 50% of the parent's."""
    count: Count = "total"
    """Parameters that the target counts. The published "4B" of Llama-3.1-Minitron is 4.51B in total."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """Allowed distance from the target on either side, as a fraction of it."""

    def goal(self, whole: int = 0) -> int:
        """Target in parameters; a percentage is taken of `whole`, the parent's count."""
        return round(of_whole(self.target, whole))


REPAIRS = ("rotate", "least_squares", "rescale", "bias", "merge")

ScoreRepair = Literal["none", "rotate", "all"]
SCORE_REPAIRS: Mapping[ScoreRepair, frozenset[str]] = {
    "none": frozenset(),
    "rotate": frozenset({"rotate"}),
    "all": frozenset(REPAIRS) - {"rescale"},
}
"""Setting -> repairs of a candidate before it is scored. Rescaling needs trials, which are left for the child."""


BLOCK_TOKENS = {"score_blocks": 4_096, "repair_samples": 16_384}
"""Number of blocks -> tokens beyond which it is lowered unless it is set, since time grows with tokens."""


class Preparable(Protocol):
    """A model, or its shape, in another form."""

    def written_as(self, form: CheckpointForm | None) -> Self: ...
    def untied(self) -> Self: ...
    def without_pattern(self) -> Self: ...


Model = TypeVar("Model", bound=Preparable)


class PruneConfig(Spec):
    """One pruning: to a `shape`, or to a `budget` along `axes`; without either, to the search's winner."""

    method: PruneMethod | None = Field(None, exclude=True)
    """A published method by its name, which stands for other keys of this section: they are printed."""
    shape: dict[Axis, int] | None = None
    """Sizes of the axes to prune; the others keep the parent's."""
    drop_layers: tuple[int, ...] = ()
    """Layers to remove, counted from 0, instead of the least important ones."""
    budget: Budget | None = None
    """Choose the shape: of the feasible ones, those that retain most importance are scored, and the best is taken."""
    axes: tuple[Axis, ...] = ("hidden", "ffn")
    """Axes that a budget may prune. Width before depth, heads last (Muralidharan et al. 2024, best practices)."""
    candidates: int = Field(8, ge=1)
    """Number of shapes that a budget scores: those that retain most importance."""
    score_blocks: int = Field(8, ge=1)
    """Validation blocks on which each of them is scored. Unless set, no more than hold 4,096 tokens."""
    score_repair: ScoreRepair = "rotate"
    """Repair of a shape before it is scored, as far as `repair` includes it. rotate: only the rotation, whose
    statistics serve all shapes and the child; all: everything but rescaling, for each shape anew. The child is repaired
    in full whatever is chosen here."""
    size: Target | None = None
    """Target of a multi-target search to prune to, written as it was given there, such as 50%."""
    rounds: int = Field(1, ge=1)
    """Number of equal pruning rounds, with scores measured again before each. One is as good as several (Muralidharan
    et al. 2024)."""
    ranking: Ranking = Ranking()
    """Choice of the entries of every axis that are kept."""
    repair: RepairName = "auto"
    """Repair the pruned weights without training. rotate: keep directions of the residual stream instead of channels;
    least_squares: fit each matrix to what the parent computes in its place; all: both. rescale: only rescale norms,
    which least_squares includes. bias: add what a matrix wrote for the mean of its pruned heads or neurons to its bias,
    as FLAP does. merge: add the differences of dropped layers to the layer before them, as LaCo does. auto: all that
    the model allows, if there is text to fit on."""
    repair_samples: int = Field(128, ge=1)
    """Number of training blocks that a repair is fitted on. Unless set, at most those that the text has, and no more
    than hold 16,384 tokens: its time grows with the tokens, and it gains little from more."""
    untie: bool = False
    """Untie the LM head of a model that shares it with the embedding. This makes a rotation exact; the added parameters
    count toward the target."""

    write_as: CheckpointForm | None = Field(None, exclude_if=lambda form: form is None)
    """Form in which a model in a multimodal wrapper is written: wrapper, with the vision tower and projector as they
    are, or text, the text model alone, a checkpoint like any other. Unless set, as the model is that is given."""
    serving_lint: ServingLint = "refuse"
    """Whether to make a child that a serving program would not run although it runs the parent. refuse: no layers are
    pruned off the pattern by which llama.cpp gives the layers of some families their kinds; and a budget prunes heads
    with `hidden` in families whose heads vLLM or llama.cpp takes to be of hidden / heads (Qwen 2, Phi 3, Granite, ...).
    warn: prune as asked; transformers runs it."""

    def fitted(self, sequence_length: int) -> Self:
        """The same with the numbers of blocks that were not set for blocks of this length."""
        unset = {name: tokens for name, tokens in BLOCK_TOKENS.items() if name not in self.model_fields_set}
        few = {name: min(getattr(self, name), math.ceil(tokens / sequence_length)) for name, tokens in unset.items()}
        return self.model_copy(update=few)

    def prepared(self, model: Model) -> Model:
        """The model as its children are written, before any biases are added. InputError if it cannot be so."""
        model = model.written_as(self.write_as)
        model = model.untied() if self.untie else model
        return model.without_pattern() if self.serving_lint == "warn" else model

    @property
    def repairs(self) -> frozenset[str]:
        """Names of the repairs to apply. A norm whose output was fitted needs no rescaling, so `all` leaves it out."""
        both = frozenset({"rotate", "least_squares"})
        return both if self.repair in ("auto", "all") else frozenset({self.repair} & set(REPAIRS))

    @property
    def adds_biases(self) -> bool:
        """Whether the child has biases where the family may have them and the parent need not."""
        return self.repair == "bias"

    @model_validator(mode="before")
    @classmethod
    def _stands_for_keys(cls, values: Any) -> Any:
        return methods.expanded("prune", values)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "PruneConfig":
        if self.budget and (self.shape or self.drop_layers):
            raise ValueError("give a shape or a budget, not both")
        if self.size and (self.budget or self.shape or self.drop_layers):
            raise ValueError("size picks a winner of the search: leave out size, or the shape and the budget")
        if self.drop_layers and (self.shape or {}).get("layer"):
            raise ValueError("give drop_layers or the number of layers, not both")
        if self.drop_layers and self.rounds > 1:
            raise ValueError("drop_layers are removed at once: give the number of layers instead, or one round")
        if self.ranking.layers in BLOCK_RANKINGS and self.rounds > 1:
            raise ValueError("a contiguous block of layers is removed at once: use one round, or rank single layers")
        for name, ranks in (("layers", layer_score(self.ranking.layers)), ("width", self.ranking.width)):
            if ranks.is_measured_once and self.rounds > 1:
                raise ValueError(
                    f"ranking.{name}={ranks.kind} is measured once, by `minitron importance`, and rounds measure "
                    "again: use one round, or rank by what every pass measures"
                )
        if self.ranking.head_residual != "none" and self.rounds > 1:
            raise ValueError("head_residual changes weights, and rounds carry over only indices: use one round")
        for axis in self.shape or (self.axes if self.budget else ()):
            if reason := self.ranking.width.refusal(axis):
                raise ValueError(f"ranking.width {reason}")
        if len(set(self.drop_layers)) < len(self.drop_layers) or min(self.drop_layers, default=0) < 0:
            raise ValueError("drop_layers must list different layers, counted from 0")
        return self
