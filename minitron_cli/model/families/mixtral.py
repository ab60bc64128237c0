"""Mixtral: Mistral with a router and experts in every layer."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

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
    tensors=L.EMBEDDING | L.ATTENTION | EXPERTS | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_local_experts"},
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD,
    links=L.LINKS
    | {
        "model.layers.{layer}.post_attention_layernorm.weight": (
            f"{BLOCK}.gate.weight",
            f"{BLOCK}.experts.{{expert}}.w1.weight",
            f"{BLOCK}.experts.{{expert}}.w3.weight",
        )
    },
    tied=L.TIED,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
