"""Gemma 3, text only: Gemma 2 with a norm over every query and key head, and a rotary base for each kind of layer."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.gemma2 import LINKS, NORMS_BEFORE_AND_AFTER, SCALED_EMBEDDING, known_27b
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.family import Family, RopeV4, Serving

GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | L.MLP | NORMS_BEFORE_AND_AFTER | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=LINKS,
    norm_offset=1,
    tied=L.TIED,
    corrections=SCALED_EMBEDDING,
    rope_v4=RopeV4(
        fields={"rope_theta": "full_attention.rope_theta", "rope_local_base_freq": "sliding_attention.rope_theta"},
        scaled="full_attention",
    ),
    hidden_is_multiple_of_heads=True,
    layer_pattern="layer_types",
    serving=Serving("reads_head_dim", "reads_head_dim", llama_cpp_period=6, llama_cpp_known=known_27b(62)),
)
