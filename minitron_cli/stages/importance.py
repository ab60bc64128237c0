"""Importance stage: reads a model and text, stores scores of every axis."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minitron_cli import io, process_rank, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.cost import compute
from minitron_cli.data.batches import Batch, batch, rank_slice, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import DataError, InputError
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.importance.block_task import without_blocks
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.importance.layer_removal import layer_blocks
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.layerwise.processes import Processes, join_processes
from minitron_cli.memory import fits
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.scores.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "importance", 1


def run(context: Context, parent: SourceModel, data: DataConfig, config: ImportanceConfig) -> Artifact:
    """Score heads, neurons, experts, hidden channels and layers of `parent` in one pass over calibration samples."""
    layer_blocks(parent.shape.sizes["layer"], config.blocks)  # refuses impossible removals before any text is read
    blocks = blocks_of(context, data, "train", parent.path)
    if config.samples > len(blocks):
        raise DataError(
            f"{config.samples} calibration samples of {blocks.sequence_length} tokens are more than the data's "
            f"{len(blocks)}: lower importance.samples or data.sequence_length, or add text"
        )

    processes, device = join_processes(context.device)
    if config.samples < processes.size:
        raise DataError(
            f"{config.samples} samples are too few for {processes.size} processes: raise importance.samples"
        )
    calibration = _Calibration(replace(context, device=device), parent, blocks, config, processes)
    inputs = {"model": parent.fingerprint, "data": blocks.fingerprint, "dtype": context.dtype}
    if (task := _block_task(config)) and (found := task.fingerprint()):
        inputs["block_task"] = found

    def build(work: StageBuild) -> ImportanceResult:
        scores = calibration.scores(work) | magnitude(parent.checkpoint.read, parent.shape)
        scores.save(work.path)
        return ImportanceResult(
            model=compute.model_size(parent.shape, blocks.sequence_length),
            samples=config.samples,
            sequence_length=blocks.sequence_length,
            removed=(*([1] if config.layer_removal else []), *config.blocks),
            parent_loss=scores.parent_nll,
        )

    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build, together=True)


def _block_task(config: ImportanceConfig) -> TaskMetric | None:
    if not config.block_task:
        return None
    path = Path(config.block_task_path) if config.block_task_path else None
    return TaskMetric(Task.parse(config.block_task), config.block_metric, path, "importance.block_metric")


@dataclass(frozen=True)
class _Calibration:
    """One process's share of the scoring."""

    context: Context
    parent: SourceModel
    blocks: Blocks
    config: ImportanceConfig
    processes: Processes

    def scores(self, work: StageBuild) -> Scores:
        scratch = work.scratch / f"{self.processes.rank}-of-{self.processes.size}"
        io.make_dirs(scratch)
        if self._is_resident():
            return self._resident(work, scratch)
        if self.config.block_task:
            raise InputError(
                "importance.block_task needs the whole model in memory, but it does not fit: leave the task out"
            )
        return collect_by_layer(
            hf.empty_model(self.parent.path, device=self.context.device, dtype=self.context.dtype),
            self.parent.family,
            list(self._batches()),
            self.parent.checkpoint.read,
            device=self.context.device,
            layer_removal=self.config.layer_removal,
            blocks=self.config.blocks,
            pre_activation=self.config.pre_activation,
            activation_budget=self.config.activation_budget,
            scratch=scratch,
            resume=work.resume,
            processes=self.processes,
        )

    def _resident(self, work: StageBuild, scratch: Path) -> Scores:
        model = hf.load_model(self.parent.path, device=self.context.device, dtype=self.context.dtype)
        scores = collect(
            model,
            self.parent.family,
            self._batches(),
            layer_removal=self.config.layer_removal,
            blocks=self.config.blocks,
            pre_activation=self.config.pre_activation,
            samples=len(self._ids()),
            scratch=scratch,
            resume=work.resume,
            processes=self.processes,
        )
        task = _block_task(self.config)
        return scores | self._on_task(work, model, task) if task else scores

    def _is_resident(self) -> bool:
        if self.config.mode != "auto":
            return self.config.mode == "resident"
        model_bytes = self.parent.size_bytes(self.context.dtype)
        on_cpu = self.context.device == "cpu"
        together = model_bytes * self.processes.size if on_cpu else model_bytes
        is_resident = fits(together, self.config.activation_budget, self.context.device)
        if not is_resident:
            progress.say(
                f"{self.parent.name} ({model_bytes / 1e9:.1f} GB) does not fit into memory: loading one layer at a time"
            )
        return is_resident

    def _ids(self) -> list[int]:
        ids = sample_ids(self.config.seed, 0, self.config.samples, len(self.blocks))
        return rank_slice(ids, self.processes.rank, self.processes.size)

    def _batches(self) -> Iterator[Batch]:
        ids = self._ids()
        for start in range(0, len(ids), self.config.batch_size):
            yield batch(self.blocks, ids[start : start + self.config.batch_size])

    def _on_task(self, work: StageBuild, model: "PreTrainedModel", task: TaskMetric) -> Scores:
        """Loss of task score without each block of layers; measured by the first process only, empty in the others."""
        if not process_rank.is_first_process():
            return Scores({})
        tokenizer = hf.load_tokenizer(self.parent.path)

        def evaluate(model: "PreTrainedModel") -> float:
            return task(model, tokenizer, self.config.batch_size)

        def measure() -> dict[str, list[float]]:
            whole = evaluate(model)
            return {
                f"layer.block_task={n}": [
                    whole - value for _, value in without_blocks(model, self.parent.family, n, evaluate)
                ]
                for n in self.config.blocks
            }

        return Scores({name: torch.tensor(lost) for name, lost in work.remember("block_task", measure).items()})
