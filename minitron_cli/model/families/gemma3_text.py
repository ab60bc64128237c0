"""Gemma 3, text only: Gemma 2 with a norm over every query and key head, and a rotary base for each kind of layer."""

from minitron_cli.model.families.gemma2 import LINKS, NORMS_BEFORE_AND_AFTER, SCALED_EMBEDDING
from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    MLP,
    O_BIAS,
    QKV_BIAS,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.family import Family, RopeV4

GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | QK_NORM | MLP | NORMS_BEFORE_AND_AFTER | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD | dict.fromkeys(QKV_BIAS | O_BIAS, "attention_bias"),
    links=LINKS,
    norm_offset=1,
    tied=TIED,
    corrections=SCALED_EMBEDDING,
    rope_v4=RopeV4(
        fields={"rope_theta": "full_attention.rope_theta", "rope_local_base_freq": "sliding_attention.rope_theta"},
        scaled="full_attention",
    ),
    hidden_is_multiple_of_heads=True,
    layer_pattern="layer_types",
)
