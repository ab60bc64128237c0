"""DeepSeek V3 and R1: attention through latents, dense layers at the bottom, experts in groups above them."""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.glm4_moe import CORRECTION as ROUTER_BIAS
from minitron_cli.model.families.glm4_moe import GLM4_MOE, SHARED, SHARED_IF, SIZES
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, RUNTIME_NAMES
from minitron_cli.model.family import Correction, Family, KnownBySize, Serving

ATTENTION = "model.layers.{layer}.self_attn"

WITHOUT_QUERY_LATENT = {f"{ATTENTION}.q_proj.weight": "(head key_dim) hidden"}

QUERY_LATENT = {
    f"{ATTENTION}.q_a_proj.weight": "q_rank hidden",
    f"{ATTENTION}.q_a_layernorm.weight": "q_rank",
    f"{ATTENTION}.q_b_proj.weight": "(head key_dim) q_rank",
}

KEY_VALUE_LATENT = {
    f"{ATTENTION}.kv_a_proj_with_mqa.weight": "(kv_rank + rope) hidden",
    f"{ATTENTION}.kv_a_layernorm.weight": "kv_rank",
    f"{ATTENTION}.kv_b_proj.weight": "(head up_dim) kv_rank",
}
"""Its rotated part is one for all heads; kv_b_proj makes each head's other part of a key, then its value."""

OUTPUT = {f"{ATTENTION}.o_proj.weight": "hidden (head head_dim)"}

QUERY_BIAS = {f"{ATTENTION}.q_a_proj.bias": "q_rank"}

BIAS = {f"{ATTENTION}.kv_a_proj_with_mqa.bias": "(kv_rank + rope)", f"{ATTENTION}.o_proj.bias": "hidden"}

LATENT_ATTENTION = WITHOUT_QUERY_LATENT | QUERY_LATENT | QUERY_BIAS | KEY_VALUE_LATENT | OUTPUT | BIAS

LATENT_SIZES = {axis: name for axis, name in L.SIZES.items() if axis != "kv_head"} | {
    "head_dim": "v_head_dim",
    "rope": "qk_rope_head_dim",
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
}
"""`head_dim` is that of values, which o_proj reads."""


def key_dim(config: Any) -> int:
    """Features of a head's query, and of its key."""
    size: int = config.qk_nope_head_dim + config.qk_rope_head_dim
    return size


def up_dim(config: Any) -> int:
    """Features that a head makes of the latent: the part of its key that is not rotated, and its value."""
    size: int = config.qk_nope_head_dim + config.v_head_dim
    return size


LATENT_DIMS = {"key_dim": key_dim, "up_dim": up_dim}

LATENT_STORED_IF = (
    dict.fromkeys(WITHOUT_QUERY_LATENT, "!q_lora_rank")
    | dict.fromkeys(QUERY_LATENT, "q_lora_rank")
    | dict.fromkeys(QUERY_BIAS, "attention_bias q_lora_rank")
    | dict.fromkeys(BIAS, "attention_bias")
)

LATENT_CORRECTIONS = {
    f"{ATTENTION}.q_a_layernorm.weight": Correction("q_rank", -0.5),
    f"{ATTENTION}.kv_a_layernorm.weight": Correction("kv_rank", -0.5),
}
"""The mean of a norm over a latent runs over fewer channels."""

LATENT_LINKS = {
    "model.layers.{layer}.input_layernorm.weight": (
        *WITHOUT_QUERY_LATENT,
        f"{ATTENTION}.q_a_proj.weight",
        f"{ATTENTION}.kv_a_proj_with_mqa.weight",
    )
}

LITE = KnownBySize(
    ({"layer": 26}, {"layer": 27}, {"layer": 48, "vocab": 128256}), "queries without a latent", lacks="q_rank"
)
"""DeepSeek V2 Lite and models like it, to llama.cpp."""

SIGMOID = {"scoring_func": "sigmoid"}
"""Kind of a router's scores, which transformers has in its code and llama.cpp's converter takes from the config."""

SERVING = Serving(llama_cpp="reads_head_dim", llama_cpp_known=LITE)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    tensors=L.EMBEDDING | LATENT_ATTENTION | EXPERTS | ROUTER_BIAS | SHARED | DENSE_MLP | L.NORMS | L.FINAL,
    sizes=LATENT_SIZES | SIZES,
    optional=frozenset({"q_rank"}),
    derived={**GLM4_MOE.derived, **LATENT_DIMS},
    follows=GLM4_MOE.follows,
    totals={"num_key_value_heads": "head"},
    active=GLM4_MOE.active,
    stored_if=L.UNTIED_HEAD | LATENT_STORED_IF | SHARED_IF,
    corrections=LATENT_CORRECTIONS,
    links={**GLM4_MOE.links, **LATENT_LINKS},
    tied=L.TIED,
    buffers=GLM4_MOE.buffers,
    groups=GLM4_MOE.groups,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    layer_kinds=GLM4_MOE.layer_kinds,
    held_by=GLM4_MOE.held_by,
    child_fields=SIGMOID,
    serving=SERVING,
)
