"""Training of gates on text to a target shape, with the model's weights frozen.

Sheared LLaMA trains weights and gates together and goes on from what it has. Here the weights stay: the result is a
ranking of the parent's entries like any other, which can be repaired and distilled afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.step_loss import step_loss
from minitron_cli.importance.learned_masks import LearnedMasks
from minitron_cli.layerwise.resume import SavedState, under
from minitron_cli.learned.gated_model import gated
from minitron_cli.learned.gates import Gates, scores, targets
from minitron_cli.learned.lagrangian import Lagrangian, gaps
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "learned.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state of a parameter


def learned_scores(
    model: "PreTrainedModel", parent: Shape, config: LearnedMasks, blocks: Blocks, saved: SavedState, *, resume: bool
) -> dict[str, Tensor]:
    """E[z] of every gated entry, as scores. Weights become fp32 and lose their gradients.

    A killed training resumes from `saved` with bit-identical results. InputError if an axis of the shape has no gates.
    """
    gates = Gates(targets(parent, parent.resize(**config.shape)), model.device)
    training = DistillConfig(
        tokens=config.tokens, batch_size=config.batch_size, losses=(CrossEntropy(),), seed=config.seed
    )
    pair = ModelPair(
        model.requires_grad_(False), None, training, (), ProcessGroup(str(model.device), alone=True), "fp32"
    )
    gate_training = GateTraining(gates, config, training.total_steps(blocks.sequence_length))
    with gated(model, parent.family, gates):
        gate_training.run(pair, blocks, saved, resume=resume)
    return {name: score.cpu() for name, score in scores(gates.means(), parent).items()}


@dataclass
class GateTraining:
    """Gates, their multipliers and how both are trained."""

    gates: Gates
    config: LearnedMasks
    steps: int
    lagrangian: Lagrangian = field(init=False)
    done: int = 0
    """Steps that were taken."""

    def __post_init__(self) -> None:
        self.lagrangian = Lagrangian(self.gates)
        self._optimizer = torch.optim.Adam(self.gates.parameters(), lr=self.config.rate)

    def run(self, pair: ModelPair, blocks: Blocks, saved: SavedState, *, resume: bool) -> None:
        """Take all steps that were not taken."""
        if resume and (state := saved.read()):
            self.restore(state)
        with progress.track("learn masks", self.steps, "steps") as advance:
            advance(self.done)
            while self.done < self.steps:
                figures = self.step(lambda step: step_loss(pair, blocks, step))
                if saved.is_due():
                    saved.write(self.state())
                advance(1, **figures)

    def step(self, loss_of: Callable[[int], Tensor]) -> dict[str, float]:
        """Take one step; its loss, and how far the row is from its target that is farthest."""
        draw = torch.Generator().manual_seed(self.config.seed * (1 << 32) + self.done)
        self._optimizer.zero_grad(set_to_none=True)
        self.lagrangian.zero_grad(set_to_none=True)
        self.gates.sample_(draw)
        loss = loss_of(self.done)
        (loss + self.lagrangian(self.gates, self._progress)).backward()
        self._optimizer.step()
        self.gates.clamp_()
        self.lagrangian.ascend_(self.config.multiplier_rate)
        self.done += 1
        farthest = max(float(gap.detach().abs().max()) for gap in gaps(self.gates).values())
        return {"loss": float(loss.detach()), "gap": farthest}

    @property
    def _progress(self) -> float:
        """Share of the way that the targets have come."""
        return min(1.0, (self.done + 1) / max(1.0, self.config.warmup * self.steps))

    def state(self) -> dict[str, Tensor]:
        """All that later steps depend on, by name."""
        modules = {"gates": self.gates, "multipliers": self.lagrangian}
        found = {f"{key}.{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
        for name, parameter in self.gates.named_parameters():
            found |= {f"moments.{name}.{key}": self._optimizer.state[parameter][key] for key in MOMENTS}
        return found | {"done": torch.tensor(self.done)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.done = int(state["done"])
        self.gates.load_state_dict(under("gates", state))
        self.lagrangian.load_state_dict(under("multipliers", state))
        for name, parameter in self.gates.named_parameters():
            found = under(f"moments.{name}", state)
            self._optimizer.state[parameter] = {
                key: found[key].to("cpu" if key == "step" else parameter.device) for key in MOMENTS
            }
