"""GLM 4.5: dense layers at the bottom, experts above them, beside experts that all tokens use."""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, HELD_BY, MLP, QWEN3_MOE, RUNTIME_NAMES
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import DenseBelow

SHARED = {
    f"{MLP}.shared_experts.gate_proj.weight": "shared_ffn hidden",
    f"{MLP}.shared_experts.up_proj.weight": "shared_ffn hidden",
    f"{MLP}.shared_experts.down_proj.weight": "hidden shared_ffn",
}

CORRECTION = {f"{MLP}.gate.e_score_correction_bias": "expert"}
"""Added to a router's scores when experts are chosen."""

BEFORE_MLP = "model.layers.{layer}.post_attention_layernorm.weight"

BEFORE_MLP_READERS = (
    *QWEN3_MOE.links[BEFORE_MLP],
    f"{MLP}.shared_experts.gate_proj.weight",
    f"{MLP}.shared_experts.up_proj.weight",
)

SIZES = {
    "expert": "n_routed_experts",
    "expert_group": "n_group",
    "chosen_group": "topk_group",
    "ffn": "moe_intermediate_size",
    "dense_ffn": "intermediate_size",
}

RATED = 2
"""Experts of a group whose scores rate it."""


SHARED_IF = dict.fromkeys(SHARED, "n_shared_experts")


def shared_width(config: Any) -> int:
    """Neurons of the experts that all tokens use, which are one MLP; 0 if there are none."""
    width: int = config.moe_intermediate_size * (config.n_shared_experts or 0)
    return width


GLM4_MOE = Family(
    model_type="glm4_moe",
    tensors=L.EMBEDDING
    | L.ATTENTION
    | L.QKV_BIAS
    | QK_NORM
    | EXPERTS
    | CORRECTION
    | SHARED
    | DENSE_MLP
    | L.NORMS
    | L.FINAL,
    sizes=L.SIZES | SIZES,
    derived={"shared_ffn": shared_width, "rated_expert": lambda config: RATED},
    follows={"shared_ffn": "ffn"},
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS, "attention_bias")
    | dict.fromkeys(QK_NORM, "use_qk_norm")
    | SHARED_IF,
    links=L.LINKS | {BEFORE_MLP: BEFORE_MLP_READERS},
    tied=L.TIED,
    buffers=frozenset(CORRECTION),
    groups={"expert": "expert_group"},
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    layer_kinds=(DenseBelow("first_k_dense_replace"),),
    held_by=HELD_BY | dict.fromkeys(CORRECTION | SHARED, "sparse"),
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
