"""VaultGemma: Gemma 2 without the norms after each half of a layer."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.families.gemma2 import LINKS, SCALED_EMBEDDING
from minitron_cli.model.family import Family, Serving

NORMS = {
    "model.layers.{layer}.input_layernorm.weight": "hidden",
    "model.layers.{layer}.pre_feedforward_layernorm.weight": "hidden",
}

VAULTGEMMA = Family(
    model_type="vaultgemma",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | L.MLP | NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=LINKS,
    norm_offset=1,
    tied=L.TIED,
    corrections=SCALED_EMBEDDING,
    hidden_is_multiple_of_heads=True,
    serving=Serving(llama_cpp="unsupported"),
)
