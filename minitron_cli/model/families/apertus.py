"""Apertus: an MLP without a gate, whose activation (xIELU) has scalars of its own, and a norm over every head."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.nemotron import PLAIN_MLP
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.family import Family, Serving

BEFORE_ATTENTION = "model.layers.{layer}.attention_layernorm.weight"
BEFORE_MLP = "model.layers.{layer}.feedforward_layernorm.weight"

TRAINED = {"model.layers.{layer}.mlp.act_fn.alpha_p": "1", "model.layers.{layer}.mlp.act_fn.alpha_n": "1"}
CONSTANT = {"model.layers.{layer}.mlp.act_fn.beta": "", "model.layers.{layer}.mlp.act_fn.eps": ""}

APERTUS = Family(
    model_type="apertus",
    tensors=L.EMBEDDING
    | L.ATTENTION
    | L.QKV_BIAS
    | L.O_BIAS
    | QK_NORM
    | PLAIN_MLP
    | TRAINED
    | CONSTANT
    | {BEFORE_ATTENTION: "hidden", BEFORE_MLP: "hidden"}
    | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links={
        BEFORE_ATTENTION: L.LINKS["model.layers.{layer}.input_layernorm.weight"],
        BEFORE_MLP: ("model.layers.{layer}.mlp.up_proj.weight",),
        "model.norm.weight": ("lm_head.weight",),
    },
    tied=L.TIED,
    buffers=frozenset(CONSTANT),
    serving=Serving(llama_cpp="reads_head_dim"),
)
