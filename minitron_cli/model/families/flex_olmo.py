"""FlexOlmo: OLMo 2 with experts in every layer."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.olmo2 import NORMS, OLMO2
from minitron_cli.model.families.qwen3_moe import EXPERTS, RUNTIME_NAMES
from minitron_cli.model.family import Family, Serving

FLEX_OLMO = Family(
    model_type="flex_olmo",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | EXPERTS | NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_experts"},
    active={"expert": "num_experts_per_tok"},
    stored_if=OLMO2.stored_if,
    links=OLMO2.links,
    tied=OLMO2.tied,
    width_multiple=8,
    runtime_names=RUNTIME_NAMES,
    not_prunable=OLMO2.not_prunable,
    serving=Serving(llama_cpp="unsupported"),
)
