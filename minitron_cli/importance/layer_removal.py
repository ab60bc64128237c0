"""Perplexity without each layer, and without each block of layers, from the hidden states of the pass that is running.

Removing layers i to j - 1 changes nothing before them, so layer i's input goes straight into layer j and only the
layers after the cut run again: half the work of whole forwards, and no logits are held.
"""

# B batch, T token, D hidden, L layer, N token that counts

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minitron_cli.errors import DataError, InputError
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.observer import Tokens, decoder_layers, final_norm
from minitron_cli.model.family import Family
from minitron_cli.model.lm_head import head_of, token_nll

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

LOG_MAX = 700.0  # exp of more overflows; a model this bad has no perplexity worth telling apart


class Cut(NamedTuple):
    """Layers that are removed together: start, start + 1, ..., stop - 1."""

    start: int
    stop: int


def cuts_of(layers: int, lengths: Sequence[int]) -> list[Cut]:
    """Every run of so many layers, for each of the lengths in turn. InputError if one leaves no layer."""
    if too_long := [n for n in lengths if not 0 < n < layers]:
        raise InputError(f"a block of {too_long[0]} layers cannot be removed from {layers}: choose 1 to {layers - 1}")
    return [Cut(i, i + n) for n in lengths for i in range(layers - n + 1)]


class Variants(Protocol):
    """Where each cut's hidden states wait: a dict, or something that keeps them elsewhere."""

    def __setitem__(self, cut: Cut, hidden_BTD: Tensor, /) -> None: ...

    def pop(self, cut: Cut, /) -> Tensor: ...


def advance_(variants: Variants, cuts: Iterable[Cut], layer: int, call: LayerCall) -> None:
    """Take every variant of the model past one layer. One that is cut here waits with the layer's input."""
    for cut in cuts:
        if cut.start == layer:
            variants[cut] = call.hidden_BTD
        elif cut.stop <= layer:
            variants[cut] = call.again(variants.pop(cut))


class LayerRemoval:
    """Change in perplexity when layers are removed (Muralidharan et al. 2024, sec. 2.2), single ones or blocks.

    The loss is that of every token that counts and has a predecessor in its own document.
    """

    name = "layer_removal"

    def __init__(self, model: "PreTrainedModel", family: Family, lengths: Sequence[int] = (1,)) -> None:
        self._family = family
        self._lengths = tuple(lengths)
        self.cuts = cuts_of(family.axis_sizes(model.config)["layer"], lengths)
        self._final_norm = model.get_submodule(final_norm(family))
        self._head = head_of(model)
        self._calls: list[LayerCall] = []
        self._nll_sum = torch.zeros(len(self.cuts) + 1, dtype=torch.float64)  # of each cut; the whole model last
        self._tokens = 0

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        def see(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.append(LayerCall.seen(layer, args, kwargs))

        return [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in decoder_layers(model, self._family)]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        variants: dict[Cut, Tensor] = {}
        for layer in range(len(self._calls)):
            advance_(variants, self.cuts, layer, self._calls.pop(0))
        self.add(tokens, hidden_BTD, (variants.pop(cut) for cut in self.cuts))

    def add(self, tokens: Tokens, hidden_BTD: Tensor, variants: Iterable[Tensor]) -> None:
        """One batch: what the head reads of the whole model, and the last layer's output of each cut in turn."""
        counts = _predicted(tokens)
        ends = [self._nll(tokens, counts, self._final_norm(variant_BTD)) for variant_BTD in variants]
        self._nll_sum += torch.stack([*ends, self._nll(tokens, counts, hidden_BTD)]).cpu()
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
        """The change, and from what to what: layer.nll is the mean nats per token without the layer.

        Of blocks of n layers, `block_perplexity=n` and `block_nll=n`: entry i is without layers i to i + n - 1.
        """
        if not self._tokens:
            raise DataError("no calibration token has a predecessor in its document: use longer texts or blocks")
        nll = self._nll_sum / self._tokens
        parent = nll[-1]
        found = {}
        by_length = nll[:-1].split([sum(c.stop - c.start == n for c in self.cuts) for n in self._lengths])
        for n, without in zip(self._lengths, by_length, strict=True):
            prefix, suffix = ("layer.", "") if n == 1 else ("layer.block_", f"={n}")
            found[f"{prefix}perplexity{suffix}"] = _perplexity(without) - _perplexity(parent)
            found[f"{prefix}nll{suffix}"] = without
        return found | {"parent.nll": parent}


def _predicted(tokens: Tokens) -> Tensor:
    """[B, T - 1] bool: whether the token after each one is of the same document, and counts."""
    continues = tokens.position_ids_BT.diff(dim=1) == 1
    return continues if tokens.loss_mask_BT is None else continues & tokens.loss_mask_BT[:, 1:]


def _perplexity(nll: Tensor) -> Tensor:
    return nll.clamp(max=LOG_MAX).exp()
