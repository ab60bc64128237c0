"""Second moments for a repair: one pass of its own, one decoder layer at a time.

They cost more than the forward pass itself and are as wide as the layer, so never more than one layer's are held: what
is to be made of them is made as soon as the layer has seen every batch. The weights may be in memory or on disk.
"""

# B batch, T token, C input channel, D hidden

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.importance.collect import NO_SAMPLES
from minitron_cli.importance.hidden_states import HiddenStates
from minitron_cli.importance.observer import Tokens
from minitron_cli.importance.passage import Passage, Weights
from minitron_cli.importance.resume import FILE, SavedState
from minitron_cli.model.family import Family
from minitron_cli.trim.repair.gram import Gram, NormMoments

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

Finish = Callable[[int, Mapping[str, Gram], Mapping[str, NormMoments]], None]
"""Told of each layer, by tensor names; of what is after the last layer as of one more."""


def second_moments(
    model: "PreTrainedModel",
    family: Family,
    batches: "Sequence[Batch]",
    weights: Weights,
    finish: Finish,
    *,
    layers: Sequence[int],
    readers: Sequence[str],
    norms: Sequence[str],
    scratch: Path,
    activation_budget: int,
    resume: bool = True,
    save_every_s: float = 30,
) -> Tensor:
    """Sum of x x^T / mean(x^2) over the inputs of all `norms`, fp64 [D, D] on the CPU; zeros where there are none.

    `readers` are the matrices whose inputs are watched, `norms` the norms, both as templates of weights; `layers` those
    that are not dropped: the others do nothing, as in the child. A killed pass goes on after the last layer it had
    saved, with the same bits; `finish` may be told of a layer twice, with the same numbers.
    """
    if not batches:
        raise NO_SAMPLES
    hidden = family.axis_sizes(model.config)["hidden"]
    moments_DD, done = torch.zeros(hidden, hidden, dtype=torch.float64), 0
    steps = len(batches) * (1 + len(layers) + bool(norms))
    with torch.inference_mode(), progress.track("second moments", steps, "batches") as step:
        states = HiddenStates(scratch, activation_budget)
        passage = Passage(model, family, batches, weights, states, step)
        saved = SavedState(scratch / FILE, save_every_s)
        if resume and "moments" in (found := saved.read()):
            moments_DD, done = found["moments"], int(found["layers"])
            states.restore(found["hidden"])
            step(len(batches) * (1 + done))
        else:
            states.saved()
            passage.embed()
        for i, layer in enumerate(layers):
            if i < done:
                continue
            watch = _Watch(_at(layer, norms), _at(layer, readers))
            passage.through(layer, [watch])
            moments_DD += watch.total(hidden)
            finish(layer, watch.grams, watch.norms)
            del watch  # before the next layer's moments are made
            if saved.is_due():
                saved.write({"moments": moments_DD, "layers": torch.tensor(i + 1), "hidden": states.save()})
                states.saved()
        if last := [norm for norm in norms if "{layer}" not in norm]:
            watch = _Watch(last, [])
            with passage.at_end():
                for _ in passage.normed(watch):
                    pass
            moments_DD += watch.total(hidden)
            finish(family.axis_sizes(model.config)["layer"], {}, watch.norms)
    return moments_DD


def _at(layer: int, templates: Sequence[str]) -> list[str]:
    return [template.format(layer=layer) for template in templates if "{layer}" in template]


class _Watch:
    """Watches the inputs of one layer's norms and matrices."""

    def __init__(self, norms: Sequence[str], readers: Sequence[str]) -> None:
        self._names = norms, readers
        self._samples = 0
        self.norms: dict[str, NormMoments] = {}
        self.grams: dict[str, Gram] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        norms, readers = self._names
        return [
            *(_before(model, name, partial(self._see_norm, name)) for name in norms),
            *(_before(model, name, partial(self._see_reader, name)) for name in readers),
        ]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._samples += len(hidden_BTD)

    def total(self, hidden: int) -> Tensor:
        """The sum over this layer's norms, on the CPU."""
        total_DD = torch.zeros(hidden, hidden, dtype=torch.float64)
        for moments in self.norms.values():
            total_DD += moments.sum_DD.cpu()
        return total_DD

    def _see_norm(self, name: str, x_BTD: Tensor) -> None:
        if name not in self.norms:
            self.norms[name] = NormMoments.empty(x_BTD.shape[-1], x_BTD.device)
        self.norms[name].add_(x_BTD)

    def _see_reader(self, name: str, inputs_BTC: Tensor) -> None:
        if name not in self.grams:
            self.grams[name] = Gram.empty(inputs_BTC.shape[-1], inputs_BTC.device)
        self.grams[name].add_(inputs_BTC, self._samples)


def _before(model: "PreTrainedModel", weight: str, see: Callable[[Tensor], None]) -> "RemovableHandle":
    def hook(_: "nn.Module", args: tuple[Tensor, ...]) -> None:
        see(args[0].detach())

    return model.get_submodule(weight.removesuffix(".weight")).register_forward_pre_hook(hook)
