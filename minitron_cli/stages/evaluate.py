"""Evaluate stage: measures models and their parent on the same text and tasks."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.workspace import others_beside
from minitron_cli.checkpoint import hf
from minitron_cli.cost.compute import model_size
from minitron_cli.data.chat_template import ChatTemplate, TemplateFailure
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import InputError
from minitron_cli.evaluate import gate, others
from minitron_cli.evaluate.benchmark import Benchmark
from minitron_cli.evaluate.config import CODE_TASKS, EvaluateConfig, Gates
from minitron_cli.evaluate.earlier import ITEMS
from minitron_cli.evaluate.gate import Outcome
from minitron_cli.evaluate.generation_speed import check_lengths
from minitron_cli.evaluate.measurements import Measurements, against
from minitron_cli.evaluate.speed_record import speed_of
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.price import evaluation as work_of
from minitron_cli.price import subject as subjects_of
from minitron_cli.price.offer import offered
from minitron_cli.results.evaluation import (
    ORIGINAL,
    PARENT,
    EvaluationResult,
    ModelEvaluation,
)
from minitron_cli.results.price import Price

STAGE, VERSION = "evaluate", 8

Labelled = tuple[str, Path]


def run(
    context: Context,
    models: Sequence[Labelled],
    parent: SourceModel,
    data: DataConfig | None,
    config: EvaluateConfig,
    *,
    original: SourceModel | None = None,
    allow_code: bool = False,
) -> Artifact:
    """Measure the parent and every labelled checkpoint on the same text and tasks.

    `original`: the model that a chain started from, with which all are compared as well, unless it is the parent. What
    an earlier evaluation of the workspace found of it and of the parent is not measured again.
    Models that were measured elsewhere are recorded in the workspace, outside of the result's identity.
    Without `allow_code`, tasks that run generated code are left out of a suite.
    """
    has_original = original is not None and original.fingerprint != parent.fingerprint
    subjects = {PARENT: parent} | ({ORIGINAL: original} if original and has_original else {})
    subjects |= {label: open_source_model(path, offline=context.offline) for label, path in models}
    beside = others.read(config.others, list(subjects))
    config = _with_suite(config, allow_code)
    if config.apply_chat_template:
        _check_chat_templates(subjects.values())
    foreign = _other_tokenizers(subjects) if config.perplexity else {}
    blocks = _held_out(context, parent, data, config)
    stored_as = {"stage": STAGE, "version": VERSION}
    if config.speed:
        check_lengths((subject.config for subject in subjects.values()), config.speed)
    benchmark = Benchmark(context, subjects, blocks, config, allow_code, foreign, stored_as)

    def build(work: StageBuild) -> EvaluationResult:
        if benchmark.known:
            progress.say(f"{STAGE}: {', '.join(benchmark.known)} measured before on the same text and tasks, and kept")
        found = {
            label: Measurements.model_validate(
                work.remember(f"results-{label}", partial(benchmark.measured_json, work, label, subject))
            )
            for label, subject in subjects.items()
        }
        items = {label: measured.model_dump(mode="json")["items"] for label, measured in found.items()}
        work.write_json(ITEMS, {"models": items})
        if config.speed:
            work.measured.speed = speed_of(context, subjects, config.speed)
        return EvaluationResult(
            models={label: _evaluation(benchmark, label, subjects[label], found) for label in subjects},
            loss_tokens=benchmark.loss_tokens,
            sequence_length=benchmark.sequence_length,
            reused=benchmark.known_by_chain,
        )

    inputs = {f"model {label}": subject.fingerprint for label, subject in subjects.items()} | benchmark.inputs
    named = {s.fingerprint: s.name for s in subjects.values() if not s.path.is_relative_to(context.workspace.root)}
    given: dict[str, Any] = named | given_texts(data, () if blocks is None else [blocks])
    given |= benchmark.locations.given(config.tasks)
    name = others_beside(parent.fingerprint)
    if beside or context.workspace.given.get(name):
        given |= {name: {label: found.model_dump(mode="json") for label, found in beside.items()}}
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        forecast=benchmark.forecast,
        price=lambda: _price(benchmark, subjects),
        given=lambda: given,
    )


def _with_suite(config: EvaluateConfig, allow_code: bool) -> EvaluateConfig:
    """Configuration with the tasks of the suite listed. Warns about tasks that are left out."""
    requested = config.requested(allow_code=allow_code)
    if left_out := sorted(
        {task.name for task in config.requested(allow_code=True)} & CODE_TASKS - {t.name for t in requested}
    ):
        progress.warn(
            f"{' and '.join(left_out)} left out, because they run code that the model generates; "
            "add them with `minitron eval --allow-code-execution`"
        )
    return config.model_copy(update={"suite": None, "tasks": requested})


def _check_chat_templates(subjects: Iterable[SourceModel]) -> None:
    """Raise InputError unless every model's tokenizer has a chat template that writes a question within its bounds."""
    question = [{"role": "user", "content": "question"}]
    for subject in subjects:
        tokenizer = hf.load_tokenizer(subject.path)
        try:
            ChatTemplate.of(tokenizer, has_tools=False).write(question, [(1, True)])
        except ValueError:
            raise InputError(
                f"{subject.path}: its tokenizer has no chat template: leave --apply-chat-template out"
            ) from None
        except TemplateFailure as e:
            raise InputError(
                f"{subject.path}: its chat template does not write a question ({e}): repair it, "
                "or leave --apply-chat-template out"
            ) from None


def _other_tokenizers(subjects: Mapping[str, SourceModel]) -> dict[str, str]:
    """Label of each model that cannot read text in the parent's tokens -> why. Warns about them."""
    found = tokenizers.differences(subjects[PARENT], subjects, "the parent")
    for why in found.values():
        progress.warn(f"{why}: loss per token and KL are not compared; all models are measured per byte")
    return found


def _held_out(context: Context, parent: SourceModel, data: DataConfig | None, config: EvaluateConfig) -> Blocks | None:
    if not config.perplexity and config.cloze is None:
        return None
    if data is None:
        raise InputError("perplexity and cloze need held-out text: give some with --data, or evaluate tasks only")
    return blocks_of(context, data, "validation", parent.path)


def _price(benchmark: Benchmark, subjects: Mapping[str, SourceModel]) -> Price:
    """What the evaluation of these models takes, without benchmark tasks and without models that are measured."""
    models = {
        label: subjects_of.of_source(subject, subject.dtype_in(benchmark.context))
        for label, subject in subjects.items()
        if label == PARENT or not benchmark.is_measured(label)
    }
    blocks = benchmark.loss_tokens // max(benchmark.sequence_length, 1)
    work = work_of.work(
        models,
        benchmark.config,
        benchmark.sequence_length,
        blocks,
        reused=tuple(benchmark.known),
        foreign=benchmark.others,
    )
    return offered(benchmark.context, STAGE, work)


def _evaluation(
    benchmark: Benchmark, label: str, subject: SourceModel, found: Mapping[str, Measurements]
) -> ModelEvaluation:
    """Everything measured of one model, as it is stored, with its differences from those that it is compared with.

    `found`: what was measured of all models.
    """
    measured = found[label]
    return ModelEvaluation(
        fingerprint=subject.fingerprint,
        model=model_size(subject.shape, benchmark.sequence_length),
        results=measured.results,
        sources=measured.sources,
        against_parent=against(measured, found[PARENT]) if label != ORIGINAL else {},
        against_original=against(measured, found[ORIGINAL]) if ORIGINAL in found else {},
        against={other: against(measured.without_members, found[other]) for other in _named_before(label, found)},
        other_tokenizer=benchmark.others.get(label),
    )


def _named_before(label: str, labels: Iterable[str]) -> list[str]:
    """Labels of the models that were named before one, but for the parent and the original; none for those two."""
    named = [other for other in labels if other not in (PARENT, ORIGINAL)]
    return named[: named.index(label)] if label in named else []


def gate_outcomes(artifact: Artifact, gates: Gates, label: str) -> list[Outcome]:
    """Outcome of every gate for the model called `label`."""
    return gate.outcomes(gates, artifact.result(EvaluationResult).models, label)
