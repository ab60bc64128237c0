"""Second moments of what the norms of a model see: one pass of its own, one decoder layer at a time.

Never more than one layer's are held: what is to be made of them is made as soon as the layer has seen every batch. The
weights may be in memory or on disk.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.layerwise.activation_store import HiddenStates
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.observer import Tokens
from minitron_cli.layerwise.resume import FILE, SavedState
from minitron_cli.layerwise.runner import LayerwiseRunner, Weights
from minitron_cli.model.family import Family
from minitron_cli.repair.gram import NormMoments

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

Finish = Callable[[int, Mapping[str, NormMoments]], None]
"""Told of each layer, by names of norms; of what is after the last layer as of one more."""


def second_moments(
    model: "PreTrainedModel",
    family: Family,
    batches: "Sequence[Batch]",
    weights: Weights,
    finish: Finish,
    *,
    scratch: Path,
    activation_budget: int,
    resume: bool = True,
    save_every_s: float = 30,
) -> Tensor:
    """Sum of x x^T / mean(x^2) over the inputs of all norms that have readers, fp64 [D, D] on the CPU.

    A killed pass goes on after the last layer it had saved, with the same bits; `finish` may be told of a layer twice,
    with the same numbers.
    """
    if not batches:
        raise NO_SAMPLES
    sizes, norms = family.axis_sizes(model.config), tuple(family.links)
    hidden, layers = sizes["hidden"], sizes["layer"]
    moments_DD, done = torch.zeros(hidden, hidden, dtype=torch.float64), 0
    steps = len(batches) * (2 + layers)
    with torch.inference_mode(), progress.track("second moments", steps, "batches") as step:
        states = HiddenStates(scratch, activation_budget)
        passage = LayerwiseRunner(model, family, batches, weights, states, step)
        saved = SavedState(scratch / FILE, save_every_s)
        if resume and "moments" in (found := saved.read()):
            moments_DD, done = found["moments"], int(found["layers"])
            states.restore(found["hidden"])
            step(len(batches) * (1 + done))
        else:
            states.saved()
            passage.embed()
        for layer in range(done, layers):
            watch = _Watch([norm.format(layer=layer) for norm in norms if "{layer}" in norm])
            passage.through(layer, [watch])
            moments_DD += watch.total(hidden)
            finish(layer, watch.norms)
            del watch  # before the next layer's moments are made
            if saved.is_due():
                saved.write({"moments": moments_DD, "layers": torch.tensor(layer + 1), "hidden": states.save()})
                states.saved()
        watch = _Watch([norm for norm in norms if "{layer}" not in norm])
        with passage.at_end():
            for _ in passage.normed(watch):
                pass
        finish(layers, watch.norms)
    return moments_DD + watch.total(hidden)


class _Watch:
    """Watches the inputs of one layer's norms."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.norms: dict[str, NormMoments] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        return [_before(model, name, partial(self._see, name)) for name in self._names]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Each norm's share was added when it ran."""

    def total(self, hidden: int) -> Tensor:
        """The sum over this layer's norms, on the CPU."""
        total_DD = torch.zeros(hidden, hidden, dtype=torch.float64)
        for moments in self.norms.values():
            total_DD += moments.sum_DD.cpu()
        return total_DD

    def _see(self, name: str, x_BTD: Tensor) -> None:
        if name not in self.norms:
            self.norms[name] = NormMoments.empty(x_BTD.shape[-1], x_BTD.device)
        self.norms[name].add_(x_BTD)


def _before(model: "PreTrainedModel", weight: str, see: Callable[[Tensor], None]) -> "RemovableHandle":
    def hook(_: "nn.Module", args: tuple[Tensor, ...]) -> None:
        see(args[0].detach())

    return model.get_submodule(weight.removesuffix(".weight")).register_forward_pre_hook(hook)
