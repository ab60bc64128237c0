"""The calibration pass for models larger than memory: one layer at a time, and through it all batches."""

# B batch, T token, D hidden

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.importance.activation import Activations
from minitron_cli.importance.block_importance import BlockImportance
from minitron_cli.importance.collect import OfLayers, checked_scores, of_layers, removal_lengths
from minitron_cli.importance.experts import Experts
from minitron_cli.importance.layer_removal import Cut, LayerRemoval, advance_, cuts_of
from minitron_cli.layerwise.activation_store import HiddenStates
from minitron_cli.layerwise.bypass import calling
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.observer import Observer, Part
from minitron_cli.layerwise.processes import ALONE, Processes
from minitron_cli.layerwise.resume import FILE, SavedState, under
from minitron_cli.layerwise.runner import LayerwiseRunner, Read, StoredWeights
from minitron_cli.model.family import Family
from minitron_cli.scores.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch


def collect_by_layer(
    model: "PreTrainedModel",
    family: Family,
    batches: "Sequence[Batch]",
    read: Read,
    *,
    scratch: Path,
    activation_budget: int,
    device: str | torch.device = "cpu",
    layer_removal: bool = True,
    blocks: Sequence[int] = (),
    pre_activation: bool = False,
    resume: bool = True,
    save_every_s: float = 30,
    processes: Processes = ALONE,
) -> Scores:
    """The scores of `collect`, to rounding, of a `model` whose weights are not in memory: `read` gives each by name.

    At most one layer, or the embedding, or the LM head is in memory; beside it `activation_budget` bytes of hidden
    states and what one batch needs. A killed pass goes on after the last layer it had saved, with the same bits.
    """
    if not batches:
        raise NO_SAMPLES
    lengths = removal_lengths(layer_removal, blocks)
    sizes = family.axis_sizes(model.config)
    layers = sizes["layer"]
    steps = len(batches) * (layers + 2)
    with torch.inference_mode(), progress.track("calibrate layer by layer", steps, "batches") as step:
        states = HiddenStates(scratch, activation_budget)
        passage = LayerwiseRunner(model, family, batches, StoredWeights(model, family, read, device), states, step)
        scoring = _Scoring(passage, states, lengths, pre_activation)
        saved = SavedState(scratch / FILE, save_every_s)
        seen = _restore(saved, scoring, states) if resume else []
        if seen:
            step(len(batches) * (len(seen) + 1))
        else:
            states.saved()
            passage.embed()
        for layer in range(len(seen), layers):
            seen.append(scoring.through(layer))
            if saved.is_due():
                _save(saved, seen, states)
        observers = _joined(family, sizes, seen, scoring.end())
        processes.merge(observers)
        return checked_scores(observers)


def _joined(
    family: Family, sizes: Mapping[str, int], seen: list[OfLayers], end: tuple[Activations, list[LayerRemoval]]
) -> list[Observer]:
    activations, block_importance, experts = zip(*seen, strict=True)
    last, removal = end
    return [
        Activations.joined(family, [*activations, last]),
        BlockImportance.joined(block_importance),
        Experts.joined(family, sizes, experts),
        *removal,
    ]


def _save(saved: SavedState, seen: list[OfLayers], states: HiddenStates) -> None:
    tensors = {
        f"{layer}.{observer.name}.{name}": tensor
        for layer, observers in enumerate(seen)
        for observer in observers
        for name, tensor in observer.state().items()
    }
    saved.write(tensors | {"layers": torch.tensor(len(seen)), "hidden": states.save()})
    states.saved()


def _restore(saved: SavedState, scoring: "_Scoring", states: HiddenStates) -> list[OfLayers]:
    tensors = saved.read()
    if "layers" not in tensors:
        return []
    states.restore(tensors["hidden"])
    seen = [scoring.observers(layer) for layer in range(int(tensors["layers"]))]
    for layer, observers in enumerate(seen):
        for observer in observers:
            observer.restore(under(f"{layer}.{observer.name}", tensors))
    return seen


class _Scoring:
    """What is measured on the way."""

    def __init__(
        self, passage: LayerwiseRunner, states: HiddenStates, lengths: Sequence[int], pre_activation: bool
    ) -> None:
        self._passage, self._states, self._lengths, self._pre_activation = passage, states, lengths, pre_activation
        self._model, self._family = passage.model, passage.family
        self._sizes = self._family.axis_sizes(self._model.config)
        self._cuts = cuts_of(self._sizes["layer"], lengths)

    def observers(self, layer: int) -> OfLayers:
        return of_layers(self._family, self._sizes, Part(range(layer, layer + 1), False), self._pre_activation)

    def through(self, layer: int) -> OfLayers:
        """Take every batch, and every variant of it without some layers, past one layer."""
        observers = self.observers(layer)

        def variants(b: int, call: LayerCall) -> None:
            advance_(_Variants(self._states, b, self._passage.device), self._cuts, layer, call)

        self._passage.through(layer, observers, variants)
        return observers

    def end(self) -> tuple[Activations, list[LayerRemoval]]:
        """What is seen after the last layer: the final norm's output and, through the LM head, the losses."""
        activations = Activations(self._family, self._sizes, Part(range(0), True))
        with self._passage.at_end(*([self._model.get_output_embeddings()] if self._cuts else [])):
            removal = self._removal() if self._cuts else None
            for b, tokens, hidden_BTD in self._passage.normed(activations):
                if removal:
                    variants = _Variants(self._states, b, self._passage.device)
                    removal.add(tokens, hidden_BTD, (variants.pop(cut) for cut in self._cuts))
        return activations, [removal] if removal else []

    def _removal(self) -> LayerRemoval:
        """Before it is used, the head is tried on two tokens; the embedding is not in memory, so noise stands in."""
        weight_VD = self._model.get_output_embeddings().weight
        noise_BTD = torch.randn(1, 2, weight_VD.shape[1], generator=torch.Generator().manual_seed(0)).to(weight_VD)
        with calling([self._model.get_input_embeddings()], lambda *_, **__: noise_BTD):
            return LayerRemoval(self._model, self._family, self._lengths)


class _Variants:
    """One batch's hidden states without some layers, as they are stored."""

    def __init__(self, states: HiddenStates, batch: int, device: torch.device) -> None:
        self._states, self._batch, self._device = states, batch, device

    def __setitem__(self, cut: Cut, hidden_BTD: Tensor) -> None:
        self._states.put(self._name(cut), hidden_BTD)

    def pop(self, cut: Cut) -> Tensor:
        return self._states.take(self._name(cut)).to(self._device)

    def _name(self, cut: Cut) -> str:
        return f"{self._batch}-without-{cut.start}-{cut.stop}"
