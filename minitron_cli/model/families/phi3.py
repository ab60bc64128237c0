"""Phi 3 and 4: query, key and value in one matrix, gate and up in another."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, RopeV4, Serving

LAYER = {
    "model.layers.{layer}.self_attn.qkv_proj.weight": "(head head_dim + kv_head head_dim + kv_head head_dim) hidden",
    "model.layers.{layer}.self_attn.o_proj.weight": "hidden (head head_dim)",
    "model.layers.{layer}.mlp.gate_up_proj.weight": "(ffn + ffn) hidden",
    "model.layers.{layer}.mlp.down_proj.weight": "hidden ffn",
}

LINKS = {
    "model.layers.{layer}.input_layernorm.weight": ("model.layers.{layer}.self_attn.qkv_proj.weight",),
    "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.gate_up_proj.weight",),
    "model.norm.weight": ("lm_head.weight",),
}

PHI3 = Family(
    model_type="phi3",
    tensors=L.EMBEDDING | LAYER | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD,
    links=LINKS,
    tied=L.TIED,
    rope_v4=RopeV4(  # version 4 takes no other field
        scaling={"type": "rope_type", "short_factor": "short_factor", "long_factor": "long_factor"}
    ),
    head_dim_table="rope_parameters.short_factor",
    serving=Serving("unknown", "derives_head_dim"),
)
