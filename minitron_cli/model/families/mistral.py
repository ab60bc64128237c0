"""Mistral 7B and its kin: Llama's names, no biases, any hidden size."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

MISTRAL = Family(
    model_type="mistral",
    tensors=L.EMBEDDING | L.ATTENTION | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD,
    links=L.LINKS,
    tied=L.TIED,
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
