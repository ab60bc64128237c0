"""EXAONE 4: norms after attention and after the MLP, none before; a norm over every query and key head."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.qwen3 import QK_NORM
from minitron_cli.model.family import Family, Serving

NORMS = {
    "model.layers.{layer}.post_attention_layernorm.weight": "hidden",
    "model.layers.{layer}.post_feedforward_layernorm.weight": "hidden",
}

EXAONE4 = Family(
    model_type="exaone4",
    tensors=L.EMBEDDING | L.ATTENTION | QK_NORM | L.MLP | NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD,
    links={"model.norm.weight": ("lm_head.weight",)},
    tied=L.TIED,
    serving=Serving(llama_cpp="derives_head_dim", llama_cpp_windows_at=64),
)
