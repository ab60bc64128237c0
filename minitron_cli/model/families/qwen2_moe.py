"""Qwen 1.5 and 2 MoE: experts, beside one that all tokens use, whose width is not pruned; nor is a dense layer's."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, HELD_BY, MLP, QWEN3_MOE, RUNTIME_NAMES, SIZES
from minitron_cli.model.family import Family, Serving

SHARED = {
    f"{MLP}.shared_expert.gate_proj.weight": "own_ffn hidden",
    f"{MLP}.shared_expert.up_proj.weight": "own_ffn hidden",
    f"{MLP}.shared_expert.down_proj.weight": "hidden own_ffn",
    f"{MLP}.shared_expert_gate.weight": "1 hidden",
}

BEFORE_MLP = "model.layers.{layer}.post_attention_layernorm.weight"

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | EXPERTS | SHARED | DENSE_MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES | SIZES | {"own_ffn": "shared_expert_intermediate_size"},
    active=QWEN3_MOE.active,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS, "qkv_bias"),
    links=L.LINKS
    | {
        BEFORE_MLP: (
            *QWEN3_MOE.links[BEFORE_MLP],
            f"{MLP}.shared_expert.gate_proj.weight",
            f"{MLP}.shared_expert.up_proj.weight",
            f"{MLP}.shared_expert_gate.weight",
        )
    },
    tied=L.TIED,
    layer_marks=("max_window_layers",),
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    layer_kinds=QWEN3_MOE.layer_kinds,
    held_by=HELD_BY | dict.fromkeys(SHARED, "sparse"),
    serving=Serving("derives_head_dim", "derives_head_dim", "derives_head_dim"),
)
