"""Llama 1 to 3, and the parts that similar families share (`import llama as L`)."""

from minitron_cli.model.family import Family, Serving

SIZES = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layer": "num_hidden_layers",
    "head": "num_attention_heads",
    "kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
}

EMBEDDING = {"model.embed_tokens.weight": "vocab hidden"}

ATTENTION = {
    "model.layers.{layer}.self_attn.q_proj.weight": "(head head_dim) hidden",
    "model.layers.{layer}.self_attn.k_proj.weight": "(kv_head head_dim) hidden",
    "model.layers.{layer}.self_attn.v_proj.weight": "(kv_head head_dim) hidden",
    "model.layers.{layer}.self_attn.o_proj.weight": "hidden (head head_dim)",
}

QKV_BIAS = {
    "model.layers.{layer}.self_attn.q_proj.bias": "(head head_dim)",
    "model.layers.{layer}.self_attn.k_proj.bias": "(kv_head head_dim)",
    "model.layers.{layer}.self_attn.v_proj.bias": "(kv_head head_dim)",
}

O_BIAS = {"model.layers.{layer}.self_attn.o_proj.bias": "hidden"}

MLP = {
    "model.layers.{layer}.mlp.gate_proj.weight": "ffn hidden",
    "model.layers.{layer}.mlp.up_proj.weight": "ffn hidden",
    "model.layers.{layer}.mlp.down_proj.weight": "hidden ffn",
}

MLP_BIAS = {
    "model.layers.{layer}.mlp.gate_proj.bias": "ffn",
    "model.layers.{layer}.mlp.up_proj.bias": "ffn",
    "model.layers.{layer}.mlp.down_proj.bias": "hidden",
}

NORMS = {
    "model.layers.{layer}.input_layernorm.weight": "hidden",
    "model.layers.{layer}.post_attention_layernorm.weight": "hidden",
}

FINAL = {"model.norm.weight": "hidden", "lm_head.weight": "vocab hidden"}

UNTIED_HEAD = {"lm_head.weight": "!tie_word_embeddings"}

TIED = {"lm_head.weight": "model.embed_tokens.weight"}

LINKS = {
    "model.layers.{layer}.input_layernorm.weight": (
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layers.{layer}.self_attn.k_proj.weight",
        "model.layers.{layer}.self_attn.v_proj.weight",
    ),
    "model.layers.{layer}.post_attention_layernorm.weight": (
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
    ),
    "model.norm.weight": ("lm_head.weight",),
}

LLAMA = Family(
    model_type="llama",
    tensors=EMBEDDING | ATTENTION | QKV_BIAS | O_BIAS | MLP | MLP_BIAS | NORMS | FINAL,
    sizes=SIZES,
    stored_if=UNTIED_HEAD | dict.fromkeys(QKV_BIAS | O_BIAS, "attention_bias") | dict.fromkeys(MLP_BIAS, "mlp_bias"),
    links=LINKS,
    tied=TIED,
    hidden_is_multiple_of_heads=True,
    serving=Serving("reads_head_dim", "reads_head_dim"),
)
