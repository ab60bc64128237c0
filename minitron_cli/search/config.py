"""What a user says about a search."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from minitron_cli.evaluate.metrics import TEXT_FIGURES, task_figure
from minitron_cli.figures import Figure
from minitron_cli.model.axes import Axis
from minitron_cli.prune.config import Budget, Ranking
from minitron_cli.search.axis_sizes import PRESETS, AxisSizes, Preset
from minitron_cli.search.constraints import Constraint
from minitron_cli.search.constraints.parameters import Parameters
from minitron_cli.spec import Amount, Quantity, Spec


class Retrain(Spec):
    """Lightweight retraining of the best candidates, which settles their order (Muralidharan et al. 2024, sec. 2.3).

    Successive halving: at every rung the candidates are compared and some go on. The learning rate is one cosine over
    all of `tokens`, which the survivors of the last rung see; nobody starts again.
    """

    top: int = Field(4, ge=1)
    """How many candidates, best zero-shot first."""
    tokens: Quantity = 1_800_000_000
    """Tokens of those that stay to the end; the paper's 1.8B. Ranks changed up to about 300 of its 400 steps."""
    rungs: int = Field(3, ge=1)
    """How often they are compared, the last time at the end; 1: all are trained to the end, as in the paper."""
    keep: float = Field(0.5, gt=0, le=1)
    """The share that goes on after a rung, two at least; each rung is at this share of the next one's tokens."""
    batch_size: int = Field(1152, ge=1)
    """Sequences per optimizer step."""
    micro_batch_size: int = Field(1, ge=1)
    """Sequences that run at a time; changes memory and speed, and the result by rounding only."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak of the cosine, which ends at a tenth of it."""
    warmup_steps: int = Field(10, ge=0)
    """Steps until the peak."""
    save_every: int = Field(100, ge=1)
    """Steps between two checkpoints of a candidate."""


class TaskObjective(Spec):
    """An lm-eval task decides. On the command line and in short, `winogrande:5`."""

    kind: Literal["task"] = "task"
    task: str = Field(min_length=1)
    """Its name, with the number of shots after a colon."""
    metric: str = "acc"
    """Which of its metrics."""
    better: Literal["higher", "lower"] | None = None
    """Which way is better; if absent, lower for perplexities, losses and the like, else higher."""
    path: str | None = Field(None, exclude=True)
    """A directory of lm-eval task YAMLs in which the task is looked up too; needs no network."""

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}"

    @property
    def figure(self) -> Figure:
        """Title and direction of the metric; higher is better unless the metric or the user says otherwise."""
        return Figure(self.name, better=self.better or task_figure(self.metric).better or "higher")


def _objective(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) and value not in ("loss", "kl") else value


Objective = Annotated[
    Literal["loss", "kl"] | TaskObjective,
    BeforeValidator(_objective, json_schema_input_type=Literal["loss", "kl"] | str | TaskObjective),
]


def objective_figure(objective: Objective) -> Figure:
    """Title, unit and direction of the values of an objective."""
    return objective.figure if isinstance(objective, TaskObjective) else TEXT_FIGURES[objective]


class SearchConfig(Spec):
    """Enumerate shapes, keep those that meet the constraints, score them, retrain the best few, choose."""

    budget: Budget | None = None
    """How large the child may be; a short way to say a `parameters` constraint."""
    targets: tuple[Amount, ...] = ()
    """Further sizes beside budget.target from the same search, each with a winner of its own."""
    constraints: tuple[Constraint, ...] = ()
    """What else a child must keep to: parameters, memory, flops, serving, or measured here: latency, throughput."""
    space: dict[Axis, AxisSizes] | Preset = Field({"hidden": (), "ffn": ()})
    """Choices per axis: a list of sizes, a range, or an empty list for serving-friendly steps; or the name of one of
    the paper's tables. Other axes keep the parent's size."""
    candidates: int = Field(16, ge=1)
    """How many feasible shapes are scored, for each target: those that keep most of the importance."""
    objective: Objective = "loss"
    """What is best: the least loss, the least kl to the parent, or an lm-eval task such as winogrande:5."""
    score_blocks: int = Field(64, ge=1)
    """Validation blocks for one score."""
    ranking: Ranking = Ranking()
    """How the survivors of every axis are chosen."""
    retrain: Retrain | None = Retrain()
    """Lightweight retraining; null to trust the zero-shot order."""
    seed: int = 0
    """Of the data order of the retraining."""

    @field_validator("space", mode="before")
    @classmethod
    def _space_is_known(cls, space: Any) -> Any:
        if isinstance(space, str) and space not in PRESETS:
            raise ValueError(f"{space!r} is no published space; use one of {', '.join(PRESETS)}, or a mapping of axes")
        return space

    @field_validator("space")
    @classmethod
    def _space_has_an_axis(cls, space: Any) -> Any:
        if not space:
            raise ValueError("no axis may be cut; name one, or leave the space out")
        return space

    @model_validator(mode="after")
    def _is_bounded(self) -> "SearchConfig":
        if self.budget is None and not self.constraints:
            raise ValueError("nothing says how small; give budget.target, or constraints")
        if self.targets and self.budget is None:
            raise ValueError("targets are further sizes; give the first as budget.target")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a target is given twice; keep one of them")
        return self

    @property
    def axes(self) -> dict[str, AxisSizes]:
        """Axis -> its choices, presets spelled out."""
        space = PRESETS[self.space] if isinstance(self.space, str) else self.space
        return {str(axis): sizes for axis, sizes in space.items()}

    @property
    def labels(self) -> list[str]:
        """What the winners go by: each target as it was given; one nameless winner without a target."""
        return [str(target) for target in (self.budget.target, *self.targets)] if self.budget else [""]

    def constraints_of(self, label: str) -> list[Constraint]:
        """All that hold for one of the targets."""
        if self.budget is None:
            return list(self.constraints)
        target = next(t for t in (self.budget.target, *self.targets) if str(t) == label)
        return [Parameters.of(self.budget.model_copy(update={"target": target})), *self.constraints]
