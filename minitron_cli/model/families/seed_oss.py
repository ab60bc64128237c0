"""Seed-OSS: Llama's tensors, with one flag for the biases on q, k and v and another for the one on o."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

SEED_OSS = Family(
    model_type="seed_oss",
    tensors=L.LLAMA.tensors,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD
    | dict.fromkeys(L.QKV_BIAS, "attention_bias")
    | dict.fromkeys(L.O_BIAS, "attention_out_bias")
    | dict.fromkeys(L.MLP_BIAS, "mlp_bias"),
    links=L.LINKS,
    tied=L.TIED,
    serving=Serving(llama_cpp="reads_head_dim"),
)
