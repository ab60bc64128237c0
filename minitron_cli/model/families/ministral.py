"""Ministral 8B of 2024: Mistral whose layers attend to a window or to all tokens, as a config list says."""

from minitron_cli.model.families.mistral import MISTRAL
from minitron_cli.model.family import Family, Serving

MINISTRAL = Family(
    model_type="ministral",
    tensors=MISTRAL.tensors,
    sizes=MISTRAL.sizes,
    stored_if=MISTRAL.stored_if,
    links=MISTRAL.links,
    tied=MISTRAL.tied,
    serving=Serving(llama_cpp="unsupported"),
)
