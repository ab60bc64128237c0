"""OLMo 2: norms after attention and after the MLP, none before; one norm over all query heads, one over all keys."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, RopeV4, Serving

NORMS = {
    "model.layers.{layer}.self_attn.q_norm.weight": "(head head_dim)",
    "model.layers.{layer}.self_attn.k_norm.weight": "(kv_head head_dim)",
    "model.layers.{layer}.post_attention_layernorm.weight": "hidden",
    "model.layers.{layer}.post_feedforward_layernorm.weight": "hidden",
}

NORMED_OVER_HEADS = dict.fromkeys(
    ("head", "kv_head"), "q_norm takes the mean over all heads, so without some the others change"
)

OLMO2 = Family(
    model_type="olmo2",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links={"model.norm.weight": ("lm_head.weight",)},
    tied=L.TIED,
    rope_v4=RopeV4(scaling={"type": "rope_type", "factor": "factor"}),  # version 4 takes no other field
    not_prunable=NORMED_OVER_HEADS,
    serving=Serving("through_transformers", "derives_head_dim"),
)
