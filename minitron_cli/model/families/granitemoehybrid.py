"""Granite 4: a state space (Mamba-2) in most layers, attention in the others; an MLP, alone or beside experts.

With experts, `ffn` is the width of one; that of the MLP beside them, which all tokens use, is not pruned then.
"""

from dataclasses import replace
from typing import Any

from minitron_cli.model.families import falcon_h1 as F
from minitron_cli.model.families import llama as L
from minitron_cli.model.families.bamba import ATTENTION, HELD_BY, STATE_SPACE, STORED_IF, TWICE_HIDDEN
from minitron_cli.model.families.granitemoe import BLOCK, EXPERTS, GRANITEMOE
from minitron_cli.model.family import Correction, Family, Serving
from minitron_cli.model.layer_kinds import Listed

SHARED = "model.layers.{layer}.shared_mlp"

BEFORE_MLP = "model.layers.{layer}.post_attention_layernorm.weight"

BEFORE_MIXER = "model.layers.{layer}.input_layernorm.weight"

LINKS = L.LINKS | {
    BEFORE_MIXER: F.FALCON_H1.links[BEFORE_MIXER],
    BEFORE_MLP: (f"{SHARED}.input_linear.weight",),
}

MLP = {f"{SHARED}.input_linear.weight": "(ffn + ffn) hidden", f"{SHARED}.output_linear.weight": "hidden ffn"}

BESIDE_EXPERTS = {name: layout.replace("ffn", "shared_ffn") for name, layout in MLP.items()}

SIZES = L.SIZES | F.MAMBA_SIZES

GRANITEMOEHYBRID = Family(
    model_type="granitemoehybrid",
    tensors=L.EMBEDDING | ATTENTION | STATE_SPACE | MLP | L.NORMS | L.FINAL,
    sizes=SIZES | {"ffn": "shared_intermediate_size"},
    quotients={"mamba_expand": ("mamba_head mamba_dim", "hidden")},
    groups=F.FALCON_H1.groups,
    corrections={f"{F.MAMBA}.norm.weight": Correction("mamba_head mamba_dim", -0.5)},
    stored_if=STORED_IF,
    links=LINKS,
    residual_multiplier="residual_multiplier",
    config_aliases={"shared_intermediate_size": "intermediate_size"},  # which llama.cpp takes for the width of an MLP
    tied=L.TIED,
    layer_kinds=(Listed("layer_types"),),
    held_by=HELD_BY,
    serving=Serving("derives_head_dim", "derives_head_dim", "derives_head_dim", llama_cpp_equal=TWICE_HIDDEN),
)

WITH_EXPERTS = replace(
    GRANITEMOEHYBRID,
    tensors=L.EMBEDDING | ATTENTION | STATE_SPACE | EXPERTS | BESIDE_EXPERTS | L.NORMS | L.FINAL,
    sizes=SIZES | {"expert": "num_local_experts", "shared_ffn": "shared_intermediate_size"},
    active=GRANITEMOE.active,
    config_aliases={},
    links=LINKS
    | {
        BEFORE_MLP: (
            f"{SHARED}.input_linear.weight",
            f"{BLOCK}.router.layer.weight",
            f"{BLOCK}.input_linear.weight[{{expert}}]",
        )
    },
    width_multiple=8,
    runtime_names=GRANITEMOE.runtime_names,
)


def table(config: Any) -> Family:
    """The table of a model with experts, or without."""
    return WITH_EXPERTS if config.num_local_experts else GRANITEMOEHYBRID
