"""Gemma 2: norms before and after each half of a layer that store gain - 1, an embedding scaled by sqrt(hidden)."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Correction, Family, KnownBySize, Serving

NORMS_BEFORE_AND_AFTER = L.NORMS | {
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

# The model multiplies embeddings by sqrt(hidden), which pruning changes, so the embedding is divided by the change. A
# tied head shares the corrected numbers, and the norm before it takes the correction back.
SCALED_EMBEDDING = {
    "model.embed_tokens.weight": Correction("hidden", power=-0.5),
    "model.norm.weight": Correction("hidden", power=0.5, if_tied=True),
}


def known_27b(layers: int) -> KnownBySize:
    """The model of 27B, to llama.cpp, which takes `query_pre_attn_scalar` to be head_dim in all others."""
    return KnownBySize(({"layer": layers},), "attention scaled by hidden / head", keeps=("hidden", "head"))


GEMMA2 = Family(
    model_type="gemma2",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | NORMS_BEFORE_AND_AFTER | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=LINKS,
    norm_offset=1,
    tied=L.TIED,
    corrections=SCALED_EMBEDDING,
    hidden_is_multiple_of_heads=True,
    layer_pattern="layer_types",
    serving=Serving("reads_head_dim", "reads_head_dim", llama_cpp_period=2, llama_cpp_known=known_27b(46)),
)
