"""DeepSeek V2: V3 without a bias in the choice of experts, and without query latents in V2 Lite."""

from typing import Any

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.deepseek_v3 import DEEPSEEK_V3, LATENT_ATTENTION, LATENT_DIMS, SERVING
from minitron_cli.model.families.ernie4_5_moe import DENSE_BIAS, SHARED_BIAS
from minitron_cli.model.families.glm4_moe import SHARED, shared_width
from minitron_cli.model.families.qwen3_moe import DENSE_MLP, EXPERTS, HELD_BY, RUNTIME_NAMES
from minitron_cli.model.family import Family

MLP_BIAS = DENSE_BIAS | SHARED_BIAS

SIZES = {axis: name for axis, name in DEEPSEEK_V3.sizes.items() if axis not in ("expert_group", "chosen_group")}


def groups(config: Any) -> int:
    """Groups of experts among which a router chooses first; one where it chooses among all experts."""
    count: int = config.n_group if config.topk_method == "group_limited_greedy" else 1
    return count


def chosen_groups(config: Any) -> int:
    """Groups that a router chooses."""
    count: int = config.topk_group if config.topk_method == "group_limited_greedy" else 1
    return count


DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    tensors=L.EMBEDDING | LATENT_ATTENTION | EXPERTS | SHARED | DENSE_MLP | MLP_BIAS | L.NORMS | L.FINAL,
    sizes=SIZES,
    optional=DEEPSEEK_V3.optional,
    derived=LATENT_DIMS | {"shared_ffn": shared_width, "expert_group": groups, "chosen_group": chosen_groups},
    follows=DEEPSEEK_V3.follows,
    totals=DEEPSEEK_V3.totals,
    active=DEEPSEEK_V3.active,
    stored_if={
        **DEEPSEEK_V3.stored_if,
        **dict.fromkeys(DENSE_BIAS, "mlp_bias"),
        **dict.fromkeys(SHARED_BIAS, "mlp_bias n_shared_experts"),
    },
    corrections=DEEPSEEK_V3.corrections,
    links=DEEPSEEK_V3.links,
    tied=L.TIED,
    hidden_is_multiple_of_heads=True,
    groups=DEEPSEEK_V3.groups,
    multiples={"kv_rank": 2},  # it takes the rotated part, which stands behind the latent, for complex numbers
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    layer_kinds=DEEPSEEK_V3.layer_kinds,
    held_by=HELD_BY | dict.fromkeys(SHARED | SHARED_BIAS, "sparse") | dict.fromkeys(DENSE_BIAS, "dense"),
    # llama.cpp rates a group of experts by the best two of it, as V3 does, and V2 by the best one
    serving=SERVING._replace(llama_cpp_equal=(("expert_group", "1"),)),
)
