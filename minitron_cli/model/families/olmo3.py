"""OLMo 3: OLMo 2 whose layers attend to a window or to all tokens; scaled rotary positions in the latter only."""

from minitron_cli.model.families.olmo2 import OLMO2
from minitron_cli.model.family import Family, RopeV4, Serving

OLMO3 = Family(
    model_type="olmo3",
    tensors=OLMO2.tensors,
    sizes=OLMO2.sizes,
    stored_if=OLMO2.stored_if,
    links=OLMO2.links,
    tied=OLMO2.tied,
    rope_v4=RopeV4(fields={"rope_theta": "full_attention.rope_theta"}, scaled="full_attention"),
    not_prunable=OLMO2.not_prunable,
    serving=Serving(llama_cpp="derives_head_dim"),
)
