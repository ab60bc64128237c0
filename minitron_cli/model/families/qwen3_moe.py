"""Qwen 3 with experts: its `ffn` is the width of one expert. That of layers without experts is not pruned."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import DenseListed

MLP = "model.layers.{layer}.mlp"

EXPERTS = {
    f"{MLP}.gate.weight": "expert hidden",
    f"{MLP}.experts.{{expert}}.gate_proj.weight": "ffn hidden",
    f"{MLP}.experts.{{expert}}.up_proj.weight": "ffn hidden",
    f"{MLP}.experts.{{expert}}.down_proj.weight": "hidden ffn",
}

DENSE_MLP = {
    f"{MLP}.gate_proj.weight": "dense_ffn hidden",
    f"{MLP}.up_proj.weight": "dense_ffn hidden",
    f"{MLP}.down_proj.weight": "hidden dense_ffn",
}
"""Of layers without experts."""

SIZES = {"expert": "num_experts", "ffn": "moe_intermediate_size", "dense_ffn": "intermediate_size"}

EXPERT_READERS = (
    f"{MLP}.gate.weight",
    f"{MLP}.experts.{{expert}}.gate_proj.weight",
    f"{MLP}.experts.{{expert}}.up_proj.weight",
)
"""Matrices with experts that read the norm before the MLP."""

HELD_BY = dict.fromkeys(EXPERTS, "sparse") | dict.fromkeys(DENSE_MLP, "dense")

RUNTIME_NAMES = {
    f"{MLP}.experts.gate_up_proj": (
        f"{MLP}.experts.{{expert}}.gate_proj.weight",
        f"{MLP}.experts.{{expert}}.up_proj.weight",
    ),
    f"{MLP}.experts.down_proj": (f"{MLP}.experts.{{expert}}.down_proj.weight",),
}

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | EXPERTS | DENSE_MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES | SIZES,
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS
    | {
        "model.layers.{layer}.post_attention_layernorm.weight": (
            *EXPERT_READERS,
            f"{MLP}.gate_proj.weight",
            f"{MLP}.up_proj.weight",
        )
    },
    tied=L.TIED,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    config_aliases={"num_experts": "num_local_experts"},
    layer_kinds=(DenseListed(),),
    held_by=HELD_BY,
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
