"""Gemma 1: Llama with norms that store gain - 1 and an embedding scaled by sqrt(hidden)."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.gemma2 import SCALED_EMBEDDING
from minitron_cli.model.family import Family, Serving

GEMMA = Family(
    model_type="gemma",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS,
    norm_offset=1,
    tied=L.TIED,
    corrections=SCALED_EMBEDDING,
    serving=Serving(llama_cpp="reads_head_dim"),
)
