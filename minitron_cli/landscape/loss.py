"""Loss of a model on fixed blocks of text, and its gradient. The blocks do not change between two calls."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.data.batches import Batch, Batches, evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import Targets, targets

BATCH = 8  # blocks side by side


class FixedLoss:
    """Mean loss of an fp32 model over the scored tokens of evenly spaced blocks, in nats per token."""

    def __init__(self, model: Any, blocks: Blocks, count: int, device: str) -> None:
        group = ProcessGroup(device, alone=True)
        self._pair = ModelPair(model, None, DistillConfig(losses=(CrossEntropy(),)), (), group, "fp32")
        ids = evenly_spaced(len(blocks), count)
        self._batches = [(part, targets(part)) for part in Batches(blocks, ids, BATCH)]

    @cached_property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(len(target.labels_N) for _, target in self._batches)

    def __call__(self) -> float:
        """Loss of the weights as they are now; infinity where it is not a number."""
        total = 0.0
        for part, target in self._batches:
            stopping.raise_if_stopped()
            total += float(self._pair.evaluate(part, target)[0])
        return total / self.tokens if math.isfinite(total) else math.inf

    def gradient(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradient of the loss by the named weights."""
        return self._gradient(self._batches, weights)

    def squared_gradients(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the batches of the squared gradient of each one's loss."""
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for one in self._batches:
            for name, gradient in self._gradient([one], weights).items():
                total[name] += gradient.square() / len(self._batches)
        return total

    def _gradient(self, batches: list[tuple[Batch, Targets]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = sum(len(target.labels_N) for _, target in batches)
        model = self._pair.student
        model.zero_grad(set_to_none=True)
        for part, target in batches:
            stopping.raise_if_stopped()
            self._pair.losses(part, target, count, 0.0).total.backward()
        found = {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in weights.items()}
        model.zero_grad(set_to_none=True)
        return found
