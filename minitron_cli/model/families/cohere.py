"""Cohere (Command R): attention and MLP read one layer norm side by side; norms have no bias."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

NORM = {"model.layers.{layer}.input_layernorm.weight": "hidden"}

LINKS = {
    "model.layers.{layer}.input_layernorm.weight": (
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layers.{layer}.self_attn.k_proj.weight",
        "model.layers.{layer}.self_attn.v_proj.weight",
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
    ),
    "model.norm.weight": ("lm_head.weight",),
}

COHERE = Family(
    model_type="cohere",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | NORM | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=LINKS,
    norm="layer",
    tied=L.TIED,
    uniform_if={"use_qk_norm": False},
    serving=Serving(llama_cpp="derives_head_dim"),
)
