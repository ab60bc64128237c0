"""Granite 3: Llama's tensors; its multipliers are in the config and depend on no size."""

from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.family import Family

GRANITE = Family(
    model_type="granite",
    tensors=LLAMA.tensors,
    sizes=LLAMA.sizes,
    stored_if=LLAMA.stored_if,
    links=LLAMA.links,
    residual_multiplier="residual_multiplier",
    tied=LLAMA.tied,
)
