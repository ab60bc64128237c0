"""gpt-oss: experts with biases, in one tensor a layer, gate and up interleaved; a sink for every head."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

MLP = "model.layers.{layer}.mlp"

SINKS = {"model.layers.{layer}.self_attn.sinks": "head"}

EXPERTS = {
    f"{MLP}.router.weight": "expert hidden",
    f"{MLP}.router.bias": "expert",
    f"{MLP}.experts.gate_up_proj[{{expert}}]": "hidden (ffn 2)",
    f"{MLP}.experts.gate_up_proj_bias[{{expert}}]": "(ffn 2)",
    f"{MLP}.experts.down_proj[{{expert}}]": "ffn hidden",
    f"{MLP}.experts.down_proj_bias[{{expert}}]": "hidden",
}

GPT_OSS = Family(
    model_type="gpt_oss",
    tensors=L.EMBEDDING | L.ATTENTION | L.QKV_BIAS | L.O_BIAS | SINKS | EXPERTS | L.NORMS | L.FINAL,
    sizes=L.SIZES | {"expert": "num_local_experts"},
    active={"expert": "num_experts_per_tok"},
    stored_if=L.UNTIED_HEAD | dict.fromkeys(L.QKV_BIAS | L.O_BIAS, "attention_bias"),
    links=L.LINKS
    | {
        "model.layers.{layer}.post_attention_layernorm.weight": (
            f"{MLP}.router.weight",
            f"{MLP}.experts.gate_up_proj[{{expert}}]",
        )
    },
    tied=L.TIED,
    transposed=(f"{MLP}.experts.gate_up_proj[{{expert}}]", f"{MLP}.experts.down_proj[{{expert}}]"),
    layer_pattern="layer_types",
    width_multiple=8,
    runtime_names={t.removesuffix("[{expert}]"): (t,) for t in EXPERTS if t.endswith("[{expert}]")},
    serving=Serving("reads_head_dim", "reads_head_dim", llama_cpp_period=2),
)
