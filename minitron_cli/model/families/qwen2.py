"""Qwen 2 and 2.5: biases on q, k and v, none on o."""

from minitron_cli.model.families.llama import (
    ATTENTION,
    EMBEDDING,
    FINAL,
    LINKS,
    MLP,
    NORMS,
    QKV_BIAS,
    SIZES,
    TIED,
    UNTIED_HEAD,
)
from minitron_cli.model.family import Family

QWEN2 = Family(
    model_type="qwen2",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | MLP | NORMS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD,
    links=LINKS,
    tied=TIED,
    layer_marks=("max_window_layers",),
)
