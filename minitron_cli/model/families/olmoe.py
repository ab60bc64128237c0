"""OLMoE: Llama with experts in every layer, one norm over all query heads, one over all keys."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.olmo2 import NORMED_OVER_HEADS
from minitron_cli.model.families.qwen3_moe import EXPERT_READERS, EXPERTS, QWEN3_MOE, RUNTIME_NAMES
from minitron_cli.model.family import Family, Serving

QK_NORM = {
    "model.layers.{layer}.self_attn.q_norm.weight": "(head head_dim)",
    "model.layers.{layer}.self_attn.k_norm.weight": "(kv_head head_dim)",
}

OLMOE = Family(
    model_type="olmoe",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | QK_NORM | EXPERTS | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_experts"},
    active=QWEN3_MOE.active,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links={**QWEN3_MOE.links, "model.layers.{layer}.post_attention_layernorm.weight": EXPERT_READERS},
    tied=L.TIED,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    not_prunable=NORMED_OVER_HEADS
    | {"hidden": "q_norm over all heads has hidden as its length, so hidden stays with the heads"},
    serving=Serving("derives_head_dim", "derives_head_dim"),
)
