"""What is learned, the optimizer's moments for it, and both as tensors by name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minitron_cli.distill.config import DistillConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW on named parameters; decay on matrices only."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: DistillConfig) -> None:
        self.parameters = dict(parameters)
        self._clip = config.clip
        groups = [
            {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def clip_(self) -> Tensor:
        """The gradient's norm, as it was before it was cut to at most `clip`."""
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._clip)

    def step_(self, learning_rate: float) -> None:
        """Apply the gradients and drop them."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.drop_gradients_()

    def drop_gradients_(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, not copied: `parameter.NAME`, and the moments of those that have had a gradient."""
        tensors = {f"parameter.{name}": p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {
                f"{moment}.{name}": self._adamw.state[p][moment] for moment in MOMENTS if p in self._adamw.state
            }
        return tensors

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `tensors` gave."""
        for name, p in self.parameters.items():
            p.data.copy_(tensors[f"parameter.{name}"])
            if f"step.{name}" in tensors:
                self._adamw.state[p] = {moment: tensors[f"{moment}.{name}"].to(p.device) for moment in MOMENTS}
