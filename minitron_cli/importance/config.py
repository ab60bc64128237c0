"""Options of `minitron importance`."""

from pydantic import Field, model_validator

from minitron_cli.layerwise.config import CalibrationConfig


class ImportanceConfig(CalibrationConfig):
    """One pass over a calibration set that scores every axis, by every aggregation."""

    pre_activation: bool = False
    """Also score neurons before the activation function, as the paper prints (ranking.width.neuron: pre_activation)."""
    layer_removal: bool = True
    """Also measure the perplexity without each layer; costs about half as many forward passes as there are layers."""
    blocks: tuple[int, ...] = ()
    """Also measure the perplexity with each contiguous block of n layers removed, for every n listed; each n costs as
    much as layer_removal."""
    block_task: str | None = None
    """Also evaluate the model without each of these blocks on an lm-eval task, such as winogrande:5 (5 examples in the
    prompt)."""
    block_metric: str = "acc"
    """Metric of the task that ranks blocks; higher must be better."""
    block_task_path: str | None = Field(None, exclude=True)
    """Directory of lm-eval task YAMLs in which block_task is looked up as well; needs no network."""

    @model_validator(mode="after")
    def _task_has_blocks(self) -> "ImportanceConfig":
        if self.block_task and not self.blocks:
            raise ValueError(
                "block_task evaluates models without blocks of layers: set blocks to the numbers of layers to remove"
            )
        if self.block_task and self.mode == "layer_major":
            raise ValueError("block_task needs the whole model in memory: remove it or set mode to resident")
        return self
