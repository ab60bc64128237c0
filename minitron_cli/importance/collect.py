"""One pass over a calibration set with the whole model in memory. Observers decide what is measured.

Only the decoder runs: logits are computed only where an observer needs them.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from minitron_cli import progress
from minitron_cli.decoder import decoder_of
from minitron_cli.errors import CheckpointError, Interrupted
from minitron_cli.importance.block_distance import BlockDistance
from minitron_cli.importance.layer_removal import LayerRemoval
from minitron_cli.importance.observers import layer_observers
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.calibration_errors import DAMAGE, NO_SAMPLES, not_finite_from
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import Observer, Part, Tokens
from minitron_cli.layerwise.resume import SavedState
from minitron_cli.model.family import Family
from minitron_cli.scores.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch


def collect(model: "PreTrainedModel", family: Family, calibration: Calibration, options: ObserverOptions) -> Scores:
    """Scores of every head, neuron, expert, hidden channel and layer, over the samples of all processes.

    With a scratch directory a killed pass resumes, with bit-identical scores, if it is given the same batches again.
    DataError without a sample; CheckpointError if activations are not finite.
    """
    assert not model.training, "dropout would make the scores random"
    with torch.inference_mode(), progress.track("calibrate", total=calibration.samples, unit="samples") as step:
        observers = _observers(model, family, options, calibration.processes.share(options.removal_samples))
        saved = calibration.saved_state()
        done = saved.restore(observers) if saved and calibration.resume else 0
        count = 0
        for count, batch in enumerate(calibration.batches, start=1):
            if count > done:
                _observe_or_undo(model, observers, batch, saved, count)
                if saved:
                    saved.save_if_due(observers, count)
            step(len(batch.input_ids_BT))
    if not count:
        raise NO_SAMPLES
    calibration.processes.merge(observers)
    return checked_scores(observers)


def _observers(
    model: "PreTrainedModel", family: Family, options: ObserverOptions, removal_samples: int | None
) -> list[Observer]:
    sizes = family.axis_sizes(model.config)
    whole = Part(range(sizes["layer"]), True)
    observers: list[Observer] = [*layer_observers(family, sizes, whole, options)]
    if lengths := options.distance_lengths:
        observers.append(BlockDistance(sizes["layer"], family, lengths, samples=removal_samples))
    if lengths := options.removal_lengths:
        positions = options.removal_positions
        observers.append(LayerRemoval(model, family, lengths, samples=removal_samples, positions=positions))
    return observers


def _observe_or_undo(
    model: "PreTrainedModel", observers: Sequence[Observer], batch: "Batch", saved: SavedState | None, count: int
) -> None:
    """Observe batch number `count`. If a stop was requested in the midst of it, the state before it is saved."""
    before = [observer.state() for observer in observers]
    try:
        observe(model, observers, batch)
    except Interrupted:
        for observer, state in zip(observers, before, strict=True):
            observer.restore(state)
        if saved:
            saved.save_if_due(observers, count - 1)
        raise


def observe(model: "PreTrainedModel", observers: Sequence[Observer], batch: "Batch") -> None:
    """Run one batch through the decoder under observers. CheckpointError if the activations are not finite."""
    tokens = Tokens.of(batch, model.device)
    with ExitStack() as hooks:
        for observer in observers:
            for handle in observer.watch(model, tokens):
                hooks.callback(handle.remove)
        decoder = decoder_of(model)
        output = decoder(input_ids=tokens.input_ids_BT, position_ids=tokens.position_ids_BT, use_cache=False)
    for observer in observers:
        observer.end_batch(tokens, output.last_hidden_state)
    if not output.last_hidden_state.isfinite().all():  # fail now, not after the last batch
        checked_scores(observers)


def checked_scores(observers: Iterable[Observer]) -> Scores:
    """Scores of all observers. CheckpointError names the first layer whose output is not finite."""
    tensors = {name: tensor for observer in observers for name, tensor in observer.scores().items()}
    damaged = (~tensors["layer.block_importance"].isfinite()).nonzero()
    if len(damaged):
        raise not_finite_from(int(damaged[0]))
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"scores {name!r} are not finite although every decoder layer's output is; {DAMAGE}")
    return Scores.from_tensors(tensors)
