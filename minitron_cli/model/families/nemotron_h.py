"""Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano: a layer is a state space (Mamba-2), attention, an MLP or experts.

Neither the MLP nor an expert has a gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import llama as L
from minitron_cli.model.families.glm4_moe import RATED
from minitron_cli.model.families.glm4_moe import SIZES as GLM_SIZES
from minitron_cli.model.family import Correction, Family, Serving

LAYER = "model.layers.{layer}"
MIXER = f"{LAYER}.mixer"

EMBEDDING = {"model.embeddings.weight": "vocab hidden"}

CONVOLVED = "(mamba_head mamba_dim + mamba_group state + mamba_group state)"

PROJECTED = "(mamba_head mamba_dim + mamba_head mamba_dim + mamba_group state + mamba_group state + mamba_head)"
"""Gates z, inputs x, B and C of every group, and dt."""

STATE_SPACE = {
    f"{MIXER}.in_proj.weight": f"{PROJECTED} hidden",
    f"{MIXER}.conv1d.weight": f"{CONVOLVED} 1 kernel",
    f"{MIXER}.conv1d.bias": CONVOLVED,
    f"{MIXER}.A_log": "mamba_head",
    f"{MIXER}.D": "mamba_head",
    f"{MIXER}.dt_bias": "mamba_head",
    f"{MIXER}.norm.weight": "(mamba_head mamba_dim)",
    f"{MIXER}.out_proj.weight": "hidden (mamba_head mamba_dim)",
}

STATE_SPACE_BIAS = {f"{MIXER}.in_proj.bias": PROJECTED, f"{MIXER}.out_proj.bias": "hidden"}

ATTENTION = {name.replace(".self_attn.", ".mixer."): layout for name, layout in L.ATTENTION.items()}

MLP = {f"{MIXER}.up_proj.weight": "ffn hidden", f"{MIXER}.down_proj.weight": "hidden ffn"}

MLP_BIAS = {f"{MIXER}.up_proj.bias": "ffn", f"{MIXER}.down_proj.bias": "hidden"}

EXPERTS = {
    f"{MIXER}.gate.weight": "expert hidden",
    f"{MIXER}.gate.e_score_correction_bias": "expert",
    f"{MIXER}.experts.{{expert}}.up_proj.weight": "ffn hidden",
    f"{MIXER}.experts.{{expert}}.down_proj.weight": "hidden ffn",
    f"{MIXER}.shared_experts.up_proj.weight": "own_ffn hidden",
    f"{MIXER}.shared_experts.down_proj.weight": "hidden own_ffn",
}

SHARED_BIAS = {f"{MIXER}.shared_experts.up_proj.bias": "own_ffn", f"{MIXER}.shared_experts.down_proj.bias": "hidden"}

NORMS = {f"{LAYER}.norm.weight": "hidden"}

FINAL = {"model.norm_f.weight": "hidden", "lm_head.weight": "vocab hidden"}

SIZES = {
    "mamba_head": "mamba_num_heads",
    "mamba_dim": "mamba_head_dim",
    "mamba_group": "n_groups",
    "state": "ssm_state_size",
    "kernel": "conv_kernel",
}

READERS = (
    f"{MIXER}.in_proj.weight",
    f"{MIXER}.q_proj.weight",
    f"{MIXER}.k_proj.weight",
    f"{MIXER}.v_proj.weight",
    f"{MIXER}.up_proj.weight",
)
"""Matrices that read a layer's norm; every layer holds some."""

LETTERS: Mapping[str, str] = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


@dataclass(frozen=True)
class Spelled:
    """A list with the kind of every layer, which readers such as llama.cpp expect as one letter each."""

    field: str = "layers_block_type"
    pattern: str = "hybrid_override_pattern"

    def read(self, config: Any) -> tuple[str, ...]:
        return tuple(getattr(config, self.field))

    def write(self, kinds: Sequence[str]) -> dict[str, Any]:
        return {self.field: list(kinds), self.pattern: "".join(LETTERS[kind] for kind in kinds)}


NEMOTRON_H = Family(
    model_type="nemotron_h",
    tensors=EMBEDDING | STATE_SPACE | STATE_SPACE_BIAS | ATTENTION | MLP | MLP_BIAS | NORMS | FINAL,
    sizes=L.SIZES | SIZES,
    groups={"mamba_head": "mamba_group"},
    # its mean over a group runs over fewer channels
    corrections={f"{MIXER}.norm.weight": Correction("mamba_head mamba_dim", -0.5)},
    stored_if=dict.fromkeys(STATE_SPACE_BIAS, "use_bias")
    | dict.fromkeys(MLP_BIAS, "mlp_bias")
    | {f"{MIXER}.conv1d.bias": "use_conv_bias"},
    links={f"{LAYER}.norm.weight": READERS, "model.norm_f.weight": ("lm_head.weight",)},
    layer_lists=(),
    layer_kinds=(Spelled(),),
    held_by=dict.fromkeys(STATE_SPACE | STATE_SPACE_BIAS, "linear_attention")
    | dict.fromkeys(ATTENTION, "full_attention")
    | dict.fromkeys(MLP | MLP_BIAS, "mlp"),
    # its converter checks the channels of state spaces against heads of 64, of whatever size they are
    serving=Serving("reads_head_dim", "reads_head_dim", llama_cpp_multiples=(("mamba_head mamba_dim", 64),)),
)


BESIDE_EXPERTS = {name: layout.replace("ffn", "dense_ffn") for name, layout in (MLP | MLP_BIAS).items()}

WITH_EXPERTS = replace(
    NEMOTRON_H,
    tensors=EMBEDDING
    | STATE_SPACE
    | STATE_SPACE_BIAS
    | ATTENTION
    | EXPERTS
    | SHARED_BIAS
    | BESIDE_EXPERTS
    | NORMS
    | FINAL,
    sizes=L.SIZES | SIZES | GLM_SIZES | {"own_ffn": "moe_shared_expert_intermediate_size"},
    derived={"rated_expert": lambda config: RATED},
    active={"expert": "num_experts_per_tok"},
    groups={**NEMOTRON_H.groups, "expert": "expert_group"},
    buffers=frozenset({f"{MIXER}.gate.e_score_correction_bias"}),
    stored_if={**NEMOTRON_H.stored_if, **dict.fromkeys(SHARED_BIAS, "mlp_bias")},
    links={
        **NEMOTRON_H.links,
        f"{LAYER}.norm.weight": (
            *READERS,
            f"{MIXER}.gate.weight",
            f"{MIXER}.experts.{{expert}}.up_proj.weight",
            f"{MIXER}.shared_experts.up_proj.weight",
        ),
    },
    width_multiple=8,
    runtime_names={
        f"{MIXER}.experts.up_proj": (f"{MIXER}.experts.{{expert}}.up_proj.weight",),
        f"{MIXER}.experts.down_proj": (f"{MIXER}.experts.{{expert}}.down_proj.weight",),
    },
    held_by={**NEMOTRON_H.held_by, **dict.fromkeys(EXPERTS | SHARED_BIAS, "moe")},
)


def table(config: Any) -> Family:
    """The table of a model with experts, or without. CheckpointError where experts read a latent."""
    if "moe" not in config.layers_block_type:
        return NEMOTRON_H
    if config.moe_latent_size is not None:
        raise CheckpointError(
            "the experts of this nemotron_h model read a latent (moe_latent_size), which its table does not describe: "
            "give one without (docs/families.md)"
        )
    return WITH_EXPERTS
