"""Arcee (AFM): Llama with an MLP without a gate."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.nemotron import LINKS, PLAIN_MLP, PLAIN_MLP_BIAS
from minitron_cli.model.family import Family, Serving

ARCEE = Family(
    model_type="arcee",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | PLAIN_MLP | PLAIN_MLP_BIAS | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias")
    | dict.fromkeys(PLAIN_MLP_BIAS, "mlp_bias"),
    links=LINKS,
    tied=L.TIED,
    hidden_is_multiple_of_heads=True,
    serving=Serving(llama_cpp="reads_head_dim"),
)
