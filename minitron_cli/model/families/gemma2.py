"""Gemma 2: norms before and after each half of a layer that store gain - 1, an embedding scaled by sqrt(hidden)."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    MLP,
    NORMS,
    O_BIAS,
    QKV_BIAS,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.family import Correction, Family

NORMS_BEFORE_AND_AFTER = NORMS | {
    "model.layers.{layer}.pre_feedforward_layernorm.weight": "hidden",
    "model.layers.{layer}.post_feedforward_layernorm.weight": "hidden",
}

LINKS = {
    "model.layers.{layer}.input_layernorm.weight": (
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layers.{layer}.self_attn.k_proj.weight",
        "model.layers.{layer}.self_attn.v_proj.weight",
    ),
    "model.layers.{layer}.pre_feedforward_layernorm.weight": (
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
    ),
    "model.norm.weight": ("lm_head.weight",),
}

# The model multiplies embeddings by sqrt(hidden). A head that shares the corrected numbers is made good before it.
SCALED_EMBEDDING = {
    "model.embed_tokens.weight": Correction("hidden", power=-0.5),
    "model.norm.weight": Correction("hidden", power=0.5, if_tied=True),
}

GEMMA2 = Family(
    model_type="gemma2",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | MLP | NORMS_BEFORE_AND_AFTER | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD | dict.fromkeys(QKV_BIAS | O_BIAS, "attention_bias"),
    links=LINKS,
    norm_offset=1,
    tied=TIED,
    corrections=SCALED_EMBEDDING,
    hidden_is_multiple_of_heads=True,
    layer_pattern="layer_types",
)
