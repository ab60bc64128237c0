"""`python -m tests.clients.write DIRECTORY`: children of every family, and what transformers 5 computes with them.

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
from tests.unit.stages.place import context, data, write_place

CUTS: dict[str, dict[str, int]] = {
    "neurons": {"ffn": 40},
    "width": {"hidden": 24, "ffn": 40},
    "heads": {"head": 4},
    "depth": {"layer": 3},
    "half the depth": {"layer": 2},
    "half of twelve layers": {"layer": 6},
    "experts": {"expert": 3},
}
# 8 heads of 4 make the hidden size of 32, as readers expect that derive one from the other; and no window that they
# leave out for the parent as well, nor biases that no published model has.
PARENT = {"head_dim": 4, "max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False}
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
    "bamba": {
        "mamba_n_groups": 1,  # as published ones; version 4 computes another function of more
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "deepseek_v2": {"attention_bias": False, "mlp_bias": False},
    "ernie4_5_moe": {"use_bias": False},
    "gpt_oss": {"rope_parameters": {"rope_theta": 3e4, "beta_fast": 32.0, "beta_slow": 1.0, **YARN}},
    "jamba": {"use_mamba_kernels": False},
    "llama4_text": {"attention_bias": False},
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
    "granite": {"attention_bias": False, "mlp_bias": False},
    "granitemoehybrid": {"mamba_n_groups": 1},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "nemotron": {"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 0.5},  # two of four
    "olmo2": {"attention_bias": False},
    "phi3": {"sliding_window": None},
    "phimoe": {"attention_bias": True, "sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen2_moe": {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"]},
    "qwen3": {"attention_bias": False},
    "qwen3_moe": {"attention_bias": False, "norm_topk_prob": True},  # as all published ones
    "smollm3": {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "no_rope_layer_interval": 4},
    "starcoder2": {"sliding_window": None},
}
WORDS: dict[str, dict[str, Any]] = {"granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2}}
"""Fields of a parent's config in published words, which version 5 of transformers reads and never writes."""
PROMPT, GENERATED = 24, 8


def main(root: Path) -> None:
    torch.set_num_threads(1)
    cases = [case for model_type in sorted(FAMILIES) for case in _cases(root / model_type, model_type)]
    (root / "cases.json").write_text(json.dumps(cases, indent=2))
    print(f"wrote {len(cases)} children to {root}")


def _cases(root: Path, model_type: str) -> list[dict[str, Any]]:
    write_place(root, model_type, **(PARENT | OPTIONS.get(model_type, {})))
    config = json.loads((root / "model" / "config.json").read_text())
    (root / "model" / "config.json").write_text(json.dumps(config | WORDS.get(model_type, {})))
    parent, here = open_source_model(root / "model"), context(root / "runs")
    scores = importance.run(here, parent, data(root), ImportanceConfig(samples=4, batch_size=4, layer_removal=False))
    cases = []
    for name, sizes in CUTS.items():
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
    main(Path(sys.argv[1]))
