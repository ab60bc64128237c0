"""Nemotron 3 and 4, Minitron: an MLP without a gate, layer norms with a bias that store gain - 1."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    NORMS,
    O_BIAS,
    QKV_BIAS,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.families.llama import LINKS as GATED_LINKS
from minitron_cli.model.family import Family

NORM_BIAS = {
    "model.layers.{layer}.input_layernorm.bias": "hidden",
    "model.layers.{layer}.post_attention_layernorm.bias": "hidden",
    "model.norm.bias": "hidden",
}

PLAIN_MLP = {
    "model.layers.{layer}.mlp.up_proj.weight": "ffn hidden",
    "model.layers.{layer}.mlp.down_proj.weight": "hidden ffn",
}

PLAIN_MLP_BIAS = {
    "model.layers.{layer}.mlp.up_proj.bias": "ffn",
    "model.layers.{layer}.mlp.down_proj.bias": "hidden",
}

LINKS = GATED_LINKS | {
    "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.up_proj.weight",)
}

NEMOTRON = Family(
    model_type="nemotron",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | PLAIN_MLP | PLAIN_MLP_BIAS | NORMS | NORM_BIAS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD
    | dict.fromkeys(QKV_BIAS | O_BIAS, "attention_bias")
    | dict.fromkeys(PLAIN_MLP_BIAS, "mlp_bias"),
    links=LINKS,
    norm="layer",
    norm_offset=1,
    tied=TIED,
)
