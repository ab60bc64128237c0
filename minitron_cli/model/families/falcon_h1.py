"""Falcon-H1: in every layer attention beside a state space (Mamba-2), added up, then a gated MLP."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Correction, Family, Serving

MAMBA = "model.layers.{layer}.mamba"

CONVOLVED = "(mamba_head mamba_dim + mamba_group state + mamba_group state)"
"""Inputs x, and B and C of every group."""

STATE_SPACE = {
    f"{MAMBA}.in_proj.weight": (
        "(mamba_head mamba_dim + mamba_head mamba_dim + mamba_group state + mamba_group state + mamba_head) hidden"
    ),
    f"{MAMBA}.conv1d.weight": f"{CONVOLVED} 1 kernel",
    f"{MAMBA}.conv1d.bias": CONVOLVED,
    f"{MAMBA}.A_log": "mamba_head",
    f"{MAMBA}.D": "mamba_head",
    f"{MAMBA}.dt_bias": "mamba_head",
    f"{MAMBA}.norm.weight": "(mamba_head mamba_dim)",
    f"{MAMBA}.out_proj.weight": "hidden (mamba_head mamba_dim)",
}
"""Of Mamba-2; in_proj gives z, x, B, C and dt. Heads belong to groups, which share B and C: head h to h * G // H."""

IN_PROJ_BIAS = {
    f"{MAMBA}.in_proj.bias": (
        "(mamba_head mamba_dim + mamba_head mamba_dim + mamba_group state + mamba_group state + mamba_head)"
    )
}

OUT_PROJ_BIAS = {f"{MAMBA}.out_proj.bias": "hidden"}

MAMBA_SIZES = {
    "mamba_head": "mamba_n_heads",
    "mamba_dim": "mamba_d_head",
    "mamba_group": "mamba_n_groups",
    "state": "mamba_d_state",
    "kernel": "mamba_d_conv",
}

MLP = {name.replace(".mlp.", ".feed_forward."): layout for name, layout in (L.MLP | L.MLP_BIAS).items()}

NORMS = {
    "model.layers.{layer}.input_layernorm.weight": "hidden",
    "model.layers.{layer}.pre_ff_layernorm.weight": "hidden",
}

FINAL = {"model.final_layernorm.weight": "hidden", "lm_head.weight": "vocab hidden"}

FALCON_H1 = Family(
    model_type="falcon_h1",
    tensors=L.EMBEDDING
    | L.ATTENTION
    | L.QKV_BIAS
    | L.O_BIAS
    | STATE_SPACE
    | IN_PROJ_BIAS
    | OUT_PROJ_BIAS
    | MLP
    | NORMS
    | FINAL,
    sizes=L.SIZES | MAMBA_SIZES,
    totals={"mamba_d_ssm": "mamba_head mamba_dim"},
    groups={"mamba_head": "mamba_group"},
    # its mean over a group runs over fewer channels
    corrections={f"{MAMBA}.norm.weight": Correction("mamba_head mamba_dim", -0.5)},
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias")
    | dict.fromkeys((name for name in MLP if name.endswith(".bias")), "mlp_bias")
    | {f"{MAMBA}.norm.weight": "mamba_rms_norm", f"{MAMBA}.conv1d.bias": "mamba_conv_bias"}
    | dict.fromkeys(IN_PROJ_BIAS, "mamba_proj_bias")
    | dict.fromkeys(OUT_PROJ_BIAS, "projectors_bias"),
    links={
        "model.layers.{layer}.input_layernorm.weight": (
            *L.LINKS["model.layers.{layer}.input_layernorm.weight"],
            f"{MAMBA}.in_proj.weight",
        ),
        "model.layers.{layer}.pre_ff_layernorm.weight": (
            "model.layers.{layer}.feed_forward.gate_proj.weight",
            "model.layers.{layer}.feed_forward.up_proj.weight",
        ),
        "model.final_layernorm.weight": ("lm_head.weight",),
    },
    tied=L.TIED,
    layers_return_tuples=True,
    adds_outputs=False,  # mlp_multipliers, attention_out_multiplier
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
