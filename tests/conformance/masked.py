"""The oracle of trimming: a transformers model whose removed parts do nothing. Knows parameter names, no product code.

Heads and neurons: their columns in the projection back to the residual stream are zero. Layers: gone from the module
list, the rest renumbered. Hidden channels: zero wherever they are read or written; an RMS norm then divides by the
same root of a smaller sum, so its weight is scaled by sqrt(kept / all) and its epsilon by kept / all.
"""

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

Indices = list[int]


@dataclass(frozen=True)
class Cut:
    """What survives, ascending; None where all does. Heads are query heads, the same number in every kept group."""

    layer: Indices | None = None
    hidden: Indices | None = None
    ffn: list[Indices] | None = None
    head: list[Indices] | None = None
    kv_head: list[Indices] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The child's sizes on the axes that are cut."""
        kept = {name: getattr(self, name) for name in ("layer", "hidden", "ffn", "head", "kv_head")}
        return {
            name: len(indices if isinstance(indices[0], int) else indices[0])
            for name, indices in kept.items()
            if indices is not None
        }


def random_cut(config, seed: int, *, layer=None, hidden=None, ffn=None, head=None, kv_head=None) -> Cut:
    """Random survivors of the given numbers, other ones in every layer for neurons and heads."""
    draw = random.Random(seed)
    layers, groups = config.num_hidden_layers, config.num_key_value_heads
    per_group = config.num_attention_heads // groups

    def some(count: int | None, of: int) -> Indices:
        return sorted(draw.sample(range(of), of if count is None else count))

    kept_groups = [some(kv_head, groups) for _ in range(layers)]
    kept_per_group = None if head is None else head // (kv_head or groups)
    heads = [[g * per_group + q for g in kept for q in some(kept_per_group, per_group)] for kept in kept_groups]
    return Cut(
        layer=None if layer is None else some(layer, layers),
        hidden=None if hidden is None else some(hidden, config.hidden_size),
        ffn=None if ffn is None else [some(ffn, config.intermediate_size) for _ in range(layers)],
        head=None if head is None else heads,
        kv_head=None if kv_head is None else kept_groups,
    )


@torch.no_grad()
def masked(parent: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """A copy of the parent that computes what the child must compute."""
    model = copy.deepcopy(parent)
    for i, layer in enumerate(model.model.layers):
        if cut.ffn:
            layer.mlp.down_proj.weight[:, _others(cut.ffn[i], model.config.intermediate_size)] = 0
        if cut.head:
            lost = _others(cut.head[i], model.config.num_attention_heads)
            by_head = layer.self_attn.o_proj.weight.view(model.config.hidden_size, model.config.num_attention_heads, -1)
            by_head[:, lost] = 0
    if cut.hidden:
        _mask_hidden(model, cut.hidden)
    if cut.layer:
        _drop_layers(model, cut.layer)
    return model


READS_RESIDUAL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
WRITES_RESIDUAL = ("o_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


def _mask_hidden(model: PreTrainedModel, kept: Indices) -> None:
    lost, share = _others(kept, model.config.hidden_size), len(kept) / model.config.hidden_size
    model.model.embed_tokens.weight[:, lost] = 0
    for name, module in model.named_modules():
        kind = name.rsplit(".", 1)[-1]
        if kind in READS_RESIDUAL:
            module.weight[:, lost] = 0
        elif kind in WRITES_RESIDUAL:
            module.weight[lost] = 0
            if module.bias is not None:
                module.bias[lost] = 0
        elif kind in NORMS:
            module.weight[lost] = 0
            module.weight *= share**0.5
            module.variance_epsilon *= share


def _drop_layers(model: PreTrainedModel, kept: Indices) -> None:
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]


def _others(kept: Indices, size: int) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(kept)), dtype=torch.long)
