"""Granite MoE: Granite 3's multipliers, with experts in one tensor a layer, gate above up."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

BLOCK = "model.layers.{layer}.block_sparse_moe"

EXPERTS = {
    f"{BLOCK}.router.layer.weight": "expert hidden",
    f"{BLOCK}.input_linear.weight[{{expert}}]": "(ffn + ffn) hidden",
    f"{BLOCK}.output_linear.weight[{{expert}}]": "hidden ffn",
}

GRANITEMOE = Family(
    model_type="granitemoe",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | EXPERTS | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_local_experts"},
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS
    | {
        "model.layers.{layer}.post_attention_layernorm.weight": (
            f"{BLOCK}.router.layer.weight",
            f"{BLOCK}.input_linear.weight[{{expert}}]",
        )
    },
    residual_multiplier="residual_multiplier",
    tied=L.TIED,
    width_multiple=8,
    runtime_names={
        f"{BLOCK}.router.weight": (f"{BLOCK}.router.layer.weight",),
        f"{BLOCK}.experts.gate_up_proj": (f"{BLOCK}.input_linear.weight[{{expert}}]",),
        f"{BLOCK}.experts.down_proj": (f"{BLOCK}.output_linear.weight[{{expert}}]",),
    },
    serving=Serving(llama_cpp="derives_head_dim", transformers_4="derives_head_dim"),
)
