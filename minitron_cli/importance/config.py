"""Settings of the importance stage."""

from pydantic import Field, model_validator

from minitron_cli.layerwise.config import CalibrationConfig, ObserverOptions


class ImportanceConfig(CalibrationConfig):
    """Score every axis with every aggregation in one pass over a calibration set."""

    pre_activation: bool = False
    """Also score neurons before the activation function, as the paper prints (ranking.width.neuron: pre_activation)."""
    layer_removal: bool = True
    """Also measure the perplexity without each layer; costs about half as many passes as there are layers."""
    blocks: tuple[int, ...] = ()
    """Also measure the perplexity without each contiguous block of n layers, for every n listed; each n costs as much
    as layer_removal."""
    block_task: str | None = None
    """Also measure an lm-eval task, such as winogrande:5, without each of these blocks; higher must be better."""
    block_metric: str = "acc"
    """Metric of the task."""
    block_task_path: str | None = Field(None, exclude=True)
    """Directory of further lm-eval task YAMLs in which block_task is looked up; needs no network."""

    @property
    def removal_lengths(self) -> tuple[int, ...]:
        """Numbers of consecutive layers that are removed together, ascending."""
        return tuple(sorted({*self.blocks, *([1] if self.layer_removal else [])}))

    @property
    def observer_options(self) -> ObserverOptions:
        """Measurements that the observers of a pass are asked for."""
        return ObserverOptions(self.pre_activation, self.removal_lengths)

    @model_validator(mode="after")
    def _task_has_blocks(self) -> "ImportanceConfig":
        if self.block_task and not self.blocks:
            raise ValueError("block_task needs blocks: list the numbers of layers to remove together")
        if self.block_task and self.mode == "layer_major":
            raise ValueError("block_task needs the whole model in memory: drop it or set mode to resident")
        return self
