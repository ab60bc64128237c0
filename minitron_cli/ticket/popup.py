"""Masks that are learned without training a weight: edge-popup (Ramanujan et al. 2020).

Every weight w of a matrix has a score s. The forward pass computes with m * w, m the mask of the largest |s| of the
matrix; the backward pass takes m for |s| (straight-through), so that scores move and weights stay.
"""

# B sequence, T token

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minitron_cli import progress, stopping
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import checkpoints
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.schedule import learning_rate
from minitron_cli.distill.step_loss import step_losses
from minitron_cli.errors import Interrupted

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
    model: Any,
    names: list[str],
    keep: Keep,
    blocks: Blocks,
    config: DistillConfig,
    rate: float,
    device: str,
    scratch: Path | None = None,
) -> dict[str, Tensor]:
    """Mask of each named weight after its scores were trained on the text with AdamW's moments; the model stays.

    Scores and moments are saved in `scratch` every `config.save_every` steps and when a stop is requested. A later call
    goes on from there, to the same bits.
    """
    steps = config.total_steps(blocks.sequence_length)
    with popped_up(model, names, keep, config.seed) as popups:
        pair = ModelPair(model, None, config, (), ProcessGroup(device, alone=True), "fp32")
        optimizer = torch.optim.Adam([popup.scores for popup in popups.values()], betas=config.betas)
        state = _State(popups, optimizer, scratch, f"{blocks.fingerprint} {config.seed} {rate:g}")
        first = state.restore()
        with progress.track("scores", steps, "steps") as advance:
            with suppress(Interrupted):
                advance(first)
            for step in range(first, steps):
                optimizer.param_groups[0]["lr"] = learning_rate(step, steps, rate, 0.0, config.warmup_steps)
                loss = _step(pair, optimizer, blocks, step)
                if stopping.stop_requested() or (step + 1) % config.save_every == 0:
                    state.save(step + 1)
                advance(1, loss=loss)
        return {name: popup.mask.cpu() for name, popup in popups.items()}


MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _State:
    """Scores and their moments between two steps, which files in `scratch` keep."""

    popups: dict[str, PopUp]
    optimizer: torch.optim.Adam
    scratch: Path | None
    run: str
    """What decides the numbers; a state of another run is refused."""

    def save(self, step: int) -> None:
        """Keep the state after so many steps, also after a stop was requested."""
        if self.scratch is None:
            return
        tensors = {}
        for name, popup in self.popups.items():
            tensors[f"scores.{name}"] = popup.scores.detach().cpu()
            tensors |= {f"{moment}.{name}": self.optimizer.state[popup.scores][moment].cpu() for moment in MOMENTS}
        with stopping.deferred():
            checkpoints.save(self.scratch, self.run, step, tensors, {}, 1)

    def restore(self) -> int:
        """Go back to the newest state; the number of its steps, 0 if there is none."""
        step = (checkpoints.newest(self.scratch, self.run) or 0) if self.scratch else 0
        if self.scratch and step:
            saved = checkpoints.load(self.scratch, step)
            for name, popup in self.popups.items():
                popup.scores.data.copy_(saved.rows(f"scores.{name}"))
                moments = {moment: saved.rows(f"{moment}.{name}").to(popup.scores.device) for moment in MOMENTS}
                self.optimizer.state[popup.scores] = {"step": torch.tensor(float(step)), **moments}
        return step


def _step(pair: ModelPair, optimizer: torch.optim.Adam, blocks: Blocks, step: int) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in step_losses(pair, blocks, step, pair.config.micro_batch_size):
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total
