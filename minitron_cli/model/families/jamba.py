"""Jamba: a state space (Mamba) in most layers, attention in one of a period; experts in every second layer.

What is inside a state space is not pruned, so the order of its channels does not matter here.
"""

from dataclasses import replace
from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import Periodic

LAYER = "model.layers.{layer}"
MAMBA = f"{LAYER}.mamba"
BLOCK = f"{LAYER}.feed_forward"

STATE_SPACE = {
    f"{MAMBA}.in_proj.weight": "(mamba_input + mamba_channel) hidden",
    f"{MAMBA}.conv1d.weight": "mamba_input 1 kernel",
    f"{MAMBA}.conv1d.bias": "mamba_input",
    f"{MAMBA}.x_proj.weight": "(dt_rank + state + state) mamba_input",
    f"{MAMBA}.dt_proj.weight": "mamba_channel dt_rank",
    f"{MAMBA}.dt_proj.bias": "mamba_channel",
    f"{MAMBA}.A_log": "mamba_channel state",
    f"{MAMBA}.D": "mamba_channel",
    f"{MAMBA}.dt_layernorm.weight": "dt_rank",
    f"{MAMBA}.b_layernorm.weight": "state",
    f"{MAMBA}.c_layernorm.weight": "state",
    f"{MAMBA}.out_proj.weight": "hidden mamba_channel",
}
"""Of Mamba-1; in_proj gives x and z, x_proj gives dt, B and C, each of which has a norm.

There are as many channels of x, which x_proj reads, as of the scan's output, which out_proj reads.
"""

STATE_SPACE_BIAS = {f"{MAMBA}.in_proj.bias": "(mamba_input + mamba_channel)", f"{MAMBA}.out_proj.bias": "hidden"}

MLP = {
    f"{BLOCK}.gate_proj.weight": "ffn hidden",
    f"{BLOCK}.up_proj.weight": "ffn hidden",
    f"{BLOCK}.down_proj.weight": "hidden ffn",
}

MLP_BESIDE_EXPERTS = {name: layout.replace("ffn", "mlp_ffn") for name, layout in MLP.items()}

EXPERTS = {
    f"{BLOCK}.router.weight": "expert hidden",
    f"{BLOCK}.experts.{{expert}}.gate_proj.weight": "ffn hidden",
    f"{BLOCK}.experts.{{expert}}.up_proj.weight": "ffn hidden",
    f"{BLOCK}.experts.{{expert}}.down_proj.weight": "hidden ffn",
}

NORMS = {f"{LAYER}.input_layernorm.weight": "hidden", f"{LAYER}.pre_ff_layernorm.weight": "hidden"}

FINAL = {"model.final_layernorm.weight": "hidden", "lm_head.weight": "vocab hidden"}

SIZES = L.SIZES | {"state": "mamba_d_state", "kernel": "mamba_d_conv", "dt_rank": "mamba_dt_rank"}


def channels(config: Any) -> int:
    """Channels of a state space."""
    count: int = config.mamba_expand * config.hidden_size
    return count


def mlp_width(config: Any) -> int:
    """Neurons of a layer without experts: as many as an expert has."""
    width: int = config.intermediate_size
    return width


DENSE = Family(
    model_type="jamba",
    tensors=L.EMBEDDING | L.ATTENTION | STATE_SPACE | STATE_SPACE_BIAS | MLP | NORMS | FINAL,
    sizes=SIZES,
    derived={"mamba_input": channels, "mamba_channel": channels},
    quotients={"mamba_expand": ("mamba_channel", "hidden")},
    stored_if=L.UNTIED_HEAD
    | {f"{MAMBA}.conv1d.bias": "mamba_conv_bias"}
    | dict.fromkeys(STATE_SPACE_BIAS, "mamba_proj_bias"),
    links={
        f"{LAYER}.input_layernorm.weight": (
            *L.LINKS[f"{LAYER}.input_layernorm.weight"],
            f"{MAMBA}.in_proj.weight",
        ),
        f"{LAYER}.pre_ff_layernorm.weight": (f"{BLOCK}.gate_proj.weight", f"{BLOCK}.up_proj.weight"),
        "model.final_layernorm.weight": ("lm_head.weight",),
    },
    tied=L.TIED,
    elementwise=frozenset({f"{MAMBA}.A_log"}),
    uncalled=frozenset({f"{MAMBA}.dt_proj.weight"}),
    layer_lists=(),
    layer_kinds=(Periodic("attn_layer_period", "attn_layer_offset", ("full_attention", "linear_attention")),),
    held_by=dict.fromkeys(L.ATTENTION, "full_attention")
    | dict.fromkeys(STATE_SPACE | STATE_SPACE_BIAS, "linear_attention"),
    serving=Serving(
        "derives_head_dim",
        "derives_head_dim",
        "derives_head_dim",
        llama_cpp_equal=(("mamba_channel", "2 hidden"),),
    ),
)

JAMBA = replace(
    DENSE,
    tensors=L.EMBEDDING | L.ATTENTION | STATE_SPACE | STATE_SPACE_BIAS | EXPERTS | MLP_BESIDE_EXPERTS | NORMS | FINAL,
    sizes=SIZES | {"expert": "num_experts"},
    derived={**DENSE.derived, "mlp_ffn": mlp_width},
    follows={"mlp_ffn": "ffn"},
    active={"expert": "num_experts_per_tok"},
    links={
        **DENSE.links,
        f"{LAYER}.pre_ff_layernorm.weight": (
            f"{BLOCK}.router.weight",
            f"{BLOCK}.experts.{{expert}}.gate_proj.weight",
            f"{BLOCK}.experts.{{expert}}.up_proj.weight",
            f"{BLOCK}.gate_proj.weight",
            f"{BLOCK}.up_proj.weight",
        ),
    },
    width_multiple=8,
    runtime_names={
        f"{BLOCK}.experts.gate_up_proj": (
            f"{BLOCK}.experts.{{expert}}.gate_proj.weight",
            f"{BLOCK}.experts.{{expert}}.up_proj.weight",
        ),
        f"{BLOCK}.experts.down_proj": (f"{BLOCK}.experts.{{expert}}.down_proj.weight",),
    },
    layer_kinds=(*DENSE.layer_kinds, Periodic("expert_layer_period", "expert_layer_offset", ("sparse", "dense"))),
    held_by={
        **DENSE.held_by,
        **dict.fromkeys(EXPERTS, "sparse"),
        **dict.fromkeys(MLP_BESIDE_EXPERTS, "dense"),
    },
)


def table(config: Any) -> Family:
    """The table of a model with experts, or without."""
    return JAMBA if config.num_experts > 1 else DENSE
