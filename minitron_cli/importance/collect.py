"""One pass over a calibration set. Knows what runs; what is measured is in the observers.

Only the decoder runs: no logits where none are needed.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minitron_cli import progress
from minitron_cli.errors import CheckpointError, DataError
from minitron_cli.importance.activation import Activations
from minitron_cli.importance.block_importance import BlockImportance
from minitron_cli.importance.observer import Observer, Tokens
from minitron_cli.importance.perplexity import LayerRemoval
from minitron_cli.importance.resume import SavedState
from minitron_cli.model.family import Family
from minitron_cli.trim.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch


def collect(
    model: "PreTrainedModel",
    family: Family,
    batches: "Iterable[Batch]",
    *,
    layer_removal: bool = True,
    samples: int | None = None,
    scratch: Path | None = None,
    resume: bool = True,
    save_every_s: float = 30,
) -> Scores:
    """Scores of every head, neuron, hidden channel and layer.

    `samples` is for the progress bar. With a `scratch` directory the pass can be killed and, given the same batches
    again, goes on where it was; the scores are the same bits.
    """
    assert not model.training, "dropout would make the scores random"
    with torch.inference_mode(), progress.track("calibrate", total=samples, unit="samples") as step:
        observers = _observers(model, family, layer_removal)
        saved = SavedState(scratch, save_every_s) if scratch else None
        done = saved.restore(observers) if saved and resume else 0
        count = 0
        for count, batch in enumerate(batches, start=1):
            if count > done:
                _observe(model, observers, batch)
                if saved:
                    saved.save_if_due(observers, count)
            step(len(batch.input_ids_BT))
    if not count:
        raise DataError("the calibration set is empty: give at least one block of text")
    return _scores(observers)


def _observers(model: "PreTrainedModel", family: Family, layer_removal: bool) -> list[Observer]:
    sizes = family.axis_sizes(model.config)
    observers: list[Observer] = [Activations(family, sizes), BlockImportance(family, sizes["layer"])]
    return [*observers, LayerRemoval(model, family, sizes["layer"])] if layer_removal else observers


def _observe(model: "PreTrainedModel", observers: Sequence[Observer], batch: "Batch") -> None:
    tokens = Tokens(batch.input_ids_BT.to(model.device), batch.position_ids_BT.to(model.device))
    with ExitStack() as hooks:
        for observer in observers:
            for handle in observer.watch(model):
                hooks.callback(handle.remove)
        decoder = model.get_decoder()
        output = decoder(input_ids=tokens.input_ids_BT, position_ids=tokens.position_ids_BT, use_cache=False)
    for observer in observers:
        observer.end_batch(tokens, output.last_hidden_state)
    if not output.last_hidden_state.isfinite().all():  # say so now, not after the last batch
        _scores(observers)


def _scores(observers: Iterable[Observer]) -> Scores:
    """What the observers found. CheckpointError names the first layer where it is not a number."""
    tensors = {name: tensor for observer in observers for name, tensor in observer.scores().items()}
    cause = "the weights are damaged, or too large for their dtype: check the checkpoint, or calibrate in float32"
    damaged = (~tensors["layer.block_importance"].isfinite()).nonzero()
    if len(damaged):
        raise CheckpointError(f"activations are not finite from decoder layer {int(damaged[0])} on; {cause}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"scores {name!r} are not finite although every decoder layer's output is; {cause}")
    return Scores.from_tensors(tensors)
