"""Everything a report can show, as plain values. Knows no artifacts: a stage fills it in, leaving out what it lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["parent", "teacher", "pruned", "distilled", "control"]


@dataclass(frozen=True)
class ModelFacts:
    """One model's geometry."""

    name: str
    family: str
    sizes: Mapping[str, int]
    """Axis -> size."""
    parameters: int
    non_embedding: int | None = None
    kv_cache_bytes_per_token: int | None = None


@dataclass(frozen=True)
class Measure:
    """A measured value and its standard error."""

    value: float | None
    """None where the measurement gave no finite value."""
    stderr: float | None = None


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """One metric of one benchmark task."""

    task: str
    metric: str
    measure: Measure
    shots: int | None = None
    items: int | None = None
    dataset: str | None = None
    """Its items' place on the hub, where they come from there."""
    config: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class ResultRow:
    """One model of the results table."""

    label: str
    kind: Kind
    parameters: int | None = None
    loss: Measure | None = None
    """Nats per token."""
    perplexity: Measure | None = None
    kl_to_parent: Measure | None = None
    """Nats per token."""
    tokens_trained: int | None = None
    tasks: tuple[TaskResult, ...] = ()
    loss_from_parent: Interval | None = None
    """Its loss less the parent's on the same items."""


@dataclass(frozen=True)
class Benchmark:
    """One metric of one task, of every model."""

    title: str
    """Task, metric and shots."""
    items: int | None
    values: Mapping[str, Interval]
    """Model -> value."""
    differences: Mapping[str, Interval] = field(default_factory=dict)
    """Model -> its value less the parent's, on the same items."""
    chances: Mapping[str, float] = field(default_factory=dict)
    """Model -> McNemar's exact probability that it is as good as its parent."""


@dataclass(frozen=True)
class SpeedRow:
    """How fast one model generates."""

    label: str
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_seconds: float
    peak_bytes: int | None = None
    prefill_ratio: float | None = None
    """How many times as fast as the parent, measured in turns."""
    prefill_range: Sequence[float] | None = None
    """Of the rounds' ratios: lowest, highest."""
    decode_ratio: float | None = None
    decode_range: Sequence[float] | None = None


@dataclass(frozen=True)
class LayerCurves:
    """One value per layer of the parent."""

    block_importance: Sequence[float] | None = None
    """1 - cosine similarity of what goes into the layer and what comes out."""
    perplexity: Sequence[float] | None = None
    """How much perplexity rises without the layer."""
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One shape the search considered, in its ranking's order."""

    sizes: Mapping[str, int]
    parameters: int
    error: float | None = None
    """Parameters against the target, as a fraction."""
    zero_shot: float | None = None
    retrained: float | None = None
    is_chosen: bool = False
    rungs: tuple[float, ...] = ()
    """Its score at each rung of retraining that it reached."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """What else it costs: memory in bytes, flops per token, latency in ms, throughput in tokens per second."""
    pareto_optimal: frozenset[str] = frozenset()
    """The costs, `parameters` too, at which no other candidate is as cheap and as good, and better in one."""
    target: str = ""
    """The size it was a candidate for, where there were several."""


@dataclass(frozen=True)
class Stability:
    """How far two rankings of the same candidates agree."""

    before: str
    after: str
    candidates: int
    tau: float
    """Kendall's: 1 the same order, -1 reversed."""
    target: str = ""


@dataclass(frozen=True)
class Comparison:
    """How candidates were compared."""

    objective: str = "loss"
    """By what."""
    rung_tokens: tuple[int, ...] = ()
    """Tokens of retraining at each rung."""
    stability: tuple[Stability, ...] = ()


@dataclass(frozen=True)
class RepairFacts:
    """What mending the cut was worth, before any training; loss and KL in nats per token."""

    repairs: tuple[str, ...]
    parent_loss: float
    before: tuple[float, float]
    """Loss and KL to the parent of the plain cut."""
    after: tuple[float, float]


@dataclass(frozen=True)
class TrainingRun:
    """One training, from first to last step. Sequences of one plot have one length."""

    label: str
    tokens: Sequence[float] = ()
    loss: Sequence[float] = ()
    """The training objective."""
    learning_rate: Sequence[float] = ()
    validation_tokens: Sequence[float] = ()
    validation_loss: Sequence[float] = ()
    """Nats per token."""
    validation_kl: Sequence[float] = ()
    """To the teacher, in nats per token."""


@dataclass(frozen=True)
class ServingRow:
    """How one program that loads or quantises the model will fare."""

    reader: str
    level: str
    reason: str
    nearest: Mapping[str, int]
    """Axis -> size, for the axes of the nearest shape without the trouble that differ."""


@dataclass(frozen=True)
class CostRow:
    """What one stage spent on one kind of work."""

    stage: str
    tokens: int | None = None
    flops: float | None = None
    work: str = ""
    is_needed: bool = True
    """Whether the product could not be made without it: controls and measurements could be left out."""


@dataclass(frozen=True)
class LineageRow:
    """One artifact and what it was made of."""

    stage: str
    key8: str
    label: str = ""
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """The whole page. A section without data is left out."""

    title: str
    parent: ModelFacts | None = None
    child: ModelFacts | None = None
    results: tuple[ResultRow, ...] = ()
    """In the order of the table."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Every value with its interval, and how far each model is from its parent."""
    speed: tuple[SpeedRow, ...] = ()
    speed_settings: str = ""
    """What was generated and where, in words."""
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Axis -> importance [layer, channel], or [channel] where all layers share it. Higher is more important."""
    importance_metric: str = ""
    """How it was measured, in words."""
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Axis -> indices that survived: [kept], or [layer, kept] where layers differ."""
    layers: LayerCurves | None = None
    candidates: tuple[Candidate, ...] = ()
    candidate_parameters: str = "parameters"
    """Which parameters a candidate's number counts, as a column title."""
    comparison: Comparison = Comparison()
    """How they were compared."""
    checks: tuple[str, ...] = ()
    """What the child passed before it was kept."""
    serving: tuple[ServingRow, ...] = ()
    repair: RepairFacts | None = None
    runs: tuple[TrainingRun, ...] = ()
    costs: tuple[CostRow, ...] = ()
    device_hours: Mapping[str, float] = field(default_factory=dict)
    """Accelerator -> hours of all that were used to make the product."""
    lineage: tuple[LineageRow, ...] = ()
    commands: tuple[str, ...] = ()
    """What to type to get the same result."""

    def first(self, *kinds: Kind) -> ResultRow | None:
        """The first row of the first kind that has one."""
        return next((row for kind in kinds for row in self.results if row.kind == kind), None)
