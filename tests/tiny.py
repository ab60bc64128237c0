"""Tiny real checkpoints: every family in a few kilobytes, with nothing left at its default.

Norm weights and biases are randomised (at their initial 1 and 0 they would hide mistakes) and the weights are
large enough that logits spread by about 1.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, initialization

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

IN_TURN = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
"""Kinds of layers, as often as there are layers."""

LATENT = {
    "attention_bias": True,
    "num_key_value_heads": 8,
    "head_dim": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "intermediate_size": 40,  # of the dense layer
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
}
"""Of DeepSeek's models, whose heads have keys of another size than values."""

MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 3e4,
    "factor": 4.0,
    "original_max_position_embeddings": 8,  # beyond which queries are scaled
    "llama_4_scaling_beta": 0.3,
}

DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
}

MAMBA = {
    "mamba_proj_bias": True,
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_expand": 3,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_chunk_size": 8,
}
"""Of state spaces with 3 x hidden channels."""

FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    "apertus": {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "arcee": {"attention_bias": True, "mlp_bias": True},
    "bamba": {
        "attn_layer_indices": [1, 3],
        "attention_bias": True,
        "mlp_bias": True,
        **MAMBA,
    },
    "cohere": {"attention_bias": True, "logit_scale": 0.7},
    "cohere2": {"attention_bias": True, "logit_scale": 0.7, **IN_TURN},
    "cwm": IN_TURN,
    "deepseek_v2": {
        **LATENT,
        "mlp_bias": True,
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v3": {**LATENT, "routed_scaling_factor": 1.5},
    "ernie4_5": {"use_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "ernie4_5_moe": {
        "use_bias": True,
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
        "intermediate_size": 40,  # of the dense layers
        "moe_intermediate_size": 48,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
    },
    "exaone4": {**IN_TURN, "sliding_window_pattern": 2},
    "falcon_h1": {
        "attention_bias": True,
        "mlp_bias": True,
        "projectors_bias": True,
        "mamba_proj_bias": True,
        "mamba_n_heads": 12,
        "mamba_d_head": 6,
        "mamba_d_ssm": 72,
        "mamba_n_groups": 2,
        "mamba_d_state": 5,
        "mamba_chunk_size": 8,
        "mlp_multipliers": [0.9, 0.8],
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
        "lm_head_multiplier": 0.4,
        "attention_out_multiplier": 1.3,
        "embedding_multiplier": 2.0,
        "key_multiplier": 0.7,
    },
    "flex_olmo": {"attention_bias": True, "num_experts": 6, "num_experts_per_tok": 2},
    "gemma": {"attention_bias": True},
    "gemma2": {
        "attention_bias": True,
        "sliding_window": 6,
        "query_pre_attn_scalar": 5,
        "final_logit_softcapping": 8.0,
        "attn_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        "attention_bias": True,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 5,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        },
    },
    "glm": {"attention_bias": True},
    "glm4": {"attention_bias": True},
    "glm4_moe": {
        "attention_bias": True,
        "use_qk_norm": True,
        "intermediate_size": 40,  # of the dense layer
        "moe_intermediate_size": 48,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
    },
    "glm4_moe_lite": {
        **{name: value for name, value in LATENT.items() if name != "first_k_dense_replace"},
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    },
    "gpt_neox": {"head_dim": None, "num_key_value_heads": None, "rotary_pct": 0.5, "rotary_emb_base": 500},
    "gpt_oss": {
        "sliding_window": 6,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "swiglu_limit": 3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
    },
    "granite": {
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.7,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
    },
    "granitemoe": {
        "attention_bias": True,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.7,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
    },
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "attention_bias": True,
        "position_embedding_type": "rope",
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.7,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
        **MAMBA,
    },
    "hunyuan_v1_dense": {"attention_bias": True},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "mamba_proj_bias": True,
        "mamba_expand": 3,
        "mamba_d_state": 5,
        "mamba_dt_rank": 3,
    },
    "jais2": {"attention_bias": True, "mlp_bias": True},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "conv_bias": True,
        "intermediate_size": 70,
        "block_multiple_of": 8,  # so that there are 48 neurons
    },
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "llama4_text": {
        "attention_bias": True,
        "intermediate_size_mlp": 40,  # of the dense layers
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "moe_layers": [1, 3],
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 6,
        "floor_scale": 3,  # tokens beyond which queries without positions are scaled
        "attn_scale": 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
    },
    "mellum": {
        **IN_TURN,
        "attention_bias": True,
        "moe_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        },
    },
    "minimax_m2": {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5},
    },
    "ministral": IN_TURN,
    "ministral3": {"sliding_window": 6, "rope_parameters": MINISTRAL3_ROPE},
    "mistral": {"sliding_window": 6},
    "mixtral": {"sliding_window": 6, "num_local_experts": 6, "num_experts_per_tok": 2},
    "nemotron": {"attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.25},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention"],
        "mlp_bias": True,
        "use_bias": True,
        "mamba_num_heads": 12,
        "mamba_head_dim": 6,
        "n_groups": 2,
        "ssm_state_size": 5,
        "chunk_size": 8,
    },
    "olmo": {"attention_bias": True, "clip_qkv": 1.0},
    "olmo2": {"attention_bias": True},
    "olmo3": {"attention_bias": True, **IN_TURN},
    "olmoe": {"attention_bias": True, "head_dim": 4, "num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 1.0},
    "phi3": {"sliding_window": 6},
    "phimoe": {
        "attention_bias": True,
        "lm_head_bias": True,
        "sliding_window": 6,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.1,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen2_moe": {
        **IN_TURN,
        "use_sliding_window": True,
        "intermediate_size": 40,  # of layers without experts: there are none
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 56,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "qwen3": {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3_5_text": {"attention_bias": True, **DELTA_NET},
    "qwen3_next": {
        "attention_bias": True,
        "intermediate_size": 40,  # of layers without experts: there are none
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 56,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        **DELTA_NET,
    },
    "qwen3_moe": {
        "attention_bias": True,
        "intermediate_size": 40,  # of layers without experts: there are none
        "moe_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "seed_oss": {
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.0,  # unlike the others' defaults, its are 0.1
        "residual_dropout": 0.0,
    },
    "smollm3": {
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 6,
    },
    "starcoder2": {"sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    "vaultgemma": {
        "attention_bias": True,
        "sliding_window": 6,
        "query_pre_attn_scalar": 5,
        "final_logit_softcapping": 8.0,
        "attn_logit_softcapping": 4.0,
    },
}


MEAN_OF_VECTORS = {"gemma": 0.0}
"""Mean of norm weights and biases, 1 unless said. Gemma's norms add 1, and a gain of 2 before each softmax, over an
embedding times sqrt(hidden), would leave fp32 too few digits to compare."""


def tiny_config(model_type: str, **options: Any) -> PretrainedConfig:
    """The config of a tiny model of a family."""
    fields = {**BASE, **FAMILY_OPTIONS.get(model_type, {}), **options}
    if kinds := fields.get("layer_types"):
        fields["layer_types"] = [kinds[i % len(kinds)] for i in range(fields["num_hidden_layers"])]
    if kinds := fields.get("mlp_layer_types"):
        fields["mlp_layer_types"] = kinds[: fields["num_hidden_layers"]]
    return CONFIG_MAPPING[model_type](**fields)


def tiny_model(model_type: str, *, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model of a family, fp32, in evaluation mode."""
    config = tiny_config(model_type, **options)
    generator = torch.Generator().manual_seed(seed)
    with initialization.no_init_weights():  # all of them are drawn below
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.tie_weights()
    with torch.no_grad():
        stored = model.state_dict()
        vectors = (b for name, b in model.named_buffers() if name in stored and b.ndim)
        for parameter in (*model.parameters(), *vectors):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(MEAN_OF_VECTORS.get(model_type, 1.0) + 0.3 * noise)
            else:
                is_embedding = parameter.shape[0] == config.vocab_size
                parameter.copy_(noise * (1.0 if is_embedding else 1.5 / parameter.shape[-1] ** 0.5))
        stored = model.state_dict().keys()
        for buffer in (b for name, b in model.named_buffers() if name in stored):  # a router's correction
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def write_tiny(directory: Path, model_type: str = "llama", *, seed: int = 0, **options: Any) -> Path:
    """Write a random checkpoint with transformers' own `save_pretrained`; return its directory."""
    tiny_model(model_type, seed=seed, **options).save_pretrained(directory)
    return directory
