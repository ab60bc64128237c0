"""What a user says about calibration."""

from pydantic import Field, model_validator

from minitron_cli.layerwise.config import CalibrationConfig


class ImportanceConfig(CalibrationConfig):
    """One pass over a calibration set scores every axis, with every aggregation."""

    pre_activation: bool = False
    """Score neurons before the activation function too, as the paper prints (ranking.width.neuron: pre_activation)."""
    layer_removal: bool = True
    """Measure the perplexity without each layer too; it costs about half as many passes as there are layers."""
    blocks: tuple[int, ...] = ()
    """Measure the perplexity without every run of so many layers too; each number costs as much as layer_removal."""
    block_task: str | None = None
    """Ask the model without each of these blocks an lm-eval task too, such as winogrande:5; higher must be better."""
    block_metric: str = "acc"
    """The task's metric that counts."""
    block_task_path: str | None = Field(None, exclude=True)
    """A directory of lm-eval task YAMLs in which block_task is looked up too; needs no network."""

    @model_validator(mode="after")
    def _task_has_blocks(self) -> "ImportanceConfig":
        if self.block_task and not self.blocks:
            raise ValueError("block_task is asked without blocks of layers: say of how many with blocks")
        if self.block_task and self.mode == "layer_major":
            raise ValueError("block_task needs the whole model in memory: drop it or set mode to resident")
        return self
