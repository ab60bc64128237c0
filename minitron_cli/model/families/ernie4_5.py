"""ERNIE 4.5 (dense): Llama's tensors, with one flag for all biases; rotary pairs are neighbors inside a head."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

ERNIE4_5 = Family(
    model_type="ernie4_5",
    tensors=L.LLAMA.tensors,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS | L.MLP_BIAS, "use_bias"),
    links=L.LINKS,
    tied=L.TIED,
    serving=Serving(llama_cpp="reads_head_dim"),
)
