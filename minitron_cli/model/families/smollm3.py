"""SmolLM 3: Llama's tensors, and every fourth layer without rotary positions."""

from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.family import Family

SMOLLM3 = Family(
    model_type="smollm3",
    tensors=LLAMA.tensors,
    sizes=LLAMA.sizes,
    stored_if=LLAMA.stored_if,
    links=LLAMA.links,
    tied=LLAMA.tied,
    layer_lists=("layer_types", "no_rope_layers"),
    layer_pattern="no_rope_layers",
)
