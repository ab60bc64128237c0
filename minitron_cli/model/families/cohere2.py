"""Cohere 2 (Command R7B, Command A): Cohere, with rotary positions in the layers that attend to a window only."""

from minitron_cli.model.families.cohere import COHERE
from minitron_cli.model.family import Family, Serving

COHERE2 = Family(
    model_type="cohere2",
    tensors=COHERE.tensors,
    sizes=COHERE.sizes,
    stored_if=COHERE.stored_if,
    links=COHERE.links,
    norm="layer",
    tied=COHERE.tied,
    layer_pattern="layer_types",
    serving=Serving(llama_cpp="derives_head_dim", llama_cpp_period=4),
)
