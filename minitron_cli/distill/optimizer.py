"""Trained parameters and their AdamW moments, also as tensors by name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli.distill.checkpoints import Saved
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.sharding import local, span, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW on named parameters; weight decay on matrices only."""

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
        """Gradients to sum over processes. Those of sharded parameters are not among them: FSDP has summed them."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return [gradient for gradient in gradients if not isinstance(gradient, DTensor)]

    def clip_(self) -> Tensor:
        """Clip the gradient to a norm of at most `clip`; its norm before that."""
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._clip))

    def step_(self, learning_rate: float) -> None:
        """Update the parameters, then drop the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.drop_gradients_()

    def drop_gradients_(self) -> None:
        """Drop the gradients without a step."""
        self._adamw.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """This process's rows of every parameter, not copied, as `parameter.NAME`."""
        return {f"parameter.{name}": local(p.data) for name, p in self.parameters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """This process's rows of the whole state: weights, and moments of parameters that have had a gradient."""
        tensors = self.weights()
        for name, p in self.parameters.items():
            tensors |= {
                f"{moment}.{name}": local(self._adamw.state[p][moment]) for moment in MOMENTS if p in self._adamw.state
            }
        return tensors

    def load_(self, saved: Saved, group: ProcessGroup) -> None:
        """Restore a saved state of any number of processes: from `tensors`, or from `weights` without moments."""
        for name, p in self.parameters.items():
            rows = span(p.data, group)
            local(p.data).copy_(saved.rows(f"parameter.{name}", *rows))
            if f"step.{name}" in saved:
                state = self._adamw.state[p] = {moment: torch.empty_like(p.data) for moment in MOMENTS[1:]}
                for moment, tensor in state.items():
                    local(tensor).copy_(saved.rows(f"{moment}.{name}", *rows))
                state["step"] = saved.rows(f"step.{name}").to(p.device)
