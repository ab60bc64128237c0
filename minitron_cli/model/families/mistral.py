"""Mistral 7B and its kin: Llama's names, no biases, any hidden size."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    LINKS,
    MLP,
    NORMS,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.family import Family

MISTRAL = Family(
    model_type="mistral",
    tensors=EMBEDDING | ATTENTION | MLP | NORMS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD,
    links=LINKS,
    tied=TIED,
    ignored=ROTARY_BUFFER,
)
