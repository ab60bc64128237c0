"""Perplexity without each layer, and without each block of layers, from the hidden states of the running pass.

Removing layers i to j - 1 changes nothing before them, so layer i's input goes straight into layer j and only the
layers after the block run again: half the work of whole forward passes, and no logits are held.
"""

# B batch, T token, D hidden, N scored token, S sample, V variant of the model

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
from minitron_cli.model.lm_head import head_of

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

    The loss is taken over tokens of the loss mask that have a predecessor in their own document: of the first `samples`
    samples (None: all), `positions` in each (None: all), evenly spaced and the same for every removal, so that the
    noise of the text is in both losses of a difference.
    """

    name = "layer_removal"

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        lengths: Sequence[int] = (1,),
        *,
        samples: int | None = None,
        positions: int | None = None,
    ) -> None:
        self._family = family
        self._lengths = tuple(lengths)
        self._samples, self._positions = samples, positions
        self.blocks_removed = layer_blocks(family.axis_sizes(model.config)["layer"], lengths)
        self._final_norm = model.get_submodule(final_norm(family))
        self._head = head_of(model)
        self._calls: list[LayerCall] = []
        self._nll_SV = torch.zeros(0, len(self.blocks_removed) + 1, dtype=torch.float64)  # sums; whole model last
        self._tokens_S = torch.zeros(0, dtype=torch.int64)

    @property
    def is_done(self) -> bool:
        """Whether all samples that it is measured on were seen."""
        return self._samples is not None and len(self._tokens_S) >= self._samples

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        if self.is_done:
            return []

        def see(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.append(LayerCall.seen(layer, args, kwargs))

        return [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in decoder_layers(model, self._family)]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        if self.is_done:
            return
        variants: dict[LayerBlock, Tensor] = {}
        for layer in range(len(self._calls)):
            advance_(variants, self.blocks_removed, layer, self._calls.pop(0))
        self.add(tokens, hidden_BTD, (variants.pop(block) for block in self.blocks_removed))

    def add(self, tokens: Tokens, hidden_BTD: Tensor, variants: Iterable[Tensor]) -> None:
        """Accumulate one batch: the head's input of the whole model, and the last layer's output without each block."""
        counts = evenly(is_predicted(tokens.position_ids_BT, tokens.loss_mask_BT), self._positions)
        if self._samples is not None:  # a batch is run whole, so that what is counted does not depend on its size
            counts = counts[: self._samples - len(self._tokens_S)]
        ends = [self._nll(tokens, counts, self._final_norm(variant_BTD)) for variant_BTD in variants]
        nll_BV = torch.stack([*ends, self._nll(tokens, counts, hidden_BTD)], dim=1)
        self._append(nll_BV.cpu(), counts.sum(1).cpu())

    def _nll(self, tokens: Tokens, counts: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Sum of the loss over the counted tokens of each sample, [B]."""
        rows = len(counts)
        labels_N, hidden_ND = tokens.input_ids_BT[:rows, 1:][counts], hidden_BTD[:rows, :-1][counts]
        nll_N = self._head.nll(hidden_ND, labels_N)
        return torch.stack([nll.sum(dtype=torch.float64) for nll in nll_N.split(counts.sum(1).tolist())])

    def _append(self, nll_BV: Tensor, tokens_B: Tensor) -> None:
        self._nll_SV, self._tokens_S = torch.cat([self._nll_SV, nll_BV]), torch.cat([self._tokens_S, tokens_B])

    def state(self) -> dict[str, Tensor]:
        return {"nll": self._nll_SV, "tokens": self._tokens_S}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._nll_SV, self._tokens_S = state["nll"], state["tokens"]

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._append(state["nll"], state["tokens"])

    def scores(self) -> dict[str, Tensor]:
        """Increase of perplexity and loss without each layer: `layer.perplexity`, and `layer.nll` in nats per token.

        For blocks of n layers `block_perplexity=n` and `block_nll=n`: entry i is without layers i to i + n - 1. Of two
        or more samples also the standard errors of the increases, `perplexity_error` and `block_perplexity_error=n`.
        """
        if not self._tokens_S.sum():
            raise DataError("no calibration token has a predecessor in its document: use longer texts or blocks")
        nll_V, error_V = self._nll_SV.sum(0) / self._tokens_S.sum(), self._error_V()
        lengths = [sum(block.stop - block.start == n for block in self.blocks_removed) for n in self._lengths]
        gained_V = _perplexity(nll_V[:-1]) - _perplexity(nll_V[-1])
        found = {}
        for name, values in {"perplexity": gained_V, "nll": nll_V[:-1], "perplexity_error": error_V}.items():
            for n, without in zip(self._lengths, values.split(lengths) if len(values) else (), strict=False):
                found[f"layer.{name}" if n == 1 else f"layer.block_{name}={n}"] = without
        return found | {"parent.nll": nll_V[-1]}

    def _error_V(self) -> Tensor:
        """Standard error of each increase of perplexity, whose samples are whole blocks; empty for one sample.

        Delta method on the two ratio estimates: sample s contributes PPL' (l'_s - mean' n_s) - PPL (l_s - mean n_s).
        """
        count = len(self._tokens_S)
        if count < 2:
            return torch.zeros(0)
        nll_V = self._nll_SV.sum(0) / self._tokens_S.sum()
        parts_SV = _perplexity(nll_V) * (self._nll_SV - nll_V * self._tokens_S[:, None])
        spread_V = (parts_SV[:, :-1] - parts_SV[:, -1:]).square().sum(0)
        return (spread_V * count / (count - 1)).sqrt() / self._tokens_S.sum()


def evenly(counts_BT: Tensor, most: int | None) -> Tensor:
    """At most `most` of the true entries of each row, evenly spaced (None: all), bool [B, T]."""
    if most is None:
        return counts_BT
    rank_BT, found_B1 = counts_BT.cumsum(1), counts_BT.sum(1, keepdim=True)
    kept_B1 = found_B1.clamp(max=most)
    step_BT = (rank_BT * kept_B1).div(found_B1.clamp(min=1), rounding_mode="floor")
    before_BT = ((rank_BT - 1) * kept_B1).div(found_B1.clamp(min=1), rounding_mode="floor")
    return counts_BT & (step_BT > before_BT)


def _perplexity(nll: Tensor) -> Tensor:
    return nll.clamp(max=LOG_MAX).exp()
