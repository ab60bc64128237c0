"""GLM 4 of 2024: gate and up in one matrix, biases on q, k and v; half of each head is rotated."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

MLP = {
    "model.layers.{layer}.mlp.gate_up_proj.weight": "(ffn + ffn) hidden",
    "model.layers.{layer}.mlp.down_proj.weight": "hidden ffn",
}

LINKS = L.LINKS | {
    "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.gate_up_proj.weight",)
}

GLM = Family(
    model_type="glm",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS, "attention_bias"),
    links=LINKS,
    tied=L.TIED,
    serving=Serving(llama_cpp="derives_head_dim"),
)
