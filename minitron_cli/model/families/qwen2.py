"""Qwen 2 and 2.5: biases on q, k and v, none on o."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

QWEN2 = Family(
    model_type="qwen2",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD,
    links=L.LINKS,
    tied=L.TIED,
    layer_marks=("max_window_layers",),
    serving=Serving("derives_head_dim", "derives_head_dim"),
)
