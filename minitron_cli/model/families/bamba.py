"""Bamba: a state space (Mamba-2) in most layers, attention in the others; a gated MLP in all."""

from minitron_cli.model.families import falcon_h1 as F
from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Correction, Family, Serving
from minitron_cli.model.layer_kinds import Listed

STATE_SPACE = F.STATE_SPACE | F.IN_PROJ_BIAS | F.OUT_PROJ_BIAS

ATTENTION = L.ATTENTION | L.QKV_BIAS | L.O_BIAS

HELD_BY = dict.fromkeys(STATE_SPACE, "linear_attention") | dict.fromkeys(ATTENTION, "full_attention")

STORED_IF = (
    L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias")
    | {f"{F.MAMBA}.conv1d.bias": "mamba_conv_bias"}
    | dict.fromkeys(F.IN_PROJ_BIAS | F.OUT_PROJ_BIAS, "mamba_proj_bias")
)

TWICE_HIDDEN = (("mamba_head mamba_dim", "2 hidden"),)
"""Channels of a state space, as llama.cpp expects them."""

BAMBA = Family(
    model_type="bamba",
    tensors=L.EMBEDDING | ATTENTION | STATE_SPACE | F.MLP | F.NORMS | F.FINAL,
    sizes=L.SIZES | F.MAMBA_SIZES,
    quotients={"mamba_expand": ("mamba_head mamba_dim", "hidden")},
    groups=F.FALCON_H1.groups,
    corrections={f"{F.MAMBA}.norm.weight": Correction("mamba_head mamba_dim", -0.5)},
    stored_if=STORED_IF | dict.fromkeys((name for name in F.MLP if name.endswith(".bias")), "mlp_bias"),
    links=F.FALCON_H1.links,
    tied=L.TIED,
    layers_return_tuples=True,
    layer_kinds=(Listed("layers_block_type", {"attn_layer_indices": "full_attention"}, is_stored=False),),
    held_by=HELD_BY,
    serving=Serving(
        "derives_head_dim",
        "derives_head_dim",
        llama_cpp_differs="it rotates other features of bamba heads than their rotated half, in the parent as well",
        llama_cpp_equal=TWICE_HIDDEN,
    ),
)
