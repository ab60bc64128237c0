"""StarCoder 2: biases everywhere, layer norms, an MLP without a gate."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.nemotron import NORM_BIAS
from minitron_cli.model.family import Family, Serving

MLP = {
    "model.layers.{layer}.mlp.c_fc.weight": "ffn hidden",
    "model.layers.{layer}.mlp.c_proj.weight": "hidden ffn",
}

MLP_BIAS = {
    "model.layers.{layer}.mlp.c_fc.bias": "ffn",
    "model.layers.{layer}.mlp.c_proj.bias": "hidden",
}

LINKS = L.LINKS | {"model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.c_fc.weight",)}

STARCODER2 = Family(
    model_type="starcoder2",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | MLP | MLP_BIAS | L.NORMS | NORM_BIAS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS | MLP_BIAS, "use_bias"),
    links=LINKS,
    norm="layer",
    tied=L.TIED,
    serving=Serving("through_transformers", "derives_head_dim"),
)
