"""Text model of Llama 4: experts in one tensor beside one that all tokens use; some layers without positions."""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, KnownBySize, Serving
from minitron_cli.model.layer_kinds import Listed, Marked, SparseListed

BLOCK = "model.layers.{layer}.feed_forward"

EXPERTS = {
    f"{BLOCK}.router.weight": "expert hidden",
    f"{BLOCK}.experts.gate_up_proj[{{expert}}]": "hidden (ffn + ffn)",
    f"{BLOCK}.experts.down_proj[{{expert}}]": "ffn hidden",
    f"{BLOCK}.shared_expert.gate_proj.weight": "shared_ffn hidden",
    f"{BLOCK}.shared_expert.up_proj.weight": "shared_ffn hidden",
    f"{BLOCK}.shared_expert.down_proj.weight": "hidden shared_ffn",
}

DENSE = {
    f"{BLOCK}.gate_proj.weight": "dense_ffn hidden",
    f"{BLOCK}.up_proj.weight": "dense_ffn hidden",
    f"{BLOCK}.down_proj.weight": "hidden dense_ffn",
}

READERS = (
    f"{BLOCK}.router.weight",
    f"{BLOCK}.experts.gate_up_proj[{{expert}}]",
    f"{BLOCK}.shared_expert.gate_proj.weight",
    f"{BLOCK}.shared_expert.up_proj.weight",
    f"{BLOCK}.gate_proj.weight",
    f"{BLOCK}.up_proj.weight",
)


def shared_width(config: Any) -> int:
    """Neurons of the expert that all tokens use: as many as every other has."""
    width: int = config.intermediate_size
    return width


MAVERICK = KnownBySize(({"expert": 128},), "no norm over queries and keys")

LLAMA4_TEXT = Family(
    model_type="llama4_text",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | EXPERTS | DENSE | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_local_experts", "dense_ffn": "intermediate_size_mlp"},
    derived={"shared_ffn": shared_width},
    follows={"shared_ffn": "ffn"},
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS | {"model.layers.{layer}.post_attention_layernorm.weight": READERS},
    tied=L.TIED,
    transposed=(f"{BLOCK}.experts.gate_up_proj[{{expert}}]", f"{BLOCK}.experts.down_proj[{{expert}}]"),
    runtime_names={t.removesuffix("[{expert}]"): (t,) for t in EXPERTS if t.endswith("[{expert}]")},
    layer_kinds=(
        SparseListed("moe_layers"),
        Marked("no_rope_layers", ("unrotated", "rotary")),
        Listed("layer_types"),
    ),
    held_by=dict.fromkeys(EXPERTS, "sparse") | dict.fromkeys(DENSE, "dense"),
    serving=Serving(llama_cpp="reads_head_dim", llama_cpp_known=MAVERICK, llama_cpp_numbers_kinds=True),
)
