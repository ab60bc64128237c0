"""Qwen 3.5 (dense): a Gated DeltaNet in most layers, attention with a gate in the others; a gated MLP in all."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen3_next import (
    ATTENTION,
    BEFORE_MIXER,
    DELTA,
    DELTA_NET,
    DELTA_SIZES,
    DERIVED,
    QWEN3_NEXT,
)
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import Listed

PROJECTIONS = {
    f"{DELTA}.in_proj_qkv.weight": "(delta_key + delta_key + delta_value) hidden",
    f"{DELTA}.in_proj_z.weight": "delta_value hidden",
    f"{DELTA}.in_proj_b.weight": "delta_head hidden",
    f"{DELTA}.in_proj_a.weight": "delta_head hidden",
}

SPLIT_DELTA_NET = PROJECTIONS | {name: layout for name, layout in DELTA_NET.items() if ".in_proj_" not in name}

QWEN3_5_TEXT = Family(
    model_type="qwen3_5_text",
    tensors=L.EMBEDDING | ATTENTION | SPLIT_DELTA_NET | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES | DELTA_SIZES,
    derived=DERIVED,
    stored_if=QWEN3_NEXT.stored_if,
    links=L.LINKS | {BEFORE_MIXER: (*L.LINKS[BEFORE_MIXER], *PROJECTIONS)},
    norm_offset=1,
    tied=L.TIED,
    layer_kinds=(Listed("layer_types"),),
    held_by=dict.fromkeys(ATTENTION, "full_attention") | dict.fromkeys(SPLIT_DELTA_NET, "linear_attention"),
    serving=Serving(llama_cpp="reads_head_dim"),
)
