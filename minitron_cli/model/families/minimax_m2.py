"""MiniMax M2: Mixtral with a bias that takes part in the choice of experts, and norms over all heads."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.deepseek_v3 import SIGMOID
from minitron_cli.model.families.mixtral import BLOCK, EXPERTS, MIXTRAL, RUNTIME_NAMES
from minitron_cli.model.families.olmo2 import NORMED_OVER_HEADS
from minitron_cli.model.families.olmoe import QK_NORM
from minitron_cli.model.family import Family, Serving

ROUTER_BIAS = f"{BLOCK}.e_score_correction_bias"

MINIMAX_M2 = Family(
    model_type="minimax_m2",
    tensors=L.EMBEDDING | L.ATTENTION | QK_NORM | {ROUTER_BIAS: "expert"} | EXPERTS | L.NORMS | L.FINAL,
    sizes=MIXTRAL.sizes,
    active=MIXTRAL.active,
    stored_if=MIXTRAL.stored_if,
    links=MIXTRAL.links,
    tied=MIXTRAL.tied,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES | {"model.layers.{layer}.mlp.e_score_correction_bias": (ROUTER_BIAS,)},
    buffers=frozenset({ROUTER_BIAS}),
    not_prunable=NORMED_OVER_HEADS,
    child_fields=SIGMOID,
    serving=Serving(llama_cpp="reads_head_dim"),
)
