"""Distance between what goes into a block of consecutive layers and what comes out: a small one does little.

Of a block of n layers from layer i on, with x_i the hidden state before layer i, over the tokens of the loss mask:

    1 - mean cos(x_i, x_{i+n})            LLM-Streamline (Chen et al. 2024), ReplaceMe; ShortGPT's for n = 1
    mean arccos(cos(x_i, x_{i+n})) / pi   the angular distance of Gromov et al. 2024, who take texts' last tokens

Nothing runs a second time; as many hidden states of a batch are held as the longest block has layers.
"""

# B batch, T token, D hidden, N counted token, K kind of distance, V block

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from minitron_cli.errors import DataError
from minitron_cli.importance.layer_removal import layer_blocks
from minitron_cli.layerwise.observer import Tokens, decoder_layers, layer_input, layer_output
from minitron_cli.model.family import Family

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "block_cosine": lambda cosine: 1 - cosine,
    "block_angle": lambda cosine: cosine.clamp(-1, 1).arccos() / math.pi,
}
"""Layer score -> distance from the cosine."""


class Boundaries(Protocol):
    """Hidden states of one batch before some layers, by the layer's number: a dictionary, or files."""

    def __getitem__(self, layer: int, /) -> Tensor: ...

    def __setitem__(self, layer: int, hidden_BTD: Tensor, /) -> None: ...

    def pop(self, layer: int, /) -> Tensor: ...


class BlockDistance:
    """Distances of all blocks of n layers, for each n of `lengths`, over the first `samples` samples (None: all)."""

    name = "block_distance"

    def __init__(self, layers: int, family: Family, lengths: Sequence[int], *, samples: int | None = None) -> None:
        self._layers, self._family, self._lengths, self._samples = layers, family, tuple(lengths), samples
        self.blocks = layer_blocks(layers, lengths)
        self._ends = {start: max(b.stop for b in self.blocks if b.start == start) for start, _ in self.blocks}
        self._sums_KV = torch.zeros(len(KINDS), len(self.blocks), dtype=torch.float64)
        self._tokens = self._seen = 0
        self._held: dict[int, Tensor] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        counts_BT = self.counted(tokens, self._seen)
        if not counts_BT.any():
            return []
        hook = partial(self._see, counts_BT)
        return [
            layer.register_forward_hook(partial(hook, i), with_kwargs=True)
            for i, layer in enumerate(decoder_layers(model, self._family))
        ]

    def _see(
        self, counts_BT: Tensor, i: int, _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        self.reach_(self._held, i, layer_input(args, kwargs), counts_BT)
        if i == self._layers - 1:
            self.reach_(self._held, self._layers, layer_output(output), counts_BT)

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._seen += len(tokens.input_ids_BT)
        self._held.clear()

    def counted(self, tokens: Tokens, first: int) -> Tensor:
        """Tokens of a batch that count, bool [B, T]; its first sample is number `first` of all."""
        counts_BT = tokens.loss_mask_BT
        if counts_BT is None:
            counts_BT = torch.ones_like(tokens.input_ids_BT, dtype=torch.bool)
        if self._samples is None:
            return counts_BT
        room = max(self._samples - first, 0)
        return counts_BT & (torch.arange(len(counts_BT), device=counts_BT.device) < room)[:, None]

    def reach_(self, held: Boundaries, layer: int, hidden_BTD: Tensor, counts_BT: Tensor) -> None:
        """Add the blocks that end where a batch is, and hold its hidden states for those that begin there."""
        for v, block in enumerate(self.blocks):
            if block.stop == layer:
                self._sums_KV[:, v] += _distances(held[block.start], hidden_BTD, counts_BT)
        for start, stop in self._ends.items():
            if stop == layer:
                held.pop(start)
        if layer in self._ends:
            held[layer] = hidden_BTD
        if layer == self._layers:
            self._tokens += int(counts_BT.sum())

    def state(self) -> dict[str, Tensor]:
        return {"sums": self._sums_KV.clone(), "tokens": torch.tensor(self._tokens), "seen": torch.tensor(self._seen)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._sums_KV = state["sums"].clone()
        self._tokens, self._seen = int(state["tokens"]), int(state["seen"])

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._sums_KV = self._sums_KV + state["sums"]
        self._tokens += int(state["tokens"])

    def scores(self) -> dict[str, Tensor]:
        """`layer.block_cosine=n` and `layer.block_angle=n`: entry i is of layers i to i + n - 1."""
        if not self._tokens:
            raise DataError("no token of the samples is scored: raise importance.removal_samples")
        means_KV = (self._sums_KV / self._tokens).float()
        counts = [self._layers - n + 1 for n in self._lengths]
        return {
            f"layer.{kind}={n}": mean_V
            for kind, values_V in zip(KINDS, means_KV, strict=True)
            for n, mean_V in zip(self._lengths, values_V.split(counts), strict=True)
        }


def _distances(before_BTD: Tensor, after_BTD: Tensor, counts_BT: Tensor) -> Tensor:
    """Sum over the counted tokens of each kind of distance, fp64 [K]."""
    before_ND, after_ND = before_BTD[counts_BT].float(), after_BTD[counts_BT].float()
    cosine_N = cosine_similarity(before_ND, after_ND, dim=-1)
    return torch.stack([kind(cosine_N).sum(dtype=torch.float64) for kind in KINDS.values()]).cpu()
