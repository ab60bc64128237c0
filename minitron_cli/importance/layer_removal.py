"""Perplexity without each layer, and without each block of layers, from the hidden states of the running pass.

Removing layers i to j - 1 changes nothing before them, so layer i's input goes straight into layer j and only the
layers after the block run again: half the work of whole forward passes, and no logits are held.
"""

# B batch, T token, D hidden, N scored token, S sample, V variant of the model

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Sums:
    """Sums over samples, which tell means and their standard errors: as many numbers whatever the samples are."""

    samples: Tensor
    tokens: Tensor
    """Tokens n whose loss was taken."""
    tokens_squared: Tensor
    nll_V: Tensor
    """Sum of the loss l over these tokens, without each block and, last, of the whole model, fp64."""
    squares_V: Tensor
    """Sum of l^2."""
    with_tokens_V: Tensor
    """Sum of l n."""
    with_whole_V: Tensor
    """Sum of l times that of the whole model."""

    @classmethod
    def empty(cls, models: int) -> "_Sums":
        """Zeros for a number of models."""
        return cls.of(torch.zeros(0, models, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, nll_BV: Tensor, tokens_B: Tensor) -> "_Sums":
        """Sums over samples, from the loss of each under each model and its tokens."""
        products = (nll_BV, nll_BV.square(), nll_BV * tokens_B[:, None], nll_BV * nll_BV[:, -1:])
        return cls(torch.tensor(len(tokens_B)), tokens_B.sum(), tokens_B.square().sum(), *(p.sum(0) for p in products))

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(**{name: sum_ + vars(other)[name] for name, sum_ in vars(self).items()})

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.samples)

    def error_V(self) -> Tensor:
        """Standard error of each increase of perplexity, whose samples are whole blocks, without the last entry.

        Delta method on two ratio estimates: with residuals r = l - mean n a sample contributes PPL' r' - PPL r, where '
        is the model without the block.
        """
        mean_V = self.nll_V / self.tokens
        perplexity_V, whole = _perplexity(mean_V), len(mean_V) - 1
        cross_V = self.with_whole_V - mean_V[whole] * self.with_tokens_V  # sum of r' r
        cross_V = cross_V - mean_V * (self.with_tokens_V[whole] - mean_V[whole] * self.tokens_squared)
        squares_V = self.squares_V - 2 * mean_V * self.with_tokens_V + mean_V.square() * self.tokens_squared
        spread_V = perplexity_V.square() * squares_V + perplexity_V[whole] ** 2 * squares_V[whole]
        spread_V = (spread_V - 2 * perplexity_V * perplexity_V[whole] * cross_V)[:whole].clamp(min=0)
        return (spread_V * self.count / (self.count - 1)).sqrt() / self.tokens


class LayerRemoval:
    """Change in perplexity when single layers or blocks are removed (Muralidharan et al. 2024, sec. 2.2).

    The loss is taken over tokens of the loss mask that have a predecessor in their own document: of the first `samples`
    samples (None: all), `positions` in each (None: all), evenly spaced from another one on in each sample (`starts`)
    and the same for every removal, so that the noise of the text is in both losses of a difference.
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
        self._sums = _Sums.empty(len(self.blocks_removed) + 1)  # the whole model last

    @property
    def is_done(self) -> bool:
        """Whether all samples that it is measured on were seen."""
        return self._samples is not None and self._sums.count >= self._samples

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
        predicted = is_predicted(tokens.position_ids_BT, tokens.loss_mask_BT)
        counts = evenly(predicted, self._positions, starts(tokens.input_ids_BT))
        if self._samples is not None:  # a batch is run whole, so that what is counted does not depend on its size
            counts = counts[: self._samples - self._sums.count]
        ends = [self._nll(tokens, counts, self._final_norm(variant_BTD)) for variant_BTD in variants]
        nll_BV = torch.stack([*ends, self._nll(tokens, counts, hidden_BTD)], dim=1)
        self._sums = self._sums + _Sums.of(nll_BV.cpu(), counts.sum(1).cpu())

    def _nll(self, tokens: Tokens, counts: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Sum of the loss over the counted tokens of each sample, [B]."""
        rows = len(counts)
        labels_N, hidden_ND = tokens.input_ids_BT[:rows, 1:][counts], hidden_BTD[:rows, :-1][counts]
        nll_N = self._head.nll(hidden_ND, labels_N)
        return torch.stack([nll.sum(dtype=torch.float64) for nll in nll_N.split(counts.sum(1).tolist())])

    def state(self) -> dict[str, Tensor]:
        return dict(vars(self._sums))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._sums = _Sums(**state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._sums = self._sums + _Sums(**state)

    def scores(self) -> dict[str, Tensor]:
        """Increase of perplexity and loss without each layer: `layer.perplexity`, and `layer.nll` in nats per token.

        For blocks of n layers `block_perplexity=n` and `block_nll=n`: entry i is without layers i to i + n - 1. Of two
        or more samples also the standard errors of the increases, `perplexity_error` and `block_perplexity_error=n`.
        """
        sums = self._sums
        if not sums.tokens:
            raise DataError("no calibration token has a predecessor in its document: use longer texts or blocks")
        nll_V, error_V = sums.nll_V / sums.tokens, sums.error_V() if sums.count > 1 else sums.nll_V[:0]
        lengths = [sum(block.stop - block.start == n for block in self.blocks_removed) for n in self._lengths]
        gained_V = _perplexity(nll_V[:-1]) - _perplexity(nll_V[-1])
        found = {}
        for name, values in {"perplexity": gained_V, "nll": nll_V[:-1], "perplexity_error": error_V}.items():
            for n, without in zip(self._lengths, values.split(lengths) if len(values) else (), strict=False):
                found[f"layer.{name}" if n == 1 else f"layer.block_{name}={n}"] = without
        return found | {"parent.nll": nll_V[-1]}


def evenly(counts_BT: Tensor, most: int | None, start_B: Tensor) -> Tensor:
    """At most `most` of the true entries of each row, evenly spaced (None: all), bool [B, T].

    `start_B`: integers of at least 0, by which rows differ in the entries that they take.
    """
    if most is None:
        return counts_BT
    rank_BT, found_B1 = counts_BT.cumsum(1), counts_BT.sum(1, keepdim=True)
    kept_B1, divisor_B1 = found_B1.clamp(max=most), found_B1.clamp(min=1)
    start_B1 = start_B[:, None] % divisor_B1
    step_BT = (rank_BT * kept_B1 + start_B1).div(divisor_B1, rounding_mode="floor")
    before_BT = ((rank_BT - 1) * kept_B1 + start_B1).div(divisor_B1, rounding_mode="floor")
    return counts_BT & (step_BT > before_BT)


def starts(input_ids_BT: Tensor) -> Tensor:
    """Where the positions of each sample start, [B]: a number of its own tokens, whatever batch it comes in.

    What a token's place in a block does to its loss would be in the ranking if all samples had the same positions.
    """
    places_T = torch.arange(1, input_ids_BT.shape[1] + 1, device=input_ids_BT.device)
    return (input_ids_BT * places_T).sum(1)


def inputs(lengths: Sequence[int], positions: int | None, length: int) -> dict[str, str]:
    """What a stage that removes layers names among its inputs where a part of the positions is taken.

    They were the same in all samples before.
    """
    return {"positions": "of each sample"} if lengths and positions and positions < length - 1 else {}


def _perplexity(nll: Tensor) -> Tensor:
    return nll.clamp(max=LOG_MAX).exp()
