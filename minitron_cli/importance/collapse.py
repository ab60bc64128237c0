"""Order in which layers are merged into those before them, as LaCo does (Yang et al. 2024).

LaCo goes from the top down and merges wherever the last hidden states stay more similar to the parent's than a
threshold; how many layers are left follows. Here the number is given later, so the merge that keeps them most similar
comes first, then the one that does so beside it, until no layers are left to merge.
"""

# B batch, T token, D hidden, L layer

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from minitron_cli import progress
from minitron_cli.artifacts.build import Remember
from minitron_cli.decoder import decoder_of
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.layerwise.observer import Tokens, decoder_layers
from minitron_cli.model.family import Family
from minitron_cli.repair.merge import merged

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

SAMPLES = 8
"""Samples on which hidden states are compared; the paper takes ten sentences."""


@torch.inference_mode()
def collapse_order(
    model: "PreTrainedModel", family: Family, batches: "Sequence[Batch]", following: int, remember: Remember
) -> Tensor:
    """Score of every layer, [L]: 1 for the layer that is merged first into the one before it, 2 for the next, ...

    Each merge takes as many layers as `following` says; layers that are never merged share the highest score. The model
    is left as it was.
    """
    layers, chosen = decoder_layers(model, family), list[range]()
    trials = _Trials(model, layers, batches)
    with progress.track("merge layers", total=len(layers) // (following + 1), unit="merges") as step:
        while free := free_runs(len(layers), following, chosen):
            found = remember(f"merge-{len(chosen)}", partial(trials.best, chosen, free))
            chosen.append(range(found["first"], found["first"] + following + 1))
            step(1, similarity=found["similarity"])
    order = [layer for run in chosen for layer in run[1:]]
    scores_L = torch.full((len(layers),), float(len(order) + 1))
    scores_L[order] = torch.arange(1.0, len(order) + 1)
    return scores_L


def free_runs(layers: int, following: int, taken: Sequence[range]) -> list[range]:
    """Every run of a layer and those that follow it, of layers that are in no other run."""
    used = {layer for run in taken for layer in run}
    every = (range(first, first + following + 1) for first in range(layers - following))
    return [run for run in every if used.isdisjoint(run)]


class _Trials:
    """Similarity of the last hidden states of a model with merged layers to its own."""

    def __init__(self, model: "PreTrainedModel", layers: "Sequence[nn.Module]", batches: "Sequence[Batch]") -> None:
        self._decoder, self._layers = decoder_of(model), layers
        self._tokens = [Tokens.of(batch, model.device) for batch in batches]
        self._wanted = [self._hidden(tokens) for tokens in self._tokens]

    def best(self, chosen: Sequence[range], free: Sequence[range]) -> dict[str, Any]:
        """First layer of the run that keeps the highest similarity when it is merged as well; of equals the upper."""
        found = {run.start: self._similarity([*chosen, run]) for run in reversed(free)}
        first = max(found, key=lambda start: found[start])
        return {"first": first, "similarity": found[first]}

    def _similarity(self, runs: Sequence[range]) -> float:
        """Mean cosine over all tokens."""
        with _merged_in_place(self._layers, runs):
            pairs = zip(map(self._hidden, self._tokens), self._wanted, strict=True)
            return float(torch.cat([cosine_similarity(a, b, dim=-1).flatten() for a, b in pairs]).mean())

    def _hidden(self, tokens: Tokens) -> Tensor:
        output = self._decoder(input_ids=tokens.input_ids_BT, position_ids=tokens.position_ids_BT, use_cache=False)
        return output.last_hidden_state.float()


@contextmanager
def _merged_in_place(layers: "Sequence[nn.Module]", runs: Sequence[range]) -> Iterator[None]:
    """Context in which the first layer of each run has the sum of its differences and the others are bypassed.

    A layer of another kind takes part with the tensors that both have.
    """
    with ExitStack() as undo:
        undo.enter_context(bypassed(layers[i] for run in runs for i in run[1:]))
        for run in runs:
            others = [dict(layers[i].named_parameters()) for i in run[1:]]
            for name, parameter in layers[run[0]].named_parameters():
                undo.callback(parameter.data.copy_, parameter.data.clone())
                parameter.data.copy_(merged(parameter.data, [found[name].data for found in others if name in found]))
        yield
