"""Mixtral: Mistral with a router and experts in every layer."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    LINKS,
    NORMS,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.family import Family

BLOCK = "model.layers.{layer}.block_sparse_moe"

EXPERTS = {
    f"{BLOCK}.gate.weight": "expert hidden",
    f"{BLOCK}.experts.{{expert}}.w1.weight": "ffn hidden",
    f"{BLOCK}.experts.{{expert}}.w3.weight": "ffn hidden",
    f"{BLOCK}.experts.{{expert}}.w2.weight": "hidden ffn",
}

RUNTIME_NAMES = {
    "model.layers.{layer}.mlp.gate.weight": (f"{BLOCK}.gate.weight",),
    "model.layers.{layer}.mlp.experts.gate_up_proj": (
        f"{BLOCK}.experts.{{expert}}.w1.weight",
        f"{BLOCK}.experts.{{expert}}.w3.weight",
    ),
    "model.layers.{layer}.mlp.experts.down_proj": (f"{BLOCK}.experts.{{expert}}.w2.weight",),
}

MIXTRAL = Family(
    model_type="mixtral",
    tensors=EMBEDDING | ATTENTION | EXPERTS | NORMS | FINAL,
    sizes=SIZES | {"expert": "num_local_experts"},
    active={"expert": "num_experts_per_tok"},
    stored_if=UNTIED_HEAD,
    links=LINKS
    | {
        "model.layers.{layer}.post_attention_layernorm.weight": (
            f"{BLOCK}.gate.weight",
            f"{BLOCK}.experts.{{expert}}.w1.weight",
            f"{BLOCK}.experts.{{expert}}.w3.weight",
        )
    },
    tied=TIED,
    ignored=ROTARY_BUFFER,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
)
