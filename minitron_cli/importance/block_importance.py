"""Block Importance: cosine distance between a layer's input and output (Men et al. 2024; Muralidharan et al. 2024)."""

# B batch, T token, D hidden, L layer

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from minitron_cli.errors import DataError
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import Part, Tokens, decoder_layers, layer_input, layer_output
from minitron_cli.model.family import Family

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

TINY = 1e-30


class BlockImportance:
    """BI_i = 1 - E cos(x_i, x_{i+1}) over all tokens of the loss mask, where x_i is the input of layer i."""

    name = "block_importance"
    sees_final_norm: ClassVar[bool] = False

    def __init__(self, family: Family, part: Part) -> None:
        self._family = family
        self._layers = part.layers
        self._batch: list[Tensor] = [torch.empty(0)] * len(part.layers)
        self._cosine_sum_L = torch.zeros(len(part.layers), dtype=torch.float64)
        self._tokens = 0
        self._counts_BT: Tensor | None = None  # loss mask of the current batch
        self._last: tuple[Tensor, Tensor] | None = (
            None  # the previous layer's output, which the next one reads, and its norms
        )

    @classmethod
    def of(cls, family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions) -> Self:
        """Observer of a part of a model."""
        return cls(family, part)

    @classmethod
    def joined(cls, family: Family, sizes: Mapping[str, int], parts: Sequence[Self]) -> Self:
        """Observer of the whole model, from those of its layers in order."""
        whole = cls(family, Part(range(sizes["layer"]), False))
        whole._cosine_sum_L = torch.cat([part._cosine_sum_L for part in parts])
        whole._tokens = parts[0]._tokens
        return whole

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        self._counts_BT = tokens.loss_mask_BT
        layers = decoder_layers(model, self._family)
        return [
            layers[layer].register_forward_hook(partial(self._see, i), with_kwargs=True)
            for i, layer in enumerate(self._layers)
        ]

    def _see(self, i: int, _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before_BTD, after_BTD = layer_input(args, kwargs), layer_output(output)
        norm_before_BT = self._last[1] if self._last and self._last[0] is before_BTD else _norm(before_BTD)
        norm_after_BT = _norm(after_BTD)
        dot_BT = (before_BTD.float() * after_BTD.float()).sum(-1)
        cosine_BT = dot_BT / (norm_before_BT * norm_after_BT).clamp_min(TINY)
        counted = cosine_BT if self._counts_BT is None else cosine_BT[self._counts_BT]
        self._batch[i] = counted.sum(dtype=torch.float64)
        self._last = after_BTD, norm_after_BT

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._cosine_sum_L = self._cosine_sum_L + torch.stack(self._batch).cpu()
        self._tokens += tokens.input_ids_BT.numel() if tokens.loss_mask_BT is None else int(tokens.loss_mask_BT.sum())
        self._last = None

    def state(self) -> dict[str, Tensor]:
        return {"cosine_sum": self._cosine_sum_L, "tokens": torch.tensor(self._tokens)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._cosine_sum_L, self._tokens = state["cosine_sum"], int(state["tokens"])

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._cosine_sum_L = self._cosine_sum_L + state["cosine_sum"]
        self._tokens += int(state["tokens"])

    def scores(self) -> dict[str, Tensor]:
        if not self._tokens:
            raise DataError(
                "no token of the calibration blocks is scored: raise importance.samples, or use data with answers"
            )
        return {"layer.block_importance": (1 - self._cosine_sum_L / self._tokens).float()}


def _norm(hidden_BTD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(hidden_BTD, dim=-1, dtype=torch.float32)
