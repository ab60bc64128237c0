"""OLMo 1: Llama's matrices, with layer norms that have neither weight nor bias."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

OLMO = Family(
    model_type="olmo",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | {"lm_head.weight": "vocab hidden"},
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    norm="layer",
    norms_without_weight=(
        "model.layers.{layer}.input_layernorm",
        "model.layers.{layer}.post_attention_layernorm",
        "model.norm",
    ),
    tied=L.TIED,
    serving=Serving(llama_cpp="derives_head_dim"),
)
