"""Settings of the importance stage."""

from typing import Literal, Self

from pydantic import Field, model_validator

from minitron_cli.importance.learned_masks import LearnedMasks
from minitron_cli.layerwise.config import CalibrationConfig, ObserverOptions


class ImportanceConfig(CalibrationConfig):
    """Score every axis with every aggregation in one pass over a calibration set."""

    pre_activation: bool = False
    """Also score neurons before the activation function, as the paper prints (ranking.width.neuron: pre_activation)."""
    layer_removal: bool | Literal["auto"] = "auto"
    """Also measure the perplexity without each layer; costs about half as many passes of removal_samples as there are
    layers. auto: if the recipe prunes layers or ranks them by it. Block Importance is measured in any case."""
    removal_samples: int = Field(64, ge=1)
    """Number of the samples on which layers and blocks are removed, and the ends of blocks compared."""
    removal_positions: int = Field(64, ge=1)
    """Number of predicted tokens of each of them whose loss is taken, evenly spaced from another one on in each sample;
    the same for every removal."""
    blocks: tuple[int, ...] = ()
    """Also measure the perplexity without each contiguous block of n layers, for every n listed; each n costs as much
    as layer_removal."""
    block_distances: tuple[int, ...] = Field((), exclude_if=lambda lengths: not lengths)
    """Also measure how far the input of each contiguous block of n layers is from its output, for every n listed, on
    removal_samples samples, for ranking.layers block_cosine and block_angle. No layer runs again."""
    collapse: int | None = Field(None, ge=1)
    """Also find the order in which layers are merged into those before them, this many into one at a time, for
    ranking.layers collapse (LaCo). Takes the whole model in memory, and about layers^2 / 2 / (collapse + 1) forward
    passes of 8 samples."""
    learned: LearnedMasks | None = Field(None, exclude_if=lambda learned: learned is None)
    """Also learn masks for a target shape, for ranking.width learned and ranking.layers learned. Trains gates, and no
    weight; takes the whole model in memory in fp32."""
    block_task: str | None = None
    """Also measure an lm-eval task, such as winogrande:5, without each of these blocks; higher must be better."""
    block_metric: str = "acc"
    """Metric of the task."""
    block_task_path: str | None = Field(None, exclude=True)
    """Directory of further lm-eval task YAMLs in which block_task is looked up; needs no network."""

    @property
    def removal_lengths(self) -> tuple[int, ...]:
        """Numbers of consecutive layers that are removed together, ascending."""
        return tuple(sorted({*self.blocks, *([1] if self.layer_removal is True else [])}))

    @property
    def observer_options(self) -> ObserverOptions:
        """Measurements that the observers of a pass are asked for."""
        return ObserverOptions(
            self.pre_activation,
            self.removal_lengths,
            self.removal_samples,
            self.removal_positions,
            tuple(sorted(set(self.block_distances))),
        )

    def settled(self, *, removes_layers: bool) -> Self:
        """Config in which `auto` is what it says where it is known whether layers will be removed."""
        if self.layer_removal != "auto":
            return self
        return self.model_copy(update={"layer_removal": removes_layers})

    @model_validator(mode="after")
    def _task_has_blocks(self) -> "ImportanceConfig":
        if self.block_task and not self.blocks:
            raise ValueError("block_task needs blocks: list the numbers of layers to remove together")
        if self.collapse and self.mode == "layer_major":
            raise ValueError("collapse needs the whole model in memory: drop it or set mode to resident")
        if self.block_task and self.mode == "layer_major":
            raise ValueError("block_task needs the whole model in memory: drop it or set mode to resident")
        if self.learned and self.mode == "layer_major":
            raise ValueError("learned needs the whole model in memory: drop it or set mode to resident")
        return self
