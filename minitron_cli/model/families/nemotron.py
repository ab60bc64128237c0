"""Nemotron 3 and 4, Minitron: an MLP without a gate, layer norms with a bias that store gain - 1."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

NORM_BIAS = {
    "model.layers.{layer}.input_layernorm.bias": "hidden",
    "model.layers.{layer}.post_attention_layernorm.bias": "hidden",
    "model.norm.bias": "hidden",
}

NORMS = L.NORMS | NORM_BIAS

PLAIN_MLP = {
    "model.layers.{layer}.mlp.up_proj.weight": "ffn hidden",
    "model.layers.{layer}.mlp.down_proj.weight": "hidden ffn",
}

PLAIN_MLP_BIAS = {
    "model.layers.{layer}.mlp.up_proj.bias": "ffn",
    "model.layers.{layer}.mlp.down_proj.bias": "hidden",
}

LINKS = L.LINKS | {"model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.up_proj.weight",)}

NEMOTRON = Family(
    model_type="nemotron",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | PLAIN_MLP | PLAIN_MLP_BIAS | NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias")
    | dict.fromkeys(PLAIN_MLP_BIAS, "mlp_bias"),
    links=LINKS,
    norm="layer",
    norm_offset=1,
    tied=L.TIED,
    serving=Serving("reads_head_dim", "derives_head_dim"),
)
