"""Phi 3.5 MoE: Mixtral's experts, layer norms, biases of attention and of the LM head."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.mixtral import EXPERTS, MIXTRAL, RUNTIME_NAMES
from minitron_cli.model.families.nemotron import NORM_BIAS
from minitron_cli.model.family import Family, Serving

HEAD_BIAS = {"lm_head.bias": "vocab"}

PHIMOE = Family(
    model_type="phimoe",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | EXPERTS | L.NORMS | NORM_BIAS | L.FINAL | HEAD_BIAS,
    sizes=MIXTRAL.sizes,
    active=MIXTRAL.active,
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias")
    | dict.fromkeys(HEAD_BIAS, "lm_head_bias"),
    links=MIXTRAL.links,
    norm="layer",
    tied=MIXTRAL.tied,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES
    | {"model.layers.{layer}.mlp.router.weight": RUNTIME_NAMES["model.layers.{layer}.mlp.gate.weight"]},
    serving=Serving(
        llama_cpp="derives_head_dim",
        transformers_4="derives_head_dim",
        llama_cpp_differs="it gives phimoe models RMS norms and a router of one softmax, the parent as well",
    ),
)
