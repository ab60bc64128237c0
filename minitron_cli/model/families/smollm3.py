"""SmolLM 3: Llama's tensors, and every fourth layer without rotary positions."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

SMOLLM3 = Family(
    model_type="smollm3",
    tensors=L.LLAMA.tensors,
    sizes=L.LLAMA.sizes,
    stored_if=L.LLAMA.stored_if,
    links=L.LLAMA.links,
    tied=L.LLAMA.tied,
    layer_lists=("layer_types", "no_rope_layers"),
    layer_pattern="no_rope_layers",
    serving=Serving("through_transformers", "reads_head_dim"),
)
