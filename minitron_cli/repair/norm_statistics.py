"""Second moments of the inputs of a model's norms, in one pass of its own, one decoder layer at a time.

Moments are wider than weights (hidden^2 per norm), so those of only one layer are in memory: they are handed on as soon
as the layer has seen every batch. The weights may be in memory or on disk.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.layerwise.activation_store import ActivationStore
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
"""Called with each layer's number and its moments by norm; the final norm counts as one layer more."""


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
    """Sum of x x^T / mean(x^2) over the inputs x of all norms that have readers, fp64 [D, D] on the CPU.

    A killed pass resumes after the last layer that it saved, with the same bits; `finish` may then be called again for
    a layer, with the same moments. DataError without batches.
    """
    if not batches:
        raise NO_SAMPLES
    sizes, norms = family.axis_sizes(model.config), tuple(family.links)
    hidden, layers = sizes["hidden"], sizes["layer"]
    moments_DD, done = torch.zeros(hidden, hidden, dtype=torch.float64), 0
    steps = len(batches) * (2 + layers)
    with torch.inference_mode(), progress.track("second moments", steps, "batches") as step:
        states = ActivationStore(scratch, activation_budget)
        runner = LayerwiseRunner(model, family, batches, weights, states, step)
        saved = SavedState(scratch / FILE, save_every_s)
        if resume and "moments" in (found := saved.read()):
            moments_DD, done = found["moments"], int(found["layers"])
            states.restore(found["hidden"])
            step(len(batches) * (1 + done))
        else:
            states.saved()
            runner.embed()
        for layer in range(done, layers):
            inputs = _NormInputs([norm.format(layer=layer) for norm in norms if "{layer}" in norm])
            runner.through(layer, [inputs])
            moments_DD += inputs.total(hidden)
            finish(layer, inputs.norms)
            del inputs  # before the next layer's moments are made
            if saved.is_due():
                saved.write({"moments": moments_DD, "layers": torch.tensor(layer + 1), "hidden": states.save()})
                states.saved()
        inputs = _NormInputs([norm for norm in norms if "{layer}" not in norm])
        with runner.at_end():
            for _ in runner.normed(inputs):
                pass
        finish(layers, inputs.norms)
    return moments_DD + inputs.total(hidden)


class _NormInputs:
    """Observer that sums the moments of the inputs of one layer's norms."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.norms: dict[str, NormMoments] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        return [_before(model, name, partial(self._see, name)) for name in self._names]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Nothing to do: each norm's share was added when it ran."""

    def total(self, hidden: int) -> Tensor:
        """Sum over this layer's norms, fp64 [D, D] on the CPU."""
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
