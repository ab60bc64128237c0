"""Importance of experts and of the neurons inside them.

The model in memory holds all experts of a layer in one module without submodules to hook. While it is observed, that
module computes one expert after another and exposes what each one computes.

    B batch, T token, N token of any sample, R token routed to one expert, K expert of a token, E expert, F neuron
    D hidden, S sequence aggregation, L layer
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from minitron_cli.importance.fluctuation import column_norms
from minitron_cli.importance.running_moments import Moments, NamedMoments
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.expert_forward import Routed, TemporaryForward, each_expert
from minitron_cli.layerwise.observer import Part, Tokens
from minitron_cli.model.family import Family
from minitron_cli.model.runtime_tensors import experts_module
from minitron_cli.scores.metric import AGGREGATIONS, OUTPUT_NORM, Activation, Flap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Neuron = Literal["activation", "pre_activation"]


class Experts:
    """Importance of every expert, and of every neuron in it; no scores for a model without experts.

    expert: mean L2 norm of its contribution to the residual stream, its output times the router's weight, over the
    tokens routed to it. ffn: input of its down projection, aggregated like any neuron, but over the tokens of a sample
    that are routed to the expert, and for FLAP over all of these tokens. Samples without such tokens are skipped for
    that expert, so scores depend neither on batching nor on the other experts. An expert that no token is routed to
    scores 0, and so do its neurons.
    """

    name = "experts"
    sees_final_norm: ClassVar[bool] = False

    def __init__(self, family: Family, sizes: Mapping[str, int], part: Part, pre_activation: bool = False) -> None:
        self._module, self._all = experts_module(family), sizes["layer"]
        self._layers = [i for i in part.layers if self._module and family.holds(i, self._module)]
        self._neurons: tuple[Neuron, ...] = ("activation", "pre_activation") if pre_activation else ("activation",)
        self._experts = sizes.get("expert", 0)
        # "expert.3": over tokens, [E]; "flap.3": over tokens, [E, F]; "activation.3": over samples, [E, S, F]
        self._moments = NamedMoments()

    @classmethod
    def of(cls, family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions) -> Self:
        """Observer of a part of a model."""
        return cls(family, sizes, part, options.pre_activation)

    @classmethod
    def joined(cls, family: Family, sizes: Mapping[str, int], parts: Sequence[Self]) -> Self:
        """Observer of the whole model, from those of its layers."""
        whole = cls(family, sizes, Part(range(sizes["layer"]), True), len(parts[0]._neurons) > 1)
        for part in parts:
            whole._moments.join(part._moments)
        return whole

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[TemporaryForward]":
        module = self._module or ""
        return [
            TemporaryForward(model.get_submodule(module.format(layer=layer)), partial(self._forward, layer, tokens))
            for layer in self._layers
        ]

    def _forward(
        self,
        layer: int,
        tokens: Tokens,
        module: Any,
        hidden_ND: Tensor,
        index_NK: Tensor | None = None,
        weight_NK: Tensor | None = None,
    ) -> Tensor:
        """Result of the module, summed in fp32."""
        added_ND = torch.zeros(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
        seen: dict[int, dict[str, Moments]] = {}
        for routed in each_expert(module, hidden_ND, index_NK, weight_NK):
            added_ND.index_add_(0, routed.row_R, routed.added_RD.float())
            seen[routed.expert] = self._seen(routed, membership(tokens, routed.token_R))
        for name in next(iter(seen.values())):
            self._moments.add(f"{name}.{layer}", _spread([m[name] for m in seen.values()], list(seen), self._experts))
        return added_ND.to(hidden_ND.dtype)

    def _seen(self, routed: "Routed", member_BR: Tensor) -> dict[str, Moments]:
        counts_R = member_BR.sum(0)
        norm_R = torch.linalg.vector_norm(routed.added_RD, dim=-1, dtype=torch.float32).double()
        values = {"activation": routed.neuron_RF, "pre_activation": routed.gate_RF}
        neurons: dict[str, Moments] = {n: over_samples(values[n].float(), member_BR) for n in self._neurons}
        over_tokens = Moments.of(routed.neuron_RF.float(), dim=0, weights=counts_R[:, None])
        neurons["flap"] = over_tokens.scaled(column_norms(routed.writer_DF))
        return {"expert": Moments.of(norm_R, dim=0, weights=counts_R.double())} | neurons

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Nothing to do: each layer is accumulated when it runs."""

    def state(self) -> dict[str, Tensor]:
        return self._moments.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._moments.restore(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._moments.merge(state)

    def scores(self) -> dict[str, Tensor]:
        if not self._layers:
            return {}
        found = {OUTPUT_NORM: self._by_layer([m.mean.float().cpu() for m in self._of("expert")])}
        found[Flap().key("ffn")] = self._by_layer([m.aggregate("var").float().cpu() for m in self._of("flap")])
        for neuron in self._neurons:
            for batch in AGGREGATIONS:
                score_LESF = self._by_layer([m.aggregate(batch).float().cpu() for m in self._of(neuron)])
                for s, sequence in enumerate(AGGREGATIONS):
                    metric = Activation(batch=batch, sequence=sequence, neuron=neuron)
                    found[metric.key("ffn")] = score_LESF[:, :, s].contiguous()
        return found

    def _by_layer(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores of all layers, [L, ...]: zeros for those without experts."""
        stacked = torch.stack(list(scores))
        return stacked.new_zeros(self._all, *stacked.shape[1:]).index_copy(0, torch.tensor(self._layers), stacked)

    def _of(self, name: str) -> list[Moments]:
        return [self._moments[f"{name}.{layer}"] for layer in self._layers]


def membership(tokens: Tokens, token_R: Tensor) -> Tensor:
    """Indicator [B, R] of routed tokens that belong to the sample and to the loss mask."""
    samples, length = tokens.input_ids_BT.shape
    member_BR = token_R // length == torch.arange(samples, device=token_R.device)[:, None]
    if tokens.loss_mask_BT is not None:
        member_BR &= tokens.loss_mask_BT.flatten()[token_R]
    return member_BR.float()


def over_samples(values_RF: Tensor, member_BR: Tensor) -> Moments:
    """Moments [S, F] over samples with routed tokens, of each sample's aggregates over those tokens."""
    count_B1 = member_BR.sum(1, keepdim=True)
    some_B1 = count_B1.clamp_min(1)
    mean_BF = member_BR @ values_RF / some_B1
    squares_BF = member_BR @ (values_RF - member_BR.T @ mean_BF).square()
    tokens = Moments(some_B1, mean_BF, squares_BF)
    mean_abs_BF = member_BR @ values_RF.abs() / some_B1  # the paper's mean is (1/n) sum |x|
    aggregates_SBF = torch.stack([mean_abs_BF if a == "mean" else tokens.aggregate(a) for a in AGGREGATIONS])
    return Moments.of(aggregates_SBF.double(), dim=1, weights=(count_B1 > 0).double()[None])


def _spread(parts: Sequence[Moments], experts: Iterable[int], count: int) -> Moments:
    """Moments of all experts stacked; zeros for experts without tokens."""
    place = torch.tensor(list(experts), device=parts[0].mean.device)

    def spread(tensors: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(tensors))
        return stacked.new_zeros(count, *stacked.shape[1:]).index_copy_(0, place, stacked)

    return Moments(*(spread([part.tensors()[name] for part in parts]) for name in ("count", "mean", "squares")))
