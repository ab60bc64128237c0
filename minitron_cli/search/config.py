"""Configuration of a search."""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from minitron_cli.choices import Preset
from minitron_cli.evaluate.metrics import KL, TEXT_FIGURES, task_figure
from minitron_cli.figures import Direction, Figure
from minitron_cli.model.axes import Axis
from minitron_cli.prune.config import Budget, Ranking, ScoreRepair
from minitron_cli.search.axis_sizes import PRESETS, AxisSizes
from minitron_cli.search.constraints import Constraint
from minitron_cli.search.constraints.parameters import Parameters
from minitron_cli.spec import Quantity, Spec, Target


class Retrain(Spec):
    """Lightweight retraining of the best candidates, which decides their final order (Muralidharan et al. 2024, 2.3).

    Successive halving: at every rung the candidates are compared and the best continue. The learning rate follows one
    cosine over all of `tokens`; training continues from rung to rung and never restarts.
    """

    section: ClassVar[str] = "search.retrain"
    """Section of the recipe with these settings, for messages."""

    top: int = Field(4, ge=1)
    """Number of candidates that are retrained, best zero-shot first."""
    tokens: Quantity = 1_800_000_000
    """Tokens of the candidates that reach the last rung. Paper: 1.8B in 400 steps; ranks settle at about 300."""
    rungs: int = Field(3, ge=1)
    """Number of comparisons, the last one at the end; 1 trains all candidates to the end, as in the paper."""
    keep: float = Field(0.5, gt=0, le=1)
    """Fraction that continues after a rung, at least two; each rung has this fraction of the next one's tokens."""
    batch_size: int = Field(1152, ge=1)
    """Sequences per optimizer step; fewer, unless set, where the run or the text is too short for it."""
    micro_batch_size: int = Field(1, ge=1)
    """Sequences per forward pass; changes memory and speed, and the result by rounding only."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate; the cosine ends at a tenth of it. Lower, unless set, for a batch below 1,152 sequences."""
    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warmup; unless set, at most a tenth of the run."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints of a candidate."""

    @property
    def starts_trained(self) -> bool:
        """Candidates have their parent's weights."""
        return True

    def total_steps(self, sequence_length: int) -> int:
        """Optimizer steps of the candidates that reach the last rung."""
        return math.ceil(self.tokens / (self.batch_size * sequence_length))


class TaskObjective(Spec):
    """A metric of an lm-eval task. Short form, also on the command line: `winogrande:5`."""

    kind: Literal["task"] = "task"
    task: str = Field(min_length=1)
    """Name of the task, with the number of shots after a colon."""
    metric: str = "acc"
    """Metric of the task."""
    better: Direction | None = None
    """Direction; if absent, that of lm-eval's metric, else higher."""
    path: str | None = Field(None, exclude=True)
    """Directory of further lm-eval task YAMLs."""

    @property
    def name(self) -> str:
        """Task and metric, as shown: `winogrande:5 acc`."""
        return f"{self.task} {self.metric}"

    @property
    def figure(self) -> Figure:
        """Title and direction of the metric; higher is better unless the metric or the user says otherwise."""
        return Figure(self.name, better=self.better or task_figure(self.metric).better or "higher")


def _objective(value: Any) -> Any:
    """An objective by its name, which is the kind where settings stand beside it: `objective.metric=f1`."""
    name = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(name, str) or name == "task":
        return value
    settings = {key: setting for key, setting in value.items() if key != "kind"} if value is not name else {}
    if name not in OBJECTIVE_FIGURES:
        return {"task": name, **settings}
    if settings:
        raise ValueError(f"{name} has no {next(iter(settings))}; name a task, or leave it out")
    return name


Objective = Annotated[
    Literal["loss", "kl"] | TaskObjective,
    BeforeValidator(_objective, json_schema_input_type=Literal["loss", "kl"] | str | TaskObjective),
]


OBJECTIVE_FIGURES = {**TEXT_FIGURES, "kl": replace(KL, title="KL to the teacher")}
"""Name of an objective on text -> figure. Candidates are compared with the teacher, which need not be the parent."""


def objective_figure(objective: Objective) -> Figure:
    """Title, unit and direction of the values of an objective."""
    return objective.figure if isinstance(objective, TaskObjective) else OBJECTIVE_FIGURES[objective]


class SearchConfig(Spec):
    """Enumerate shapes, keep those that meet the constraints, score them, retrain the best, and choose one."""

    budget: Budget | None = None
    """Size of the child; short form of a `parameters` constraint."""
    targets: tuple[Target, ...] = ()
    """Further targets besides budget.target; the same search chooses a winner for each."""
    constraints: tuple[Constraint, ...] = ()
    """Further constraints: parameters, memory, flops, serving; measured on this machine: latency, throughput."""
    space: dict[Axis, AxisSizes] | Preset = Field({"hidden": (), "ffn": ()})
    """Candidate sizes per axis: a list, a range, or an empty list for serving-friendly steps; or the name of a
    published table. Other axes keep the parent's size."""
    candidates: int = Field(16, ge=1)
    """Number of feasible shapes that are scored for each target: those that retain most importance."""
    objective: Objective = "loss"
    """Quantity that ranks candidates: loss, kl (to the teacher), or an lm-eval task such as winogrande:5."""
    score_blocks: int = Field(64, ge=1)
    """Validation blocks per score."""
    score_repair: ScoreRepair = "rotate"
    """Repair of a candidate before it is scored zero-shot, as far as `prune.repair` includes it. rotate: only the
    rotation, whose statistics serve all candidates; all: everything but rescaling, for each candidate anew. Candidates
    that are retrained are repaired as the child will be, whatever is chosen here."""
    ranking: Ranking = Ranking()
    """Importance metrics that choose what is kept on every axis."""
    retrain: Retrain | None = Retrain()
    """Lightweight retraining; null to use the zero-shot order."""
    seed: int = 0
    """Seed of the data order in retraining."""

    @field_validator("space", mode="before")
    @classmethod
    def _space_is_known(cls, space: Any) -> Any:
        if isinstance(space, str) and space not in PRESETS:
            raise ValueError(
                f"{space!r} is not a published space; use one of {', '.join(PRESETS)}, or a mapping of axes"
            )
        return space

    @field_validator("space")
    @classmethod
    def _space_has_an_axis(cls, space: Any) -> Any:
        if not space:
            raise ValueError("the space names no axis; name one, or leave the space out")
        return space

    @model_validator(mode="after")
    def _is_bounded(self) -> "SearchConfig":
        if self.budget is None and not self.constraints:
            raise ValueError("the size is unbounded; give budget.target or constraints")
        if self.targets and self.budget is None:
            raise ValueError("targets are in addition to budget.target; give the first one there")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a target is given twice; keep one of them")
        return self

    @property
    def is_space_by_default(self) -> bool:
        """Whether the space is the one that a search has if it names none."""
        return self.space == type(self).model_fields["space"].default

    @property
    def axes(self) -> dict[str, AxisSizes]:
        """Axis -> candidate sizes, with presets resolved."""
        space = PRESETS[self.space] if isinstance(self.space, str) else self.space
        return {str(axis): sizes for axis, sizes in space.items()}

    @property
    def labels(self) -> list[str]:
        """Name of each winner: the target as it was given; one empty name without a target."""
        return [str(target) for target in (self.budget.target, *self.targets)] if self.budget else [""]

    def constraints_of(self, label: str) -> list[Constraint]:
        """All constraints of one target, by its label."""
        if self.budget is None:
            return list(self.constraints)
        target = next(t for t in (self.budget.target, *self.targets) if str(t) == label)
        return [Parameters.of(self.budget.model_copy(update={"target": target})), *self.constraints]
