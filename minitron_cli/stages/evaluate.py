"""Evaluate stage: measures models and their parent on the same text and tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import io, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.cost.compute import model_size
from minitron_cli.data.chat_template import ChatTemplate, TemplateFailure
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import InputError
from minitron_cli.evaluate import cloze, gate, generation_speed, lm_eval_runner, tasks
from minitron_cli.evaluate.config import CODE_TASKS, PERPLEXITY, Cloze, EvaluateConfig, Gates, Task
from minitron_cli.evaluate.earlier import ITEMS, earlier
from minitron_cli.evaluate.gate import Outcome
from minitron_cli.evaluate.generation_speed import SpeedComparison
from minitron_cli.evaluate.measurements import Measurements, against
from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.evaluate.per_byte import BytesResult, loss_per_byte, pieces_of
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.evaluate.statistics import Items
from minitron_cli.evaluate.tasks import TaskLocations
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.price import evaluation as work_of
from minitron_cli.price import subject as subjects_of
from minitron_cli.price.offer import offered
from minitron_cli.results.evaluation import (
    BITS_PER_BYTE,
    ORIGINAL,
    PARENT,
    EvaluationResult,
    MetricResult,
    ModelEvaluation,
)
from minitron_cli.results.price import Price
from minitron_cli.results.run_record import ModelSpeed, SpeedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STAGE, VERSION = "evaluate", 4

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
    Without `allow_code`, tasks that run generated code are left out of a suite.
    """
    has_original = original is not None and original.fingerprint != parent.fingerprint
    subjects = {PARENT: parent} | ({ORIGINAL: original} if original and has_original else {})
    subjects |= {label: open_source_model(path, offline=context.offline) for label, path in models}
    config = _with_suite(config, allow_code)
    if config.apply_chat_template:
        _check_chat_templates(subjects.values())
    others = _other_tokenizers(subjects) if config.perplexity else {}
    blocks = _held_out(context, parent, data, config)
    benchmark = _Benchmark(context, parent, blocks, config, allow_code, others, subjects.get(ORIGINAL))

    def build(work: StageBuild) -> EvaluationResult:
        found = {
            label: Measurements.model_validate(
                work.remember(f"results-{label}", partial(benchmark.measured_json, work, label, subject))
            )
            for label, subject in subjects.items()
        }
        items = {label: measured.model_dump(mode="json")["items"] for label, measured in found.items()}
        work.write_json(ITEMS, {"models": items})
        if config.speed:
            work.measured.speed = benchmark.speed(subjects)
        return EvaluationResult(
            models={label: benchmark.evaluation(label, subjects[label], found) for label in subjects},
            loss_tokens=benchmark.loss_tokens,
            sequence_length=benchmark.sequence_length,
            reused=tuple(benchmark.known),
        )

    inputs = {f"model {label}": subject.fingerprint for label, subject in subjects.items()} | benchmark.inputs()
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        forecast=benchmark.forecast,
        price=lambda: benchmark.price(subjects),
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


@dataclass(frozen=True)
class _Benchmark:
    """Text and tasks that every model is measured on."""

    context: Context
    parent: SourceModel
    blocks: Blocks | None
    config: EvaluateConfig
    allow_code: bool
    others: Mapping[str, str]
    """Label of each model with another tokenizer than the parent's -> how it differs."""
    original: SourceModel | None = None
    """The model that the chain started from, if it is not the parent."""

    @cached_property
    def known(self) -> dict[str, Measurements]:
        """What an earlier step has measured of the original and of the parent, by label."""
        if self.original is None:
            return {}
        config = self.config.model_dump(mode="json")
        manifest = {"stage": STAGE, "version": VERSION, "config": config, "inputs": self.inputs()}
        found = {
            label: earlier(self.context.workspace, model.fingerprint, manifest, per_byte=bool(self.others))
            for label, model in ((PARENT, self.parent), (ORIGINAL, self.original))
            if label not in self.others
        }
        return {label: measured for label, measured in found.items() if measured}

    @cached_property
    def locations(self) -> TaskLocations:
        own, data = self.config.include_path, self.config.task_data
        if data and not Path(data).is_dir():
            raise InputError(f"{data} is not a directory: give --task-data one with a directory for each task")
        return TaskLocations(Path(own) if own else None, Path(data) if data else None)

    def inputs(self) -> dict[str, str]:
        """Fingerprints of text and tasks. InputError for an unknown task, before any model is loaded."""
        if self.config.tasks:
            self._check_tasks()
        blocks = {"validation": self.blocks.fingerprint} if self.blocks else {}
        return {"dtype": self.context.dtype} | blocks | self.locations.fingerprints(self.config.tasks)

    def _check_tasks(self) -> None:
        if self.context.dry_run:
            tasks.forecast(self.config.tasks, self.locations, allow_code=self.allow_code)  # downloads nothing
        else:
            tasks.load_tasks(self.config.tasks, self.locations, allow_code=self.allow_code)

    def forecast(self) -> dict[str, Any]:
        """Tasks that would be evaluated, for a dry run."""
        wanted = self.config.tasks
        found = tasks.forecast(wanted, self.locations, allow_code=self.allow_code) if wanted else []
        return {"tasks": [row._asdict() for row in found]} if found else {}

    def price(self, subjects: Mapping[str, SourceModel]) -> Price:
        """What the evaluation of these models takes, without benchmark tasks."""
        models = {label: subjects_of.of_source(subject, self.context.dtype) for label, subject in subjects.items()}
        blocks = self.loss_tokens // max(self.sequence_length, 1)
        work = work_of.work(models, self.config, self.sequence_length, blocks, reused=tuple(self.known))
        return offered(self.context, STAGE, work)

    def measured_json(self, work: StageBuild, label: str, subject: SourceModel) -> dict[str, Any]:
        """Measurements of one model as JSON, so that an interrupted evaluation keeps them."""
        return self._measure(work, label, subject).model_dump(mode="json")

    def _measure(self, work: StageBuild, label: str, subject: SourceModel) -> Measurements:
        if label in self.known and not self._references(label):
            return self.known[label]
        model = self._load(subject)
        return self._with_kl(self.known.get(label) or self._measured_alone(work, label, subject, model), label, model)

    def _measured_alone(
        self, work: StageBuild, label: str, subject: SourceModel, model: "PreTrainedModel"
    ) -> Measurements:
        """Everything but the KL from other models."""
        needs_tokenizer = self.config.tasks or self.config.cloze or hf.has_tokenizer(subject.path)
        tokenizer = hf.load_tokenizer(subject.path) if needs_tokenizer else None
        found = Measurements()
        if self.blocks and self.config.perplexity:
            found |= self._on_text(model, self.blocks, tokenizer, label)
        if self.blocks and self.config.cloze:
            locations = TaskLocations(_cloze_task(work, self.tokenizer, self.blocks, self.config.cloze))
            found |= self._on_tasks(model, tokenizer, [Task(name="cloze", document="document")], locations)
        if self.config.tasks:
            chat = {name: getattr(self.config, name) for name in ("apply_chat_template", "fewshot_as_multiturn")}
            found |= self._on_tasks(model, tokenizer, self.config.tasks, self.locations, **chat)
        return found

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The parent's, which made the blocks."""
        return hf.load_tokenizer(self.parent.path)

    def evaluation(self, label: str, subject: SourceModel, found: Mapping[str, Measurements]) -> ModelEvaluation:
        """Everything measured of one model, as it is stored, with its differences from those that it is compared with.

        `found`: what was measured of all models.
        """
        measured = found[label]
        return ModelEvaluation(
            fingerprint=subject.fingerprint,
            model=model_size(subject.shape, self.sequence_length),
            results=measured.results,
            sources=measured.sources,
            against_parent=against(measured, found[PARENT]) if label != ORIGINAL else {},
            against_original=against(measured, found[ORIGINAL]) if ORIGINAL in found else {},
            other_tokenizer=self.others.get(label),
        )

    @property
    def sequence_length(self) -> int:
        """Tokens per held-out block; 0 without held-out text."""
        return self.blocks.sequence_length if self.blocks else 0

    @property
    def loss_tokens(self) -> int:
        """Held-out tokens on which the loss of each model is measured."""
        if self.blocks is None or not self.config.perplexity:
            return 0
        return min(self.config.blocks or len(self.blocks), len(self.blocks)) * self.sequence_length

    def speed(self, subjects: dict[str, SourceModel]) -> SpeedRecord:
        """Generation speed of every model, each measured in turns with the parent."""
        assert self.config.speed
        loaded = self._load(self.parent)
        found: dict[str, ModelSpeed] = {}
        for label, subject in subjects.items():
            if label != PARENT or len(subjects) == 1:
                model = loaded if label == PARENT else self._load(subject)
                timed = generation_speed.compare(model, loaded, self.config.speed)
                found.setdefault(PARENT, ModelSpeed(**asdict(timed.parent)))
                found[label] = _model_speed(timed) if label != PARENT else ModelSpeed(**asdict(timed.model))
        models = {label: speed.model_copy(update=self._memory(subjects[label])) for label, speed in found.items()}
        settings = self.config.speed.model_dump()
        return SpeedRecord(settings=settings, device=self.context.device, models=models)

    def _memory(self, subject: SourceModel) -> dict[str, int]:
        assert self.config.speed
        context = self.context
        return generation_speed.peak_memory(subject.path, self.config.speed, device=context.device, dtype=context.dtype)

    def _load(self, subject: SourceModel) -> "PreTrainedModel":
        return hf.load_model(subject.path, device=self.context.device, dtype=self.context.dtype)

    def _on_text(self, model: "PreTrainedModel", blocks: Blocks, tokenizer: Any, label: str) -> Measurements:
        """Losses per token.

        Per byte, if any model has another tokenizer than the parent; for such a model nothing else.
        """
        metrics, items = dict[str, MetricResult](), dict[str, Items]()
        if label not in self.others:
            measured = perplexity(model, blocks, max_blocks=self.config.blocks, batch_size=self.config.batch_size)
            metrics, items = measured.metrics(), {"loss": measured.items}
        if self.others:
            found = self._per_byte(model, blocks, tokenizer)
            metrics, items = metrics | found.metrics(), items | {BITS_PER_BYTE: found.items}
        return Measurements(results={PERPLEXITY: metrics}, items={PERPLEXITY: items})

    def _references(self, label: str) -> dict[str, SourceModel]:
        """Name of a KL -> the model from which it is measured, for the model called `label`."""
        if self.blocks is None or not self.config.perplexity or label in self.others or label == ORIGINAL:
            return {}
        found = {"kl": self.parent} if label != PARENT else {}
        return found | ({"kl_original": self.original} if self.original and ORIGINAL not in self.others else {})

    def _with_kl(self, found: Measurements, label: str, model: "PreTrainedModel") -> Measurements:
        """Measurements with the KL from the parent and from the original, of which a model's own is left out."""
        metrics = dict(found.results.get(PERPLEXITY, {}))
        for name, reference in self._references(label).items():
            assert self.blocks
            metrics[name] = self._kl(model, reference, self.blocks)
        if not metrics:
            return found
        ordered = {name: metrics[name] for name in TEXT_FIGURES if name in metrics}
        return found.model_copy(update={"results": {**found.results, PERPLEXITY: ordered}})

    def _kl(self, model: "PreTrainedModel", reference: SourceModel, blocks: Blocks) -> MetricResult:
        most, size = self.config.blocks, self.config.batch_size
        found = kl_to_parent(model, self._load(reference), blocks, max_blocks=most, batch_size=size)
        return found.metrics()["kl"]

    def _per_byte(self, model: "PreTrainedModel", blocks: Blocks, tokenizer: Any) -> BytesResult:
        pieces = pieces_of(blocks, self.tokenizer, self.config.blocks)
        size = self.config.batch_size
        return loss_per_byte(model, tokenizer, pieces, length=self.sequence_length, batch_size=size)

    def _on_tasks(
        self,
        model: "PreTrainedModel",
        tokenizer: Any,
        requested: Sequence[Task],
        locations: TaskLocations,
        **chat: bool,
    ) -> Measurements:
        return lm_eval_runner.run_tasks(
            model,
            tokenizer,
            requested,
            locations=locations,
            allow_code=self.allow_code,
            batch_size=self.config.batch_size,
            **chat,
        )


def _model_speed(timed: SpeedComparison) -> ModelSpeed:
    """Speed of a model that was timed in turns with its parent."""
    return ModelSpeed(
        **asdict(timed.model),
        prefill_ratio=timed.prefill_ratio,
        prefill_range=timed.prefill_range,
        decode_ratio=timed.decode_ratio,
        decode_range=timed.decode_range,
    )


def _cloze_task(work: StageBuild, tokenizer: Any, blocks: Blocks, config: Cloze) -> Path:
    """Task directory made from the documents of the validation blocks; the same for all models of one tokenizer."""
    final = work.scratch / "cloze"
    if not final.is_dir():
        io.make_dirs(work.scratch)
        with io.new_dir(final) as directory:
            cloze.write_task(directory, _documents(tokenizer, blocks), config)
    return final


def _documents(tokenizer: Any, blocks: Blocks) -> list[str]:
    """Text of the blocks, split into documents."""
    tokens = blocks.text_tokens()
    ends = (tokens == tokenizer.eos_token_id).nonzero()[:, 0] + 1
    texts = (tokenizer.decode(piece.tolist(), skip_special_tokens=True) for piece in tokens.tensor_split(ends.tolist()))
    return [text for text in texts if text.strip()]


def gate_outcomes(artifact: Artifact, gates: Gates, label: str) -> list[Outcome]:
    """Outcome of every gate for the model called `label`."""
    return gate.outcomes(gates, artifact.result(EvaluationResult).models, label)


def check_gates(artifact: Artifact, gates: Gates, label: str) -> None:
    """Raise GateMissed unless the model called `label` meets every gate."""
    gate.require(gate_outcomes(artifact, gates, label))
