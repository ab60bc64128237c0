"""LFM2: short convolutions in most layers, attention in the others; a gated MLP in all."""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import Listed

LAYER = "model.layers.{layer}"

ATTENTION = {
    f"{LAYER}.self_attn.q_proj.weight": "(head head_dim) hidden",
    f"{LAYER}.self_attn.k_proj.weight": "(kv_head head_dim) hidden",
    f"{LAYER}.self_attn.v_proj.weight": "(kv_head head_dim) hidden",
    f"{LAYER}.self_attn.out_proj.weight": "hidden (head head_dim)",
    f"{LAYER}.self_attn.q_layernorm.weight": "head_dim",
    f"{LAYER}.self_attn.k_layernorm.weight": "head_dim",
}

CONVOLUTION = {
    f"{LAYER}.conv.in_proj.weight": "(conv_channel + conv_channel + conv_channel) hidden",
    f"{LAYER}.conv.conv.weight": "conv_channel 1 kernel",
    f"{LAYER}.conv.out_proj.weight": "hidden conv_channel",
}

CONVOLUTION_BIAS = {
    f"{LAYER}.conv.in_proj.bias": "(conv_channel + conv_channel + conv_channel)",
    f"{LAYER}.conv.conv.bias": "conv_channel",
    f"{LAYER}.conv.out_proj.bias": "hidden",
}

MLP = {
    f"{LAYER}.feed_forward.w1.weight": "ffn hidden",
    f"{LAYER}.feed_forward.w3.weight": "ffn hidden",
    f"{LAYER}.feed_forward.w2.weight": "hidden ffn",
}

NORMS = {f"{LAYER}.operator_norm.weight": "hidden", f"{LAYER}.ffn_norm.weight": "hidden"}

FINAL = {"model.embedding_norm.weight": "hidden", "lm_head.weight": "vocab hidden"}

READERS_OF_OPERATOR_NORM = (
    f"{LAYER}.self_attn.q_proj.weight",
    f"{LAYER}.self_attn.k_proj.weight",
    f"{LAYER}.self_attn.v_proj.weight",
    f"{LAYER}.conv.in_proj.weight",
)

HIDDEN = (
    "a short convolution has as many channels as the residual stream, and transformers takes the size of both from one "
    "field, while its channels are not ranked"
)

KINDS = Listed("layer_types", {"full_attn_idxs": "full_attention"})


def width(config: Any) -> int:
    """Neurons of a layer, which transformers derives from the field unless it is told not to."""
    size: int = config.intermediate_size
    if not config.block_auto_adjust_ff_dim:
        return size
    size = int(2 * size / 3)
    if config.block_ffn_dim_multiplier is None:
        return size
    step: int = config.block_multiple_of
    return step * -(-int(config.block_ffn_dim_multiplier * size) // step)


LFM2 = Family(
    model_type="lfm2",
    tensors=L.EMBEDDING | ATTENTION | CONVOLUTION | CONVOLUTION_BIAS | MLP | NORMS | FINAL,
    sizes=L.SIZES | {"kernel": "conv_L_cache"},
    derived={"ffn": width, "conv_channel": lambda config: config.hidden_size},
    child_fields={"block_auto_adjust_ff_dim": False},
    config_aliases={"intermediate_size": "block_ff_dim"},
    stored_if=L.UNTIED_HEAD | dict.fromkeys(CONVOLUTION_BIAS, "conv_bias"),
    links={
        f"{LAYER}.operator_norm.weight": READERS_OF_OPERATOR_NORM,
        f"{LAYER}.ffn_norm.weight": (f"{LAYER}.feed_forward.w1.weight", f"{LAYER}.feed_forward.w3.weight"),
        "model.embedding_norm.weight": ("lm_head.weight",),
    },
    tied=L.TIED,
    not_prunable={"hidden": HIDDEN},
    layer_kinds=(KINDS,),
    held_by=dict.fromkeys(ATTENTION, "full_attention") | dict.fromkeys(CONVOLUTION | CONVOLUTION_BIAS, "conv"),
    serving=Serving("derives_head_dim", "derives_head_dim"),
)
