"""`python -m tests.clients.write DIRECTORY [MODEL_TYPE ...]`: children of every family, or of these, and what
transformers 5 computes with them.

A client in another environment loads `CASE/child` and compares with `CASE/expected.safetensors`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families import FAMILIES
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.prune import PruneResult
from minitron_cli.stages import importance, prune
from tests.tiny import MINISTRAL3_ROPE
from tests.unit.stages.place import context, data, write_place

CUTS: dict[str, dict[str, int]] = {
    "neurons": {"ffn": 40},
    "width": {"hidden": 24, "ffn": 40},
    "heads": {"head": 4},
    "depth": {"layer": 3},
    "half the depth": {"layer": 2},
    "half of twelve layers": {"layer": 6},
    "experts": {"expert": 3},
    "width and heads": {"hidden": 24, "ffn": 40, "head": 6},
    "latents": {"q_rank": 16, "kv_rank": 8},
    "mamba heads": {"mamba_head": 4},
    "width, heads and mamba heads": {"hidden": 24, "head": 6, "mamba_head": 6},
}
CUTS_OF: dict[str, dict[str, dict[str, int]]] = {
    "cohere2": {"half the depth": {"layer": 4}},  # a whole period
    "deepseek_v3": {"experts": {"expert": 4}},  # of two groups
    "ernie4_5_moe": {"width": {"hidden": 24}, "width and heads": {"hidden": 24, "head": 6}},  # all neurons
    "jamba": {"half the width": {"hidden": 16}},  # its state spaces stay a multiple of hidden
    "nemotron_h": {"half the mamba heads": {"mamba_head": 8}},
}
"""Cuts of one family, beside those or in their place."""
# 8 heads of 4 make the hidden size of 32, as readers expect that derive one from the other; and no window that they
# leave out for the parent as well, nor biases that no published model has.
PARENT = {"head_dim": 4, "max_position_embeddings": 512}
PADDED = 304  # tokens, a multiple of 8, to which llama.cpp pads the vocabularies of some models
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False}
MAMBA = {"mamba_proj_bias": False, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
"""Of state spaces with 2 x hidden channels and one group, as published ones: version 4 computes another function of
more groups, and llama.cpp refuses other numbers of channels."""
WITHOUT_BIAS = {"attention_bias": False, "mlp_bias": False}
TWO_OF_FOUR = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
"""Of rotary positions of half a head."""
OPTIONS: dict[str, dict[str, Any]] = {
    "apertus": {
        "attention_bias": False,
        "rope_parameters": {
            "rope_type": "llama3",  # version 4 scales positions so where nothing is said
            "rope_theta": 3e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "arcee": WITHOUT_BIAS,
    "bamba": {**MAMBA, **WITHOUT_BIAS, "rope_parameters": TWO_OF_FOUR, "vocab_size": PADDED},
    "cohere": {"attention_bias": False},
    "cohere2": {
        "attention_bias": False,
        "num_hidden_layers": 8,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],  # as llama.cpp assumes
    },
    "deepseek_v2": WITHOUT_BIAS,
    "deepseek_v3": {"attention_bias": False, "n_group": 2},
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {
        "use_bias": False,
        "moe_layer_interval": 1,
        "intermediate_size": 192,  # by key-value heads, what llama.cpp takes the experts of all tokens to have
    },
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"]},
    "falcon_h1": {**WITHOUT_BIAS, "projectors_bias": False, "mamba_proj_bias": False},
    "gemma": {"attention_bias": False},
    "gemma2": {"attention_bias": False, "query_pre_attn_scalar": 4},  # llama.cpp takes it to be the size of a head
    "gemma3_text": {
        "attention_bias": False,
        "sliding_window_pattern": 6,
        "num_hidden_layers": 12,
        "query_pre_attn_scalar": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},  # as it assumes
        },
    },
    "glm": {"rms_norm_eps": 1e-5, "rope_parameters": TWO_OF_FOUR},  # as llama.cpp assumes
    "glm4_moe_lite": {"attention_bias": False, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "gpt_oss": {
        "rope_parameters": {"rope_theta": 3e4, "beta_fast": 32.0, "beta_slow": 1.0, **YARN},
        "swiglu_limit": 7.0,  # as llama.cpp assumes
    },
    "granite": WITHOUT_BIAS,
    "granitemoe": {"attention_bias": False},
    "granitemoehybrid": {
        **MAMBA,
        "attention_bias": False,
        "position_embedding_type": "nope",  # as llama.cpp assumes
        "vocab_size": PADDED,
    },
    "hunyuan_v1_dense": {"attention_bias": False},
    "jamba": {"use_mamba_kernels": False, "mamba_proj_bias": False, "mamba_expand": 2},
    "lfm2": {"conv_bias": False},
    "llama4_text": {  # numbers that llama.cpp has in its code
        "attention_bias": False,
        "num_hidden_layers": 12,
        "moe_layers": [*range(12)],
        "interleave_moe_layer_step": 1,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    "mellum": {
        "attention_bias": False,
        "norm_topk_prob": True,
        "rope_parameters": {  # one base for both kinds, as llama.cpp assumes
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    },
    "ministral3": {
        "sliding_window": None,
        "rope_parameters": {
            **MINISTRAL3_ROPE,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "nemotron": {**WITHOUT_BIAS, "partial_rotary_factor": 0.5},  # two of four
    "nemotron_h": {  # with a multiple of 64 channels, as llama.cpp's converter expects
        "use_bias": False,
        "mlp_bias": False,
        "mamba_num_heads": 16,
        "mamba_head_dim": 8,
        "vocab_size": PADDED,
    },
    "olmo": {"attention_bias": False},
    "olmo2": {"attention_bias": False},
    "olmo3": {"attention_bias": False},
    "olmoe": {"attention_bias": False, "clip_qkv": None, "num_key_value_heads": 8},
    "phi3": {"sliding_window": None},
    "phimoe": {"attention_bias": True, "sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"]},
    "qwen3": {"attention_bias": False},
    "qwen3_5_text": {
        "attention_bias": False,
        "linear_value_head_dim": 8,  # that of keys, as llama.cpp assumes
        "rope_parameters": {**TWO_OF_FOUR, "mrope_section": [1, 0, 0]},  # of as many pairs as are rotated
    },
    "qwen3_moe": {"attention_bias": False, "norm_topk_prob": True},  # as all published ones
    "qwen3_next": {
        "attention_bias": False,
        "linear_value_head_dim": 8,  # that of keys, as llama.cpp assumes
        "norm_topk_prob": True,
        "rope_parameters": TWO_OF_FOUR,
    },
    "seed_oss": {"attention_out_bias": False, "mlp_bias": False},
    "smollm3": {**WITHOUT_BIAS, "use_sliding_window": False, "no_rope_layer_interval": 4},
    "starcoder2": {"sliding_window": None},
}
WORDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_rotary_emb": 2},
    "cohere2": {"rotary_pct": 1.0},
    "glm4_moe": {"num_nextn_predict_layers": 1},
    "glm4_moe_lite": {"first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "num_experts_per_tok": 0},
    "minimax_m2": {"rotary_dim": 2},
    "nemotron_h": {
        "hybrid_override_pattern": "M-M*",
        **dict.fromkeys(("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group")),
    },
    "phimoe": {"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 512},
}
"""Fields of a parent's config in published words, which version 5 of transformers reads and never writes; None where
it writes a field that published configs lack."""
PROMPT, GENERATED = 24, 8


def main(root: Path, *model_types: str) -> None:
    torch.set_num_threads(1)
    cases: list[dict[str, Any]] = []
    for model_type in model_types or sorted(FAMILIES):
        cases += _cases(root / model_type, model_type)
        (root / "cases.json").write_text(json.dumps(cases, indent=2))  # so that what is written counts if this ends
    print(f"wrote {len(cases)} children to {root}")


def _cases(root: Path, model_type: str) -> list[dict[str, Any]]:
    write_place(root, model_type, **(PARENT | OPTIONS.get(model_type, {})))
    config, words = json.loads((root / "model" / "config.json").read_text()), WORDS.get(model_type, {})
    config = {name: value for name, value in (config | words).items() if name not in words or value is not None}
    (root / "model" / "config.json").write_text(json.dumps(config))
    parent, here = open_source_model(root / "model"), context(root / "runs")
    scores = importance.run(here, parent, data(root), ImportanceConfig(samples=4, batch_size=4, layer_removal=False))
    cases = []
    for name, sizes in (CUTS | CUTS_OF.get(model_type, {})).items():
        try:
            child = prune.run(here, parent, PruneConfig(shape=sizes), scores=scores)
        except InputError as e:
            print(f"{model_type}, {name}: no such cut: {e}")
            continue
        save_file(expected(child.path), root / f"{name}.safetensors")
        levels = {row.reader: row.level for row in child.result(PruneResult).serving}
        cases.append(
            {
                "model_type": model_type,
                "cut": name,
                "child": str(child.path.relative_to(root.parent)),
                "expected": f"{model_type}/{name}.safetensors",
                "foretold": levels,
            }
        )
    return cases


def expected(child: Path) -> dict[str, torch.Tensor]:
    """Random tokens, their logits, and the tokens that greedy generation adds to them."""
    model = hf.load_model(child)
    tokens_BT = torch.randint(1, 300, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    model.generation_config = GenerationConfig(pad_token_id=0)  # no token ends it
    greedy = model.generate(tokens_BT, do_sample=False, max_new_tokens=GENERATED)
    with torch.no_grad():
        return {"tokens": tokens_BT, "logits": model(tokens_BT).logits.contiguous(), "greedy": greedy}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
