"""Nemotron-H and Nemotron Nano 2: a layer is a state space (Mamba-2), attention, or an MLP without a gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import llama as L
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

LETTERS: Mapping[str, str] = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}


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
    serving=Serving("reads_head_dim"),
)


def table(config: Any) -> Family:
    """The table of a model without experts. CheckpointError for others."""
    if "moe" in config.layers_block_type:
        raise CheckpointError(
            "layers of this nemotron_h model hold experts, which its table does not describe: give one without "
            "(docs/families.md)"
        )
    return NEMOTRON_H
