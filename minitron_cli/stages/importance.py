"""Importance stage: reads a model and text, stores scores of every axis."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minitron_cli import io, process_rank, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.cost import compute
from minitron_cli.data.batches import Batches, calibration_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import DataError, InputError
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.importance import layer_removal
from minitron_cli.importance.block_task import without_blocks
from minitron_cli.importance.collapse import SAMPLES, collapse_order
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.importance.learned_masks import LearnedMasks
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.calibration_errors import check_samples
from minitron_cli.layerwise.processes import Processes, join_processes
from minitron_cli.layerwise.resume import SavedState, discard_damaged
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.learned import training as learned
from minitron_cli.learned.gates import targets
from minitron_cli.memory import fits
from minitron_cli.model.shape import Shape
from minitron_cli.price import importance as work_of
from minitron_cli.price import subject
from minitron_cli.price.offer import offered
from minitron_cli.prune.limits import refusal
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.price import Price
from minitron_cli.scores.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "importance", 2
ORDER = "calibration last"  # in which masks are trained on the text; other scores do not depend on it
TEXT_SHARE, MIN_SAMPLES = 8, 16  # unless set, samples are at most an eighth of the text: most of it is to train on


def run(context: Context, parent: SourceModel, data: DataConfig, config: ImportanceConfig) -> Artifact:
    """Score heads, neurons, experts, hidden channels and layers of `parent` in one pass over calibration samples."""
    config = _removable(config.settled(removes_layers=False), parent.shape.sizes["layer"])
    layers = parent.shape.sizes["layer"]
    layer_removal.layer_blocks(
        layers, [*config.removal_lengths, *config.block_distances]
    )  # refuse before any text is read
    if config.learned:
        _check_learned(parent.shape, config.learned)
    if config.collapse and config.collapse >= layers:
        raise InputError(
            f"importance.collapse {config.collapse}: a layer and {config.collapse} that follow it are more than the "
            f"{layers} layers of {parent.name}: choose a lower one"
        )
    blocks = blocks_of(context, data, "train", parent.path)
    processes, device = join_processes(context.device)
    config = _fit_samples(config, blocks)
    _check_samples(config.samples, blocks, processes)
    task = _block_task(config)
    calibration = Calibration.of(config, blocks, processes)
    scoring = _Scoring(replace(context, device=device), parent, config, calibration, task, blocks)
    inputs = {"model": parent.fingerprint, "data": blocks.fingerprint, "dtype": context.dtype}
    if task and (found := task.fingerprint()):
        inputs["block_task"] = found
    inputs |= layer_removal.inputs(config.removal_lengths, config.removal_positions, blocks.sequence_length)
    if config.learned:
        inputs["order"] = ORDER
    if config.collapse:
        inputs["collapse"] = f"on {SAMPLES} samples"

    def build(work: StageBuild) -> ImportanceResult:
        scores = scoring.scores(work) | magnitude(parent.checkpoint.read, parent.shape)
        scores.save(work.path)
        return ImportanceResult(
            model=compute.model_size(parent.shape, blocks.sequence_length),
            samples=config.samples,
            sequence_length=blocks.sequence_length,
            removed=config.removal_lengths,
            removal_samples=config.removal_samples,
            removal_positions=config.removal_positions,
            parent_loss=scores.parent_nll,
        )

    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        price=lambda: scoring.price(blocks.sequence_length),
        given=lambda: {parent.fingerprint: parent.name, **given_texts(data, [blocks])},
        together=True,
    )


def _check_learned(parent: Shape, config: LearnedMasks) -> None:
    """Raise InputError unless the parent can be pruned to the shape, and all axes that this prunes have gates."""
    if unknown := sorted(config.shape.keys() - parent.prunable.keys()):
        raise InputError(f"importance.learned.shape: {unknown[0]} is none of {', '.join(parent.prunable)}")
    for axis, size in config.shape.items():
        parent.check_size(axis, size, where="importance.learned.shape: ")
    child = parent.resize(**config.shape)
    if reason := refusal(parent, child):
        raise InputError(f"importance.learned.shape: {reason}")
    if not targets(parent, child):
        raise InputError("importance.learned.shape is the model's own: give a smaller size of an axis")


def _removable(config: ImportanceConfig, layers: int) -> ImportanceConfig:
    """Config without the removal of single layers where there is only one."""
    if layers > 1 or not config.layer_removal:
        return config
    progress.say("skipping the perplexity without each layer: the model has one layer")
    return config.model_copy(update={"layer_removal": False})


def _fit_samples(config: ImportanceConfig, blocks: Blocks) -> ImportanceConfig:
    """Config with fewer samples where the text is short and the user set no number."""
    most = min(len(blocks), max(MIN_SAMPLES, len(blocks) // TEXT_SHARE))
    if "samples" in config.model_fields_set or config.samples <= most or not most:
        return config
    progress.say(
        f"importance: samples is {most:,} instead of {config.samples:,}, of the {len(blocks):,} blocks of the training "
        "text; set importance.samples to choose yourself"
    )
    return config.model_copy(update={"samples": most})


def _check_samples(samples: int, blocks: Blocks, processes: Processes) -> None:
    """Raise DataError if there are more samples than blocks, or fewer than processes."""
    check_samples(samples, blocks, "importance.samples")
    if samples < processes.size:
        raise DataError(f"{samples} samples are too few for {processes.size} processes: raise importance.samples")


def _block_task(config: ImportanceConfig) -> TaskMetric | None:
    if not config.block_task:
        return None
    path = Path(config.block_task_path) if config.block_task_path else None
    return TaskMetric(Task.parse(config.block_task), config.block_metric, path, "importance.block_metric")


@dataclass(frozen=True)
class _Scoring:
    """One process's share of the scoring."""

    context: Context
    parent: SourceModel
    config: ImportanceConfig
    calibration: Calibration
    task: TaskMetric | None
    blocks: Blocks

    @property
    def _dtype(self) -> str:
        return self.parent.dtype_in(self.context)

    def price(self, length: int) -> Price:
        """What the pass over blocks of `length` tokens takes."""
        model, size = subject.of_source(self.parent, self._dtype), self.calibration.processes.size
        work = work_of.work(model, self.config, length, is_resident=self._is_resident, processes=size)
        return offered(self.context, STAGE, work)

    def scores(self, work: StageBuild) -> Scores:
        """Scores from the activations of all processes, and of the task if there is one."""
        processes = self.calibration.processes
        scratch = work.scratch / f"{processes.rank}-of-{processes.size}"
        discard_damaged(scratch)
        io.make_dirs(scratch)
        calibration = replace(self.calibration, scratch=scratch, resume=work.resume)
        if processes.all(self._is_resident):  # each looks at what is free where it runs
            return self._resident(work, calibration)
        if self.config.mode == "auto":
            progress.say(
                f"{self.parent.name} ({self._model_bytes / 1e9:.1f} GB) does not fit into memory: "
                "loading one layer at a time"
            )
        if self.config.collapse:
            raise InputError("importance.collapse needs the whole model in memory, but it does not fit: leave it out")
        if self.config.learned:
            raise InputError("importance.learned needs the whole model in memory, but it does not fit: leave it out")
        if self.task:
            raise InputError(
                "importance.block_task needs the whole model in memory, but it does not fit: leave the task out"
            )
        model = hf.empty_model(self.parent.path, device=self.context.device, dtype=self._dtype)
        family = self.parent.family
        weights = StoredWeights(model, family, self.parent.checkpoint.read, self.context.device)
        return collect_by_layer(model, family, weights, calibration, self.config.observer_options)

    def _resident(self, work: StageBuild, calibration: Calibration) -> Scores:
        model = hf.load_model(self.parent.path, device=self.context.device, dtype=self._dtype)
        scores = collect(model, self.parent.family, calibration, self.config.observer_options)
        if self.config.collapse:
            scores = scores | self._collapsed(work, model, self.config.collapse)
        if self.task:
            scores = scores | self._on_task(work, model, self.task)
        return scores | self._learned(work, model, self.config.learned) if self.config.learned else scores

    @cached_property
    def _is_resident(self) -> bool:
        """Whether the whole model is in memory. Decided once: what is free changes."""
        if self.config.mode != "auto":
            return self.config.mode == "resident"
        together = self._model_bytes * (self.calibration.processes.size if self.context.device == "cpu" else 1)
        return fits(together, self.config.activation_budget, self.context.device)

    @property
    def _model_bytes(self) -> int:
        """Bytes of the weights; learned masks train through them in fp32."""
        return self.parent.size_bytes("float32" if self.config.learned else self._dtype)

    def _collapsed(self, work: StageBuild, model: "PreTrainedModel", following: int) -> Scores:
        """Order of merges; found by the first process only, empty in the others."""
        if not process_rank.is_first_process():
            return Scores({})
        ids = calibration_ids(self.config.seed, self.config.samples, len(self.blocks))[:SAMPLES]
        few = list(Batches(self.blocks, ids, self.config.batch_size))
        found = collapse_order(model, self.parent.family, few, following, work.remember)
        return Scores({"layer.collapse": found})

    def _learned(self, work: StageBuild, model: "PreTrainedModel", config: LearnedMasks) -> Scores:
        """Scores from gates that are trained, which changes the model; by the first process only, empty in others."""
        if not process_rank.is_first_process():
            return Scores({})
        saved = SavedState(work.scratch / learned.FILE, 30)
        found = learned.learned_scores(model, self.parent.shape, config, self.blocks, saved, resume=work.resume)
        return Scores(found)

    def _on_task(self, work: StageBuild, model: "PreTrainedModel", task: TaskMetric) -> Scores:
        """Loss of task score without each block of layers; measured by the first process only, empty in the others."""
        if not process_rank.is_first_process():
            return Scores({})
        tokenizer = hf.load_tokenizer(self.parent.path)

        def evaluate(model: "PreTrainedModel") -> float:
            return task(model, tokenizer, self.config.batch_size)

        whole = work.remember("block_task-whole", lambda: {"value": evaluate(model)})["value"]
        found = {n: without_blocks(model, self.parent.family, n, evaluate, work.remember) for n in self.config.blocks}
        return Scores(
            {f"layer.block_task={n}": torch.tensor([whole - v for v in values]) for n, values in found.items()}
        )
