"""Qwen3-Next: a Gated DeltaNet in most layers, attention with a gate in the others; experts, one for all tokens.

What is inside a Gated DeltaNet is not pruned, so the order of its channels does not matter here.
"""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen2_moe import BEFORE_MLP, QWEN2_MOE, SHARED
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, QWEN3_MOE, RUNTIME_NAMES
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import DenseListed, Listed

DELTA = "model.layers.{layer}.linear_attn"

BEFORE_MIXER = "model.layers.{layer}.input_layernorm.weight"

GATED_QUERIES = {
    "model.layers.{layer}.self_attn.q_proj.weight": "(head 2 head_dim) hidden",
    "model.layers.{layer}.self_attn.q_proj.bias": "(head 2 head_dim)",
}
"""Every head's query, then the gate of its output."""

ATTENTION = L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | GATED_QUERIES

DELTA_NET = {
    f"{DELTA}.in_proj_qkvz.weight": "(delta_key + delta_key + delta_value + delta_value) hidden",
    f"{DELTA}.in_proj_ba.weight": "(delta_head + delta_head) hidden",
    f"{DELTA}.conv1d.weight": "(delta_key + delta_key + delta_value) 1 kernel",
    f"{DELTA}.A_log": "delta_head",
    f"{DELTA}.dt_bias": "delta_head",
    f"{DELTA}.norm.weight": "delta_dim",
    f"{DELTA}.out_proj.weight": "hidden delta_value",
}

DELTA_SIZES = {
    "delta_head": "linear_num_value_heads",
    "delta_dim": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}


def _keys(config: Any) -> int:
    size: int = config.linear_num_key_heads * config.linear_key_head_dim
    return size


def _values(config: Any) -> int:
    size: int = config.linear_num_value_heads * config.linear_value_head_dim
    return size


DERIVED = {"delta_key": _keys, "delta_value": _values}

QWEN3_NEXT = Family(
    model_type="qwen3_next",
    tensors=L.EMBEDDING | ATTENTION | DELTA_NET | EXPERTS | SHARED | DENSE_MLP | L.NORMS | L.FINAL,
    sizes={**QWEN2_MOE.sizes, **DELTA_SIZES},
    derived=DERIVED,
    active=QWEN3_MOE.active,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS
    | {
        BEFORE_MIXER: (
            *L.LINKS[BEFORE_MIXER],
            f"{DELTA}.in_proj_qkvz.weight",
            f"{DELTA}.in_proj_ba.weight",
        ),
        BEFORE_MLP: QWEN2_MOE.links[BEFORE_MLP],
    },
    norm_offset=1,
    tied=L.TIED,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    layer_kinds=(Listed("layer_types"), DenseListed()),
    held_by={
        **QWEN2_MOE.held_by,
        **dict.fromkeys(ATTENTION, "full_attention"),
        **dict.fromkeys(DELTA_NET, "linear_attention"),
    },
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
