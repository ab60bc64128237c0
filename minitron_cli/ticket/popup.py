"""Masks that are learned without training a weight: edge-popup (Ramanujan et al. 2020).

Every weight w of a matrix has a score s. The forward pass computes with m * w, m the mask of the largest |s| of the
matrix; the backward pass takes m for |s| (straight-through), so that scores move and weights stay.
"""

# B sequence, T token

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minitron_cli import progress
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.schedule import learning_rate
from minitron_cli.distill.step_loss import step_loss

Keep = Callable[[str, Tensor], Tensor]
"""Bool mask of the parameter called so that keeps its largest scores."""


class PopUp(nn.Module):
    """Parametrization of a weight that stays: the mask of the largest scores times the weight."""

    def __init__(self, weight: Tensor, choose: Callable[[Tensor], Tensor], draw: torch.Generator) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.rand(weight.shape, generator=draw).to(weight.device) * 2 - 1)
        self._choose = choose

    @property
    def mask(self) -> Tensor:
        """Weights that the scores keep."""
        return self._choose(self.scores.detach().abs())

    def forward(self, weight: Tensor) -> Tensor:
        sizes = self.scores.abs()
        straight_through = self.mask.to(weight) + (sizes - sizes.detach())  # whose second part is exactly 0
        return weight * straight_through


@contextmanager
def popped_up(model: nn.Module, names: list[str], keep: Keep, seed: int) -> Iterator[dict[str, PopUp]]:
    """Context in which the named weights are masked by scores, and nothing but the scores has a gradient."""
    draw, found = torch.Generator().manual_seed(seed), dict[str, PopUp]()
    model.requires_grad_(False)
    for name in names:
        module_name, _, weight_name = name.rpartition(".")
        module, weight = model.get_submodule(module_name), model.get_parameter(name)
        found[name] = PopUp(weight, partial(keep, name), draw)
        parametrize.register_parametrization(module, weight_name, found[name])
    try:
        yield found
    finally:
        for name in names:
            module_name, _, weight_name = name.rpartition(".")
            module = model.get_submodule(module_name)
            parametrize.remove_parametrizations(module, weight_name, leave_parametrized=False)
        model.requires_grad_(True)


def learned_masks(
    model: Any, names: list[str], keep: Keep, blocks: Blocks, config: DistillConfig, rate: float, device: str
) -> dict[str, Tensor]:
    """Mask of each named weight after its scores were trained on the text with AdamW's moments; the model stays."""
    steps = config.total_steps(blocks.sequence_length)
    with popped_up(model, names, keep, config.seed) as popups:
        pair = ModelPair(model, None, config, (), ProcessGroup(device, alone=True), "fp32")
        optimizer = torch.optim.Adam([popup.scores for popup in popups.values()], betas=config.betas)
        with progress.track("scores", steps, "steps") as advance:
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = learning_rate(step, steps, rate, 0.0, config.warmup_steps)
                advance(1, loss=_step(pair, optimizer, blocks, step))
        return {name: popup.mask.cpu() for name, popup in popups.items()}


def _step(pair: ModelPair, optimizer: torch.optim.Adam, blocks: Blocks, step: int) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = step_loss(pair, blocks, step)
    loss.backward()
    optimizer.step()
    return float(loss.detach())
