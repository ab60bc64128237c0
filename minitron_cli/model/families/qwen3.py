"""Qwen 3 (dense): a norm over every query and key head, one scale shared by all heads."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

QK_NORM = {
    "model.layers.{layer}.self_attn.q_norm.weight": "head_dim",
    "model.layers.{layer}.self_attn.k_norm.weight": "head_dim",
}

QWEN3 = Family(
    model_type="qwen3",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS,
    tied=L.TIED,
    layer_marks=("max_window_layers",),
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
