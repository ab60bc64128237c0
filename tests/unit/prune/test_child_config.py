"""child_config on its own; tests/conformance reads its results with transformers."""

import pytest
import torch

from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from tests.tiny import tiny_config


def plan_of(model_type, **kept):
    shape = Shape.of(FAMILIES[model_type], tiny_config(model_type))
    return PrunePlan(shape, {axis: torch.tensor(indices) for axis, indices in kept.items()})


def test_sizes_are_stated_even_where_the_parent_left_them_out():
    child = child_config({"model_type": "llama"}, plan_of("llama", hidden=[0, 1], head=[[0, 4]] * 4))
    assert child == {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 2,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
    }


@pytest.mark.parametrize(
    ("kept", "mark", "new"), [([0, 1, 2], 2, 2), ([0, 2, 3], 2, 1), ([2, 3], 2, 0), ([0, 1], 28, 2), ([1, 3], 0, 0)]
)
def test_a_mark_counts_the_surviving_layers_below_it(kept, mark, new):
    assert child_config({"max_window_layers": mark}, plan_of("qwen2", layer=kept))["max_window_layers"] == new


def test_lists_per_layer_lose_the_dropped_layers():
    parent = {"layer_types": ["a", "b", "c", "d"], "eos_token_id": [1, 2, 3, 4]}
    child = child_config(parent, plan_of("qwen3", layer=[1, 3]))
    assert child["layer_types"] == ["b", "d"]
    assert child["eos_token_id"] == [1, 2, 3, 4]
    assert parent["layer_types"] == ["a", "b", "c", "d"]
    assert child_config(parent, plan_of("qwen3"))["layer_types"] == parent["layer_types"]
    assert child_config({"layer_types": None}, plan_of("qwen3", layer=[1]))["layer_types"] is None


@pytest.mark.parametrize("field", ["auto_map", "attn_implementation", "_attn_implementation", "_name_or_path"])
def test_nothing_that_chooses_code_or_paths_is_passed_on(field):
    assert field not in child_config({field: "evil"}, plan_of("llama"))


def test_old_spellings_stand_beside_the_new():
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    child = child_config({"dtype": "bfloat16", "rope_parameters": yarn}, plan_of("llama"))
    assert child["dtype"] == child["torch_dtype"] == "bfloat16"
    assert child["rope_parameters"] == yarn
    assert child["rope_theta"] == 1e6
    assert child["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}


def test_a_parent_of_the_old_spelling_keeps_it():
    old = {"torch_dtype": "float16", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    child = child_config(old, plan_of("llama"))
    assert {name: child[name] for name in old} == old
    assert "rope_parameters" not in child


def test_what_llama_cpp_reads_from_the_config_is_stated():
    """transformers has the kind of scores in its code, and lists dense layers."""
    for model_type in ("deepseek_v3", "glm4_moe_lite", "minimax_m2"):
        assert child_config({}, plan_of(model_type))["scoring_func"] == "sigmoid"
    assert "scoring_func" not in child_config({}, plan_of("deepseek_v2"))
    lists = {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"], "first_k_dense_replace": 1}
    assert child_config(lists, plan_of("glm4_moe_lite", layer=[1, 2, 3]))["first_k_dense_replace"] == 0
    granite = child_config({"intermediate_size": 48}, plan_of("granitemoehybrid", ffn=[[0, 1]] * 4))
    assert granite["shared_intermediate_size"] == granite["intermediate_size"] == 2
    config = tiny_config("granitemoehybrid", num_local_experts=6, num_experts_per_tok=2)
    narrow = PrunePlan(Shape.of(family_of(config), config), {"ffn": torch.zeros(4, 6, 1, dtype=torch.long)})
    child = child_config({}, narrow)
    assert (child["shared_intermediate_size"], child["intermediate_size"]) == (48, 1)
