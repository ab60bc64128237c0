"""ERNIE 4.5 with experts: dense layers at the bottom, then experts, beside experts that all tokens use."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.glm4_moe import BEFORE_MLP, BEFORE_MLP_READERS, SHARED
from minitron_cli.model.families.phimoe import HEAD_BIAS
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, HELD_BY, MLP, RUNTIME_NAMES
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import SparseBetween

CORRECTION = {f"{MLP}.moe_statics.e_score_correction_bias": "1 expert"}
"""Added to a router's probabilities when experts are chosen; no gradient reaches it."""

SHARED_BIAS = {
    f"{MLP}.shared_experts.gate_proj.bias": "shared_ffn",
    f"{MLP}.shared_experts.up_proj.bias": "shared_ffn",
    f"{MLP}.shared_experts.down_proj.bias": "hidden",
}

DENSE_BIAS = {
    f"{MLP}.gate_proj.bias": "dense_ffn",
    f"{MLP}.up_proj.bias": "dense_ffn",
    f"{MLP}.down_proj.bias": "hidden",
}

BIASES = L.QKV_BIAS | L.O_BIAS | SHARED_BIAS | DENSE_BIAS | HEAD_BIAS

ERNIE4_5_MOE = Family(
    model_type="ernie4_5_moe",
    tensors=L.EMBEDDING | L.ATTENTION | EXPERTS | CORRECTION | SHARED | DENSE_MLP | BIASES | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "moe_num_experts", "ffn": "moe_intermediate_size", "dense_ffn": "intermediate_size"},
    derived={"shared_ffn": lambda config: config.moe_intermediate_size * config.moe_num_shared_experts},
    follows={"shared_ffn": "ffn"},
    active={"expert": "moe_k"},
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(BIASES, "use_bias")
    | dict.fromkeys(SHARED, "moe_num_shared_experts")
    | dict.fromkeys(SHARED_BIAS, "use_bias moe_num_shared_experts"),
    links=L.LINKS | {BEFORE_MLP: BEFORE_MLP_READERS},
    tied=L.TIED,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES | {f"{MLP}.gate.moe_statics.e_score_correction_bias": (*CORRECTION,)},
    layer_kinds=(SparseBetween("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),),
    held_by=HELD_BY | dict.fromkeys(CORRECTION | SHARED | SHARED_BIAS, "sparse") | dict.fromkeys(DENSE_BIAS, "dense"),
    # its converter takes the width of the experts that all tokens use from that of dense layers
    serving=Serving("reads_head_dim", "reads_head_dim", llama_cpp_equal=(("shared_ffn kv_head", "dense_ffn"),)),
)
