"""Ministral 3, text only: Mistral whose queries are scaled by their position, which depends on no size."""

from minitron_cli.model.families.mistral import MISTRAL
from minitron_cli.model.family import Family, Serving

MINISTRAL3 = Family(
    model_type="ministral3",
    tensors=MISTRAL.tensors,
    sizes=MISTRAL.sizes,
    stored_if=MISTRAL.stored_if,
    links=MISTRAL.links,
    tied=MISTRAL.tied,
    serving=Serving(llama_cpp="reads_head_dim"),
)
