"""Mellum 2: Qwen 3 MoE whose layers attend to a window or to all tokens, with a rotary base for each kind."""

from minitron_cli.model.families.qwen3_moe import QWEN3_MOE
from minitron_cli.model.family import Family, Serving
from minitron_cli.model.layer_kinds import Listed

MELLUM = Family(
    model_type="mellum",
    tensors=QWEN3_MOE.tensors,
    sizes=QWEN3_MOE.sizes,
    active=QWEN3_MOE.active,
    stored_if=QWEN3_MOE.stored_if,
    links=QWEN3_MOE.links,
    tied=QWEN3_MOE.tied,
    layer_lists=("layer_types", "mlp_layer_types"),
    width_multiple=8,
    runtime_names=QWEN3_MOE.runtime_names,
    config_aliases=QWEN3_MOE.config_aliases,
    layer_kinds=(Listed("mlp_layer_types"),),
    held_by=QWEN3_MOE.held_by,
    serving=Serving(llama_cpp="reads_head_dim"),
)
