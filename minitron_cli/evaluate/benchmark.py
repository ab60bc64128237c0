"""Measurement of one model on the text and tasks of an evaluation. Compares no models but for their KL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.build import Context, StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import InputError
from minitron_cli.evaluate import cloze, lm_eval_runner, tasks
from minitron_cli.evaluate.config import PERPLEXITY, EvaluateConfig, Task
from minitron_cli.evaluate.earlier import earlier
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.evaluate.per_byte import BytesResult, loss_per_byte, pieces_of
from minitron_cli.evaluate.perplexity import KLResult, PerplexityResult, loss_and_kl
from minitron_cli.evaluate.statistics import Items
from minitron_cli.evaluate.tasks import TaskLocations
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.results.evaluation import BITS_PER_BYTE, ORIGINAL, PARENT, MetricResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Benchmark:
    """Text and tasks that every model is measured on."""

    context: Context
    models: Mapping[str, SourceModel]
    """Models by label, among them the parent."""
    blocks: Blocks | None
    config: EvaluateConfig
    allow_code: bool
    others: Mapping[str, str]
    """Label of each model with another tokenizer than the parent's -> how it differs."""
    stored_as: Mapping[str, Any]
    """Stage and version of the artifacts that hold measurements."""

    @property
    def parent(self) -> SourceModel:
        return self.models[PARENT]

    @cached_property
    def known(self) -> dict[str, Measurements]:
        """What earlier evaluations of the workspace have measured of the models, by label."""
        config = self.config.model_dump(mode="json")
        manifest = {**self.stored_as, "config": config, "inputs": self.inputs}
        found = {
            label: earlier(
                self.context,
                model.fingerprint,
                manifest,
                references={name: one.fingerprint for name, one in self._references(label).items()},
                per_byte=bool(self.others),
            )
            for label, model in self.models.items()
            if label not in self.others
        }
        return {label: measured for label, measured in found.items() if measured}

    @property
    def known_by_chain(self) -> tuple[str, ...]:
        """Labels of the models that an earlier step of a chain has measured, all but their KL."""
        return tuple(label for label in (PARENT, ORIGINAL) if ORIGINAL in self.models and label in self.known)

    def is_measured(self, label: str) -> bool:
        """Whether all that is wanted of a model is known."""
        metrics = self.known[label].results.get(PERPLEXITY, {}) if label in self.known else {}
        return label in self.known and self._references(label).keys() <= metrics.keys()

    @cached_property
    def locations(self) -> TaskLocations:
        own, data = self.config.include_path, self.config.task_data
        if data and not Path(data).is_dir():
            raise InputError(f"{data} is not a directory: give --task-data one with a directory for each task")
        return TaskLocations(Path(own) if own else None, Path(data) if data else None)

    @cached_property
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

    def measured_json(self, work: StageBuild, label: str, subject: SourceModel) -> dict[str, Any]:
        """Measurements of one model as JSON, so that an interrupted evaluation keeps them."""
        return self._measure(work, label, subject).model_dump(mode="json")

    def _measure(self, work: StageBuild, label: str, subject: SourceModel) -> Measurements:
        if self.is_measured(label):
            return self._ordered(self.known[label])
        model = self._load(subject)
        return self._with_kl(self.known.get(label) or self._measured(work, label, subject, model), label, model)

    def _measured(self, work: StageBuild, label: str, subject: SourceModel, model: "PreTrainedModel") -> Measurements:
        """Everything but the second KL of a model."""
        needs_tokenizer = self.config.tasks or self.config.cloze or hf.has_tokenizer(subject.path)
        tokenizer = hf.load_tokenizer(subject.path) if needs_tokenizer else None
        found = Measurements()
        if self.blocks and self.config.perplexity:
            found |= self._on_text(model, self.blocks, tokenizer, label)
        if self.blocks and self.config.cloze:
            made = cloze.task_of_blocks(work.scratch, self.tokenizer, self.blocks, self.config.cloze)
            found |= self._on_tasks(model, tokenizer, [Task(name="cloze", document="document")], TaskLocations(made))
        if self.config.tasks:
            chat = {name: getattr(self.config, name) for name in ("apply_chat_template", "fewshot_as_multiturn")}
            found |= self._on_tasks(model, tokenizer, self.config.tasks, self.locations, **chat)
        return found

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The parent's, which made the blocks."""
        return hf.load_tokenizer(self.parent.path)

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

    def _load(self, subject: SourceModel) -> "PreTrainedModel":
        return hf.load_model(subject.path, device=self.context.device, dtype=subject.dtype_in(self.context))

    def _on_text(self, model: "PreTrainedModel", blocks: Blocks, tokenizer: Any, label: str) -> Measurements:
        """Losses per token, and the first of the model's KLs, for which it reads the same text.

        Per byte, if any model has another tokenizer than the parent; for such a model nothing else.
        """
        metrics, items = dict[str, MetricResult](), dict[str, Items]()
        if label not in self.others:
            name, reference = next(iter(self._references(label).items()), ("", None))
            loss, kl = self._loss_and_kl(model, reference, blocks)
            metrics, items = loss.metrics(), {"loss": loss.items}
            metrics |= {name: kl.metrics()["kl"]} if kl else {}
        if self.others:
            found = self._per_byte(model, blocks, tokenizer)
            metrics, items = metrics | found.metrics(), items | {BITS_PER_BYTE: found.items}
        return Measurements(results={PERPLEXITY: metrics}, items={PERPLEXITY: items})

    def _references(self, label: str) -> dict[str, SourceModel]:
        """Name of a KL -> the model from which it is measured, for the model called `label`."""
        if self.blocks is None or not self.config.perplexity or label in self.others or label == ORIGINAL:
            return {}
        found = {} if label == PARENT else {"kl": self.parent}
        original = None if ORIGINAL in self.others else self.models.get(ORIGINAL)
        return found | ({"kl_original": original} if original else {})

    def _with_kl(self, found: Measurements, label: str, model: "PreTrainedModel") -> Measurements:
        """Measurements with the KL from the parent and from the original, as far as they lack them."""
        metrics = dict(found.results.get(PERPLEXITY, {}))
        for name, reference in self._references(label).items():
            if name not in metrics:
                assert self.blocks
                _, kl = self._loss_and_kl(model, reference, self.blocks)
                assert kl
                metrics[name] = kl.metrics()["kl"]
        return self._ordered(found | Measurements(results={PERPLEXITY: metrics})) if metrics else found

    def _ordered(self, found: Measurements) -> Measurements:
        """The same with the metrics on text in their usual order."""
        metrics = found.results.get(PERPLEXITY, {})
        ordered = {name: metrics[name] for name in TEXT_FIGURES if name in metrics}
        return found | Measurements(results={PERPLEXITY: ordered} if ordered else {})

    def _loss_and_kl(
        self, model: "PreTrainedModel", reference: SourceModel | None, blocks: Blocks
    ) -> tuple[PerplexityResult, KLResult | None]:
        """Loss, and with a reference the KL from it, which is in memory as long as this takes."""
        beside, size = self._load(reference) if reference else None, self.config.batch_size
        return loss_and_kl(model, beside, blocks, max_blocks=self.config.blocks, batch_size=size)

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
