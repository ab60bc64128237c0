"""GLM 4.7 Flash: DeepSeek V3 with a list of the layers that hold experts."""

from dataclasses import replace

from minitron_cli.model.families.deepseek_v3 import DEEPSEEK_V3
from minitron_cli.model.layer_kinds import Listed

GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    model_type="glm4_moe_lite",
    layer_lists=("mlp_layer_types",),
    layer_marks=("first_k_dense_replace",),  # which llama.cpp reads instead
    layer_kinds=(Listed("mlp_layer_types"),),
)
