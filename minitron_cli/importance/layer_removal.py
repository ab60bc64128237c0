"""Perplexity without each layer, and without each block of layers, from the hidden states of the running pass.

Removing layers i to j - 1 changes nothing before them, so layer i's input goes straight into layer j and only the
layers after the block run again: half the work of whole forward passes, and no logits are held.
"""

# B batch, T token, D hidden, L layer, N scored token

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minitron_cli.data.batches import is_predicted
from minitron_cli.errors import DataError, InputError
from minitron_cli.evaluate.statistics import LOG_MAX
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.observer import Tokens, decoder_layers, final_norm
from minitron_cli.model.family import Family
from minitron_cli.model.lm_head import head_of, token_nll

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


class LayerBlock(NamedTuple):
    """Contiguous layers that are removed together: start, ..., stop - 1."""

    start: int
    stop: int


def layer_blocks(layers: int, lengths: Sequence[int]) -> list[LayerBlock]:
    """Every contiguous block of n layers, for each n in `lengths`. InputError if a block would leave no layer."""
    if too_long := [n for n in lengths if not 0 < n < layers]:
        raise InputError(f"a block of {too_long[0]} layers cannot be removed from {layers}: choose 1 to {layers - 1}")
    return [LayerBlock(i, i + n) for n in lengths for i in range(layers - n + 1)]


class Variants(Protocol):
    """Storage of the hidden states without each block: a dictionary, or files."""

    def __setitem__(self, block: LayerBlock, hidden_BTD: Tensor, /) -> None: ...

    def pop(self, block: LayerBlock, /) -> Tensor: ...


def advance_(variants: Variants, blocks_removed: Iterable[LayerBlock], layer: int, call: LayerCall) -> None:
    """Run every variant of the model through one layer. Variants whose block starts here keep the layer's input."""
    for block in blocks_removed:
        if block.start == layer:
            variants[block] = call.hidden_BTD
        elif block.stop <= layer:
            variants[block] = call.again(variants.pop(block))


class LayerRemoval:
    """Change in perplexity when single layers or blocks are removed (Muralidharan et al. 2024, sec. 2.2).

    The loss is taken over every token of the loss mask that has a predecessor in its own document.
    """

    name = "layer_removal"

    def __init__(self, model: "PreTrainedModel", family: Family, lengths: Sequence[int] = (1,)) -> None:
        self._family = family
        self._lengths = tuple(lengths)
        self.blocks_removed = layer_blocks(family.axis_sizes(model.config)["layer"], lengths)
        self._final_norm = model.get_submodule(final_norm(family))
        self._head = head_of(model)
        self._calls: list[LayerCall] = []
        self._nll_sum = torch.zeros(len(self.blocks_removed) + 1, dtype=torch.float64)  # per block; whole model last
        self._tokens = 0

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        def see(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.append(LayerCall.seen(layer, args, kwargs))

        return [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in decoder_layers(model, self._family)]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        variants: dict[LayerBlock, Tensor] = {}
        for layer in range(len(self._calls)):
            advance_(variants, self.blocks_removed, layer, self._calls.pop(0))
        self.add(tokens, hidden_BTD, (variants.pop(block) for block in self.blocks_removed))

    def add(self, tokens: Tokens, hidden_BTD: Tensor, variants: Iterable[Tensor]) -> None:
        """Accumulate one batch: the head's input of the whole model, and the last layer's output without each block."""
        counts = is_predicted(tokens.position_ids_BT, tokens.loss_mask_BT)
        ends = [self._nll(tokens, counts, self._final_norm(variant_BTD)) for variant_BTD in variants]
        self._nll_sum = self._nll_sum + torch.stack([*ends, self._nll(tokens, counts, hidden_BTD)]).cpu()
        self._tokens += int(counts.sum())

    def _nll(self, tokens: Tokens, counts: Tensor, hidden_BTD: Tensor) -> Tensor:
        labels_N, hidden_ND = tokens.input_ids_BT[:, 1:][counts], hidden_BTD[:, :-1][counts]
        head = self._head
        nll_N = token_nll(hidden_ND, head.weight_VD, labels_N, head.bias_V, head.softcap, head.scale)
        return nll_N.sum(dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        return {"nll_sum": self._nll_sum, "tokens": torch.tensor(self._tokens)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._nll_sum, self._tokens = state["nll_sum"], int(state["tokens"])

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._nll_sum = self._nll_sum + state["nll_sum"]
        self._tokens += int(state["tokens"])

    def scores(self) -> dict[str, Tensor]:
        """Increase of perplexity and loss without each layer: `layer.perplexity`, and `layer.nll` in nats per token.

        For blocks of n layers `block_perplexity=n` and `block_nll=n`: entry i is without layers i to i + n - 1.
        """
        if not self._tokens:
            raise DataError("no calibration token has a predecessor in its document: use longer texts or blocks")
        nll = self._nll_sum / self._tokens
        parent = nll[-1]
        found = {}
        by_length = nll[:-1].split([sum(c.stop - c.start == n for c in self.blocks_removed) for n in self._lengths])
        for n, without in zip(self._lengths, by_length, strict=True):
            prefix, suffix = ("layer.", "") if n == 1 else ("layer.block_", f"={n}")
            found[f"{prefix}perplexity{suffix}"] = _perplexity(without) - _perplexity(parent)
            found[f"{prefix}nll{suffix}"] = without
        return found | {"parent.nll": parent}


def _perplexity(nll: Tensor) -> Tensor:
    return nll.clamp(max=LOG_MAX).exp()
