"""GPT-NeoX and Pythia: each head's query, key and value side by side; the size of a head is hidden / head."""

from minitron_cli.model.family import Family, RopeV4, Serving

BIASES_OF_ATTENTION = {
    "gpt_neox.layers.{layer}.attention.query_key_value.bias": "(head 3 head_dim)",
    "gpt_neox.layers.{layer}.attention.dense.bias": "hidden",
}

TENSORS = {
    "gpt_neox.embed_in.weight": "vocab hidden",
    "gpt_neox.layers.{layer}.input_layernorm.weight": "hidden",
    "gpt_neox.layers.{layer}.input_layernorm.bias": "hidden",
    "gpt_neox.layers.{layer}.post_attention_layernorm.weight": "hidden",
    "gpt_neox.layers.{layer}.post_attention_layernorm.bias": "hidden",
    "gpt_neox.layers.{layer}.attention.query_key_value.weight": "(head 3 head_dim) hidden",
    "gpt_neox.layers.{layer}.attention.dense.weight": "hidden (head head_dim)",
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight": "ffn hidden",
    "gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias": "ffn",
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight": "hidden ffn",
    "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias": "hidden",
    "gpt_neox.final_layer_norm.weight": "hidden",
    "gpt_neox.final_layer_norm.bias": "hidden",
    "embed_out.weight": "vocab hidden",
}

LINKS = {
    "gpt_neox.layers.{layer}.input_layernorm.weight": ("gpt_neox.layers.{layer}.attention.query_key_value.weight",),
    "gpt_neox.layers.{layer}.post_attention_layernorm.weight": ("gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight",),
    "gpt_neox.final_layer_norm.weight": ("embed_out.weight",),
}

GPT_NEOX = Family(
    model_type="gpt_neox",
    tensors=TENSORS | BIASES_OF_ATTENTION,
    sizes={
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layer": "num_hidden_layers",
        "head": "num_attention_heads",
        "ffn": "intermediate_size",
    },
    stored_if={"embed_out.weight": "!tie_word_embeddings"} | dict.fromkeys(BIASES_OF_ATTENTION, "attention_bias"),
    links=LINKS,
    norm="layer",
    tied={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ignored=(
        "gpt_neox.layers.{layer}.attention.bias",
        "gpt_neox.layers.{layer}.attention.masked_bias",
    ),
    runtime_names={"lm_head.weight": ("embed_out.weight",)},
    rope_v4=RopeV4(fields={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}),
    serving=Serving("derives_head_dim", "derives_head_dim"),
)
