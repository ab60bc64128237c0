"""The family stage: the original of a chain and the product of every step side by side, as data and as an HTML page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from minitron_cli import io
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.evaluate import estimates
from minitron_cli.evaluate.metrics import metric_figure
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.model.axes import PRUNABLE
from minitron_cli.model.shape import Shape
from minitron_cli.report.evaluation import KL, KL_ORIGINAL, LOSS, Evaluated, Name, metric_names
from minitron_cli.report.family import view
from minitron_cli.report.page import render
from minitron_cli.report.product import Product
from minitron_cli.report.provenance import cost_rows
from minitron_cli.results.evaluation import ORIGINAL, PARENT, Difference, EvaluationResult
from minitron_cli.results.family import FamilyMember, FamilyResult, Interval
from minitron_cli.results.run_record import ModelSpeed
from minitron_cli.results.training import TrainingResult
from minitron_cli.search.constraints.memory import Memory
from minitron_cli.spec import Spec

STAGE, VERSION = "family", 3
PAGE, ROWS = "family.html", "family.json"
MEMORY = Memory(length=4096, at_least=1)  # a constraint must have a limit; only its cost is asked for


class FamilyConfig(Spec):
    """Title of the page and labels of the steps."""

    title: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What one step of a chain made."""

    label: str
    product: Artifact
    evaluation: Artifact


def run(context: Context, original: SourceModel, steps: Sequence[Made]) -> Artifact:
    """Write `family.json` and the page of a chain."""
    product = Product(context.workspace, steps[-1].product)
    config = FamilyConfig(
        title=f"{product.title or ORIGINAL}: {context.workspace.name}", steps=tuple(step.label for step in steps)
    )

    def build(work: StageBuild) -> FamilyResult:
        result = FamilyResult(members=tuple(_members(original, steps)))
        rows = [row for made in product.lineage for row in cost_rows(made, product.step_labels.get(made.key, ""))]
        io.write_new(work.path / PAGE, render(view(config.title, result, rows)).encode())
        work.write_json(ROWS, result.as_json())
        return result

    inputs = {"original": original.fingerprint}
    for step in steps:
        inputs |= {f"model {step.label}": fingerprint.of_model(step.product.manifest)}
        inputs |= {f"evaluation {step.label}": step.evaluation.fingerprint}
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build)


def _members(original: SourceModel, steps: Sequence[Made]) -> Iterator[FamilyMember]:
    """The original and the product of each step."""
    measured = partial(_Measured.of, original=original.fingerprint)
    first = measured(steps[-1].evaluation, original.fingerprint) or measured(steps[0].evaluation, original.fingerprint)
    yield _member(ORIGINAL, original.fingerprint, original.shape, first, None)
    before, in_all = original.shape, 0
    for step in steps:
        shape = open_source_model(step.product.path).shape
        tokens = step.product.result(TrainingResult).tokens if step.product.stage == "distill" else 0
        in_all += tokens
        known = fingerprint.of_model(step.product.manifest)
        found = _member(step.label, known, shape, measured(step.evaluation, known), first)
        yield found.model_copy(update={"pruned": _pruned(before, shape), "tokens": tokens, "tokens_in_all": in_all})
        before = shape


def _pruned(before: Shape, after: Shape) -> str:
    old, new = before.sizes, after.sizes
    return ", ".join(f"{axis} {old[axis]:,} to {new[axis]:,}" for axis in PRUNABLE if old.get(axis) != new.get(axis))


@dataclass(frozen=True)
class _Measured:
    """One model in the evaluation of a step."""

    model: Evaluated
    kl: Name | None
    """Name of its KL from the original; None where it was compared with another model alone."""
    from_original: Mapping[str, Mapping[str, Difference]]
    """Task -> metric -> difference from the original; empty where it was compared with another model alone."""
    speed: ModelSpeed | None

    @classmethod
    def of(cls, evaluation: Artifact, wanted: str, *, original: str) -> "_Measured | None":
        """The model with the fingerprint `wanted`, if it was measured. The parent of the first step is the original."""
        models = evaluation.result(EvaluationResult).models
        label = next((label for label, found in models.items() if found.fingerprint == wanted), None)
        if label is None:
            return None
        found = models[label]
        kl, apart = (KL_ORIGINAL, found.against_original) if ORIGINAL in models else (None, {})
        if PARENT in models and models[PARENT].fingerprint == original:
            kl, apart = KL, found.against_parent
        record = evaluation.run.speed if evaluation.run else None
        speed = record.models.get(label) if record else None
        return cls(Evaluated(label, "control", found), kl, apart, speed)


def _member(label: str, known: str, shape: Shape, measured: _Measured | None, first: _Measured | None) -> FamilyMember:
    """One row. `first`: the original's measurements; None for the original itself."""
    facts: dict[str, Any] = dict(_quality(measured, first)) if measured else {}
    return FamilyMember(
        label=label,
        fingerprint=known,
        parameters=shape.parameters(),
        non_embedding=shape.parameters("non_embedding"),
        active=shape.parameters("active"),
        sizes=dict(shape.sizes),
        memory_bytes=int(MEMORY.cost(shape)),
        **facts,
    )


def _quality(measured: _Measured, first: _Measured | None) -> Iterator[tuple[str, Any]]:
    model, speed = measured.model, measured.speed
    names = [name for name in metric_names([model]) if name not in (KL, KL_ORIGINAL)]
    yield "metrics", {".".join(name): _interval(model, name) for name in names}
    if first:
        apart = {(task, name): x for task, some in measured.from_original.items() for name, x in some.items()}
        yield (
            "from_original",
            {".".join(name): Interval(value=x.difference, low=x.low, high=x.high) for name, x in apart.items()},
        )
        kl = measured.kl if measured.kl and model.metric(measured.kl) else None
        yield "kl_original", _interval(model, kl) if kl else None
        loss = apart.get(LOSS)
        yield "probability_retained", math.exp(-loss.difference) if loss else None
        yield "tasks_retained", _tasks_retained(model, first.model, names)
    if speed:
        yield "prefill_tokens_per_second", speed.prefill_tokens_per_second
        yield "decode_tokens_per_second", speed.decode_tokens_per_second


def _interval(model: Evaluated, name: Name) -> Interval:
    metric = model.metric(name)
    assert metric
    low, high = estimates.of_metric(metric).interval() or (None, None)
    return Interval(value=metric.value, low=low, high=high, chance=metric.chance)


def _tasks_retained(model: Evaluated, original: Evaluated, names: Sequence[Name]) -> float | None:
    shares = [
        own / its
        for name in names
        if metric_figure(*name).better == "higher"
        and (own := model.value(name)) is not None
        and (its := original.value(name))
    ]
    return fmean(shares) if shares else None
