"""The calibration pass for models larger than memory: one layer at a time, with all batches."""

# B batch, T token, D hidden

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.importance.block_distance import BlockDistance
from minitron_cli.importance.collect import checked_scores
from minitron_cli.importance.layer_removal import LayerBlock, LayerRemoval, advance_, layer_blocks
from minitron_cli.importance.observers import final_norm_observers, join_parts, layer_observers
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.bypass import replaced_forward
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.layer_loop import run_layers
from minitron_cli.layerwise.observer import LayerObserver, Observer, Part, Tokens
from minitron_cli.layerwise.resume import under
from minitron_cli.layerwise.runner import LayerwiseRunner, Weights
from minitron_cli.model.family import Family
from minitron_cli.scores.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch


def collect_by_layer(
    model: "PreTrainedModel",
    family: Family,
    weights: Weights,
    calibration: Calibration,
    options: ObserverOptions,
) -> Scores:
    """Scores of `collect`, up to rounding, for a `model` whose weights are not in memory.

    At most one layer, or the embedding, or the LM head is in memory, with the calibration's budget of hidden states
    and the activations of one batch. A killed pass resumes after the last saved layer, with bit-identical scores.
    """
    batches, scratch, saved = list(calibration.batches), calibration.scratch, calibration.saved_state()
    assert scratch is not None, "hidden states beyond the budget wait in the scratch directory"
    assert saved is not None
    if not batches:
        raise NO_SAMPLES
    layers = family.axis_sizes(model.config)["layer"]
    steps = len(batches) * (layers + 2)  # the embedding and the final norm beside the layers
    with torch.inference_mode(), progress.track("calibrate layer by layer", steps, "batches") as step:
        states = ActivationStore(scratch, calibration.activation_budget)
        runner = LayerwiseRunner(model, family, batches, weights, states, step)
        share = calibration.processes.share(options.removal_samples)
        scoring = _LayerScoring(runner, states, options, share, batches)
        run_layers(scoring, {"hidden": states}, saved, layers, resume=calibration.resume)
        observers = scoring.end()
        calibration.processes.merge(observers)
        return checked_scores(observers)


def _batches_of(samples: int | None, batches: "Sequence[Batch]") -> int:
    """Number of batches that hold the first `samples` samples (None: all)."""
    starts = accumulate((len(batch.input_ids_BT) for batch in batches[:-1]), initial=0)
    return sum(samples is None or start < samples for start in starts)


class _LayerScoring:
    """Measurements layer by layer."""

    def __init__(
        self,
        runner: LayerwiseRunner,
        states: ActivationStore,
        options: ObserverOptions,
        removal_samples: int | None,
        batches: "Sequence[Batch]",
    ) -> None:
        self._runner, self._states, self._options = runner, states, options
        self._removal_samples = removal_samples  # the first ones, which these batches hold
        self._removal_batches = _batches_of(removal_samples, batches)
        self._model, self._family = runner.model, runner.family
        self._sizes = self._family.axis_sizes(self._model.config)
        self._removed = layer_blocks(self._sizes["layer"], options.removal_lengths)
        self._by_layer: list[list[LayerObserver]] = []  # observers of every finished layer
        lengths, layers = options.distance_lengths, self._sizes["layer"]
        self._distance = BlockDistance(layers, self._family, lengths, samples=removal_samples) if lengths else None
        self._ends = _Ends(self._distance, batches[: self._removal_batches], states, runner.device)

    def begin(self) -> None:
        """Embed every batch."""
        self._runner.embed()

    def state(self) -> dict[str, Tensor]:
        """State of the observers of every finished layer, and of blocks of them."""
        blocks = {
            f"{BlockDistance.name}.{key}": t for key, t in (self._distance.state() if self._distance else {}).items()
        }
        return blocks | {
            f"{layer}.{observer.name}.{name}": tensor
            for layer, observers in enumerate(self._by_layer)
            for observer in observers
            for name, tensor in observer.state().items()
        }

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        """Restore the observers of the first `layers` layers."""
        self._runner.skip(layers)
        if self._distance:
            self._distance.restore(under(BlockDistance.name, state))
        self._by_layer = [self._observers(layer) for layer in range(layers)]
        for layer, observers in enumerate(self._by_layer):
            for observer in observers:
                observer.restore(under(f"{layer}.{observer.name}", state))

    def _observers(self, layer: int) -> list[LayerObserver]:
        return layer_observers(self._family, self._sizes, Part(range(layer, layer + 1), False), self._options)

    def advance(self, layer: int) -> None:
        """Run every batch, and its variants without removed blocks, through one layer."""
        observers = self._observers(layer)

        def variants(b: int, call: LayerCall) -> None:
            if b < self._removal_batches:
                advance_(_Variants(self._states, b, self._runner.device), self._removed, layer, call)
                self._ends.reach(b, layer, call.hidden_BTD)

        self._runner.through(layer, observers, variants)
        if layer == self._sizes["layer"] - 1:
            self._ends.reach_last(layer + 1)
        self._by_layer.append(observers)

    def end(self) -> list[Observer]:
        """Observers of the whole model, after the final norm and, for the losses without layers, the LM head ran."""
        final = final_norm_observers(self._family, self._sizes, self._options)
        with self._runner.at_end(*([self._model.get_output_embeddings()] if self._removed else [])):
            removal = self._removal() if self._removed else None
            for b, tokens, hidden_BTD in self._runner.normed(*final):
                if removal and b < self._removal_batches:
                    variants = _Variants(self._states, b, self._runner.device)
                    removal.add(tokens, hidden_BTD, (variants.pop(block) for block in self._removed))
        observers: list[Observer] = [*join_parts(self._family, self._sizes, self._by_layer, final)]
        return [*observers, *(found for found in (self._distance, removal) if found)]

    def _removal(self) -> LayerRemoval:
        """Layer removal, whose first step tries the head on two tokens.

        Noise replaces their embedding, which is not in memory.
        """
        weight_VD = self._model.get_output_embeddings().weight
        noise_BTD = torch.randn(1, 2, weight_VD.shape[1], generator=torch.Generator().manual_seed(0)).to(weight_VD)
        with replaced_forward([self._model.get_input_embeddings()], lambda *_, **__: noise_BTD):
            return LayerRemoval(
                self._model,
                self._family,
                self._options.removal_lengths,
                samples=self._removal_samples,
                positions=self._options.removal_positions,
            )


class _Ends:
    """Takes batches past the ends of blocks of layers, whose hidden states are stored until the blocks end."""

    def __init__(
        self, distance: BlockDistance | None, batches: "Sequence[Batch]", states: ActivationStore, device: torch.device
    ) -> None:
        self._distance, self._batches, self._states, self._device = distance, batches, states, device
        self._firsts = [0, *accumulate(len(batch.input_ids_BT) for batch in batches)]  # number of the first sample

    def reach(self, b: int, layer: int, hidden_BTD: Tensor) -> None:
        """Add a batch that is in front of a layer to the blocks that end there."""
        if self._distance:
            counts_BT = self._distance.counted(Tokens.of(self._batches[b], self._device), self._firsts[b])
            self._distance.reach_(_Boundaries(self._states, b, self._device), layer, hidden_BTD, counts_BT)

    def reach_last(self, layers: int) -> None:
        """Add all batches, which are behind the last layer."""
        for b in range(len(self._batches) if self._distance else 0):
            self.reach(b, layers, self._states.look_at(f"{b}").to(self._device))


class _Boundaries:
    """Stored hidden states of one batch in front of some layers."""

    def __init__(self, states: ActivationStore, batch: int, device: torch.device) -> None:
        self._states, self._batch, self._device = states, batch, device

    def __setitem__(self, layer: int, hidden_BTD: Tensor) -> None:
        self._states.put(self._name(layer), hidden_BTD)

    def __getitem__(self, layer: int) -> Tensor:
        return self._states.look_at(self._name(layer)).to(self._device)

    def pop(self, layer: int) -> Tensor:
        return self._states.take(self._name(layer))

    def _name(self, layer: int) -> str:
        return f"{self._batch}-before-{layer}"


class _Variants:
    """Stored hidden states of one batch without each block of layers."""

    def __init__(self, states: ActivationStore, batch: int, device: torch.device) -> None:
        self._states, self._batch, self._device = states, batch, device

    def __setitem__(self, block: LayerBlock, hidden_BTD: Tensor) -> None:
        self._states.put(self._name(block), hidden_BTD)

    def pop(self, block: LayerBlock) -> Tensor:
        return self._states.take(self._name(block)).to(self._device)

    def _name(self, block: LayerBlock) -> str:
        return f"{self._batch}-without-{block.start}-{block.stop}"
