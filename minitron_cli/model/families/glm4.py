"""GLM 4 of 2025 (GLM-4-0414, GLM-Z1): GLM with a norm after each half of a layer as well."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.glm import GLM, MLP
from minitron_cli.model.family import Family, Serving

NORMS_AFTER = {
    "model.layers.{layer}.post_self_attn_layernorm.weight": "hidden",
    "model.layers.{layer}.post_mlp_layernorm.weight": "hidden",
}

GLM4 = Family(
    model_type="glm4",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | MLP | L.NORMS | NORMS_AFTER | L.FINAL,
    sizes=GLM.sizes,
    stored_if=GLM.stored_if,
    links=GLM.links,
    tied=GLM.tied,
    serving=Serving(llama_cpp="reads_head_dim"),
)
