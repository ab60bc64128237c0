"""StarCoder 2: biases everywhere, layer norms, an MLP without a gate."""

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
from minitron_cli.model.families.nemotron import NORM_BIAS
from minitron_cli.model.family import Family

MLP = {
    "model.layers.{layer}.mlp.c_fc.weight": "ffn hidden",
    "model.layers.{layer}.mlp.c_proj.weight": "hidden ffn",
}

MLP_BIAS = {
    "model.layers.{layer}.mlp.c_fc.bias": "ffn",
    "model.layers.{layer}.mlp.c_proj.bias": "hidden",
}

LINKS = GATED_LINKS | {
    "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.c_fc.weight",)
}

STARCODER2 = Family(
    model_type="starcoder2",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | MLP | MLP_BIAS | NORMS | NORM_BIAS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD | dict.fromkeys(QKV_BIAS | O_BIAS | MLP_BIAS, "use_bias"),
    links=LINKS,
    norm="layer",
    tied=TIED,
)
