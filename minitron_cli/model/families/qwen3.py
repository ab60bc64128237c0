"""Qwen 3 (dense): a norm over every query and key head, one scale shared by all heads."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    LINKS,
    MLP,
    NORMS,
    O_BIAS,
    QKV_BIAS,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.family import Family

QK_NORM = {
    "model.layers.{layer}.self_attn.q_norm.weight": "head_dim",
    "model.layers.{layer}.self_attn.k_norm.weight": "head_dim",
}

QWEN3 = Family(
    model_type="qwen3",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | QK_NORM | MLP | NORMS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD | dict.fromkeys(QKV_BIAS | O_BIAS, "attention_bias"),
    links=LINKS,
    tied=TIED,
    layer_marks=("max_window_layers",),
)
