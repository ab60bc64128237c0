"""Hunyuan (dense): Llama with a norm over every query and key head, after the rotation."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

QK_NORM = {
    "model.layers.{layer}.self_attn.query_layernorm.weight": "head_dim",
    "model.layers.{layer}.self_attn.key_layernorm.weight": "head_dim",
}

HUNYUAN_V1_DENSE = Family(
    model_type="hunyuan_v1_dense",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS,
    tied=L.TIED,
    serving=Serving(llama_cpp="reads_head_dim"),
)
