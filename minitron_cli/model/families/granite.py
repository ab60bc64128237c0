"""Granite 3: Llama's tensors; its multipliers are in the config and depend on no size."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

GRANITE = Family(
    model_type="granite",
    tensors=L.LLAMA.tensors,
    sizes=L.LLAMA.sizes,
    stored_if=L.LLAMA.stored_if,
    links=L.LLAMA.links,
    residual_multiplier="residual_multiplier",
    tied=L.LLAMA.tied,
    serving=Serving("reads_head_dim", "derives_head_dim"),
)
