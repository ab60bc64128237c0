"""The oracle of pruning: a transformers model whose removed parts do nothing. Knows parameter names, no product code.

Heads and neurons: their columns in the projection back to the residual stream are zero. Layers: gone from the module
list, the rest renumbered. Hidden channels: zero wherever they are read or written; an RMS norm then divides by the
same root of a smaller sum, so its gain is scaled by sqrt(kept / all) and its epsilon by kept / all. A layer norm would
spread its mean over the lost channels, so it is replaced by one over the survivors. Experts:
the router's logit is minus infinity, before the softmax.
"""

import copy
import random
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.anatomy import Anatomy, anatomy

Indices = list[int]
EXPERTS = ("moe_num_experts", "num_experts", "num_local_experts", "n_routed_experts")
"""Fields that hold the number of experts."""
SHARED = ("moe_num_shared_experts", "n_shared_experts")
"""Fields that hold how many experts' neurons those of all tokens have."""


FOLLOWING = ("shared_ffn", "mlp_ffn")
"""Neurons whose number goes with that of an expert."""


@dataclass(frozen=True)
class Survivors:
    """What survives, ascending; None where all does. Heads are query heads, the same number in every kept group."""

    layer: Indices | None = None
    hidden: Indices | None = None
    ffn: list[Indices] | list[list[Indices]] | None = None  # of each layer, or of each expert of it
    head: list[Indices] | None = None
    kv_head: list[Indices] | None = None
    expert: list[Indices] | None = None
    shared_ffn: list[Indices] | None = None  # of the experts that all tokens use, where their width follows from ffn
    mlp_ffn: list[Indices] | None = None  # of layers without experts, where their width follows from ffn
    q_rank: list[Indices] | None = None
    kv_rank: list[Indices] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The child's sizes on the axes that are pruned."""
        kept = {name: indices for name, indices in vars(self).items() if name not in FOLLOWING}
        return {name: _count(indices) for name, indices in kept.items() if indices is not None}


def _count(indices) -> int:
    return len(indices) if isinstance(indices[0], int) else _count(indices[0])


def random_survivors(
    config,
    seed: int,
    *,
    layer=None,
    hidden=None,
    ffn=None,
    head=None,
    kv_head=None,
    expert=None,
    q_rank=None,
    kv_rank=None,
) -> Survivors:
    """Random survivors of the given numbers, other ones in every layer for neurons and heads."""
    draw = random.Random(seed)
    layers, groups = config.num_hidden_layers, getattr(config, "num_key_value_heads", None)
    if hasattr(config, "kv_lora_rank"):
        groups = None
    if has_no_groups := groups is None:  # each head has keys of its own, which go with it
        groups, kv_head = config.num_attention_heads, head
    per_group = config.num_attention_heads // groups

    def some(count: int | None, of: int) -> Indices:
        return sorted(draw.sample(range(of), of if count is None else count))

    kept_groups = [some(kv_head, groups) for _ in range(layers)]
    kept_per_group = None if head is None else head // (kv_head or groups)
    experts = _experts(config) if anatomy(config.model_type).experts else None

    def width() -> int:
        if config.model_type == "lfm2":
            return 48
        field = "moe_intermediate_size" if hasattr(config, "moe_intermediate_size") and experts else "intermediate_size"
        return int(getattr(config, field))

    def neurons() -> Indices | list[Indices]:
        return [some(ffn, width()) for _ in range(experts)] if experts else some(ffn, width())

    shared = next((number for name in SHARED if (number := getattr(config, name, None))), 0)
    shared = 1 if config.model_type == "llama4_text" else shared
    heads = [[g * per_group + q for g in kept for q in some(kept_per_group, per_group)] for kept in kept_groups]
    return Survivors(
        layer=None if layer is None else some(layer, layers),
        hidden=None if hidden is None else some(hidden, config.hidden_size),
        ffn=None if ffn is None else [neurons() for _ in range(layers)],
        head=None if head is None else heads,
        kv_head=None if kv_head is None or has_no_groups else kept_groups,
        expert=None if expert is None else [some(expert, experts) for _ in range(layers)],
        shared_ffn=None if ffn is None or not shared else [some(shared * ffn, shared * width()) for _ in range(layers)],
        mlp_ffn=None
        if ffn is None or not anatomy(config.model_type).mlp_follows
        else [some(ffn, width()) for _ in range(layers)],
        q_rank=None if q_rank is None else [some(q_rank, config.q_lora_rank) for _ in range(layers)],
        kv_rank=None if kv_rank is None else [some(kv_rank, config.kv_lora_rank) for _ in range(layers)],
    )


def _experts(config) -> int | None:
    return next((number for name in EXPERTS if (number := getattr(config, name, None))), None)


@torch.no_grad()
def masked(parent: PreTrainedModel, pruning: Survivors) -> PreTrainedModel:
    """A copy of the parent that computes what the child must compute."""
    model, parts = copy.deepcopy(parent), anatomy(parent.config.model_type)
    for i, layer in enumerate(parts.layers(model)):
        has_experts, has_heads = has(layer, parts.experts), has(layer, f"{parts.attention}.{parts.output}")
        if pruning.ffn and has_experts:
            for down_DF, kept in zip(_down(layer.get_submodule(parts.experts)), pruning.ffn[i], strict=True):
                down_DF[:, _others(kept, down_DF.shape[1])] = 0
        elif pruning.ffn and not parts.experts and has(layer, f"{parts.mlp}.{parts.down}"):
            down_DF = layer.get_submodule(f"{parts.mlp}.{parts.down}").weight
            down_DF[:, _others(pruning.ffn[i], down_DF.shape[1])] = 0
        if pruning.mlp_ffn and has(layer, f"{parts.mlp}.{parts.down}"):
            down_DF = layer.get_submodule(f"{parts.mlp}.{parts.down}").weight
            down_DF[:, _others(pruning.mlp_ffn[i], down_DF.shape[1])] = 0
        if pruning.shared_ffn and parts.shared and has_experts:
            down_DF = layer.get_submodule(parts.shared).down_proj.weight
            down_DF[:, _others(pruning.shared_ffn[i], down_DF.shape[1])] = 0
        for axis, module in parts.latents.items():
            if kept := getattr(pruning, axis):
                _mask_latent(layer.get_submodule(parts.attention), module, kept[i])
        if pruning.expert and has_experts:
            close_router(layer, parts.router, _others(pruning.expert[i], _experts(model.config)), model.config)
        if pruning.head and has_heads:
            lost = _others(pruning.head[i], model.config.num_attention_heads)
            output = layer.get_submodule(f"{parts.attention}.{parts.output}").weight
            by_head = output.view(model.config.hidden_size, model.config.num_attention_heads, -1)
            by_head[:, lost] = 0
    if pruning.hidden:
        _mask_hidden(model, parts, pruning.hidden)
    if pruning.layer:
        _drop_layers(model, parts, pruning.layer)
    return model


def _mask_latent(attention: nn.Module, reader: str, kept: Indices) -> None:
    """Channels of a latent give zero before their norm, whose mean still runs over all of them."""
    maker = "q_a_proj" if reader == "q_b_proj" else "kv_a_proj_with_mqa"
    lost = _others(kept, attention.get_submodule(reader).in_features)
    attention.get_submodule(maker).weight[lost] = 0
    attention.get_submodule(maker).bias[lost] = 0


def has(layer: nn.Module, name: str) -> bool:
    """Whether a layer has a part: layers may differ in kind."""
    return bool(name) and name in dict(layer.named_modules())


def _gate_up(experts: nn.Module) -> Tensor:
    """Each expert's first matrix, as outputs by inputs; a view. Llama 4's module does not say how it stores them."""
    first = experts.gate_up_proj if hasattr(experts, "gate_up_proj") else experts.up_proj
    return first.mT if getattr(experts, "is_transposed", True) else first


def _down(experts: nn.Module) -> Tensor:
    """Each expert's second matrix, as outputs by inputs; a view."""
    return experts.down_proj.mT if getattr(experts, "is_transposed", True) else experts.down_proj


def close_router(layer: nn.Module, router: str, lost: Tensor, config) -> None:
    """Put some of the experts out of a router's reach.

    Where a bias decides, it becomes minus infinity; else the router is that of Mixtral and Qwen 3 as in their papers.
    """
    if hasattr(gate := layer.get_submodule(router), "moe_statics"):  # chosen by probability and bias
        gate.moe_statics.e_score_correction_bias[:, lost] = -1e9
        gate.forward = partial(_with_closed_logits, gate.forward, lost)
        return
    if hasattr(gate, "topk_method"):  # DeepSeek V2's, which may choose groups first
        gate.forward = partial(_with_closed_logits, gate.forward, lost)
        return
    block = layer.get_submodule(router.rpartition(".")[0])
    if hasattr(block, "e_score_correction_bias"):
        block.e_score_correction_bias[lost] = -torch.inf
        return
    if hasattr(gate, "e_score_correction_bias"):  # finite, because GLM 4.5 adds up the two highest of a group
        gate.e_score_correction_bias[lost] = -1e9
        return
    if hasattr(gate, "bias"):
        bias = torch.zeros(len(gate.weight)) if gate.bias is None else gate.bias.clone()
        gate.bias = nn.Parameter(bias.index_fill(0, lost, -torch.inf))
        return
    is_normed = getattr(config, "norm_topk_prob", config.model_type != "jamba")  # Mixtral always does, Jamba never

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden @ gate.weight.T
        logits[:, lost] = -torch.inf
        chosen = logits.softmax(-1).topk(config.num_experts_per_tok)
        weights = chosen.values / chosen.values.sum(-1, keepdim=True) if is_normed else chosen.values
        return logits, weights, chosen.indices

    gate.forward = forward


def _with_closed_logits(forward, lost: Tensor, hidden: Tensor):
    """What a router gives whose own product gives minus infinity for some experts."""
    plain = torch.nn.functional.linear

    def linear(*arguments: Tensor) -> Tensor:
        return torch.index_fill(plain(*arguments), 1, lost, -torch.inf)

    with patch.object(torch.nn.functional, "linear", linear):
        return forward(hidden)


def _mask_hidden(model: PreTrainedModel, parts: Anatomy, kept: Indices) -> None:
    lost = _others(kept, model.config.hidden_size)
    model.get_input_embeddings().weight[:, lost] = 0
    norms = {*parts.norms, parts.final_norm}
    for name, module in list(model.named_modules()):
        parent, _, kind = name.rpartition(".")
        if kind in norms and _is_over_the_stream(module, model.config.hidden_size):
            setattr(model.get_submodule(parent), kind, _norm_of(module, kept, parts.norm_offset))
        elif parts.experts and name.endswith(parts.experts):
            _gate_up(module)[:, :, lost] = 0
            _down(module)[:, lost] = 0
            if getattr(module, "has_bias", False):
                module.down_proj_bias[:, lost] = 0
        elif parts.router and name.endswith(parts.router):
            module.weight[:, lost] = 0
        elif isinstance(module, nn.Linear) and kind in (parts.output, parts.down, *parts.writers):
            module.weight[lost] = 0
            if module.bias is not None:
                module.bias[lost] = 0
        elif isinstance(module, nn.Linear) and kind not in (*parts.latents.values(), *parts.inner):
            module.weight[:, lost] = 0


def _is_over_the_stream(norm: nn.Module, hidden: int) -> bool:
    """Whether a norm, of which OLMo's have no weight, is not one inside a state space."""
    return not hasattr(norm, "weight") or len(norm.weight) == hidden


def _norm_of(norm: nn.Module, kept: Indices, offset: float) -> nn.Module:
    """The norm that sees the survivors alone, and gives zero elsewhere."""
    if "LayerNorm" in type(norm).__name__:  # torch's, Cohere's without a bias, or OLMo's without a weight too
        return LayerNormOf(norm, kept, offset)
    share = len(kept) / len(norm.weight)
    norm.weight.copy_((norm.weight + offset) * share**0.5 - offset)
    epsilon = "eps" if hasattr(norm, "eps") else "variance_epsilon"
    setattr(norm, epsilon, getattr(norm, epsilon) * share)
    return norm


class LayerNormOf(nn.Module):
    """A layer norm whose mean and variance are those of some channels."""

    def __init__(self, norm: nn.Module, kept: Indices, offset: float) -> None:
        super().__init__()
        self.kept = kept
        self.eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-5))
        self.gain = norm.weight[kept] + offset if hasattr(norm, "weight") else torch.ones(len(kept))
        self.bias = norm.bias[kept] if hasattr(norm, "bias") else torch.zeros(len(kept))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        kept = hidden_BTD[..., self.kept]
        centred = kept - kept.mean(-1, keepdim=True)
        root = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        out_BTD = torch.zeros_like(hidden_BTD)
        out_BTD[..., self.kept] = centred / root * self.gain + self.bias
        return out_BTD


def _drop_layers(model: PreTrainedModel, parts: Anatomy, kept: Indices) -> None:
    layers = parts.layers(model)
    model.get_submodule(parts.decoder).layers = nn.ModuleList(layers[i] for i in kept)
    for i, layer in enumerate(parts.layers(model)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    model.config.num_hidden_layers = len(kept)
    for name in ("layer_types", "no_rope_layers"):
        if kinds := vars(model.config).get(name):
            setattr(model.config, name, [kinds[i] for i in kept])


def _others(kept: Indices, size: int) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(kept)), dtype=torch.long)
