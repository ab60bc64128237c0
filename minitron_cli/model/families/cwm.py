"""Code World Model: Llama without biases, whose layers attend to a window or to all tokens, as a config list says."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

CWM = Family(
    model_type="cwm",
    tensors=L.EMBEDDING | L.ATTENTION | L.MLP | L.MLP_BIAS | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.MLP_BIAS, "mlp_bias"),
    links=L.LINKS,
    tied=L.TIED,
    hidden_is_multiple_of_heads=True,
    serving=Serving(llama_cpp="unsupported"),
)
