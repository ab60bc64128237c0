"""Configs and names of multimodal wrappers as they are on the hub: what is read of them, and what is written again."""

from pathlib import Path

import pytest

from minitron_cli.checkpoint.safetensors_file import TensorInfo
from minitron_cli.checkpoint.wrappers import unwrap
from minitron_cli.errors import CheckpointError

GEMMA = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
FLAT_QWEN = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_size": 2048,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_hidden_layers": 36,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vision_config": {"depth": 32, "out_hidden_size": 2048},
    "vocab_size": 151936,
}
NESTED_QWEN = {
    "hidden_size": 2048,  # some versions wrote the text model's fields twice
    "model_type": "qwen2_5_vl",
    "text_config": {
        "hidden_size": 2048,
        "model_type": "qwen2_5_vl_text",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
}
NO_TENSOR = TensorInfo("F32", (), Path(), 0, 4)


def read(config, *names):
    return unwrap(config, dict.fromkeys(names, NO_TENSOR))


def test_the_text_config_has_what_its_wrapper_states_for_it():
    text, _, wrapper = read(GEMMA)
    assert text == GEMMA["text_config"] | {
        "architectures": ["Gemma3ForCausalLM"],
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    assert wrapper.model_type == "gemma3"
    assert wrapper.config == GEMMA


def test_a_quantized_wrapper_is_a_quantized_text_model():
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    assert read(GEMMA | quantized)[0]["quantization_config"] == quantized["quantization_config"]


def test_a_flat_config_loses_what_is_not_the_text_models():
    text, _, _ = read(FLAT_QWEN)
    assert "vision_config" not in text
    assert (text["model_type"], text["hidden_size"], text["rope_theta"]) == ("qwen2", 2048, 1e6)
    assert text["rope_scaling"] is None  # of text alone, positions of three dimensions are plain ones


def test_scaled_positions_stay_scaled():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text, _, wrapper = read(NESTED_QWEN | {"text_config": NESTED_QWEN["text_config"] | {"rope_parameters": rope}})
    plain = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    assert text["rope_parameters"] == plain
    child = wrapper.config_of(text | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})["text_config"]
    assert child["rope_parameters"] == rope
    assert child["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "mrope_section": [16, 24, 24]}


@pytest.mark.parametrize("config", [GEMMA, FLAT_QWEN, NESTED_QWEN], ids=["nested", "flat", "both"])
def test_a_childs_config_reads_as_the_child_and_is_the_wrappers_otherwise(config):
    text, _, wrapper = read(config)
    child = {**text, "hidden_size": 1024, "head_dim": 64, "tie_word_embeddings": False}
    written = wrapper.config_of(child)
    assert unwrap(written, {"lm_head.weight": NO_TENSOR})[0] == child
    changed = {"hidden_size", "head_dim", "tie_word_embeddings", "text_config"}
    assert {name for name in written.keys() | config.keys() if written.get(name) != config.get(name)} <= changed
    assert written["vision_config"] == config["vision_config"]
    if "hidden_size" in config:
        assert written["hidden_size"] == 1024


@pytest.mark.parametrize(
    ("outer", "inner", "has_head", "is_tied"),
    [
        (None, None, False, True),
        (None, None, True, False),
        (True, None, True, True),  # stored twice, or wrong: what opens the checkpoint compares the numbers
        (None, False, True, False),
        (True, False, True, False),
        (True, False, False, True),
        (False, False, True, False),
    ],
)
def test_whether_the_head_is_tied(outer, inner, has_head, is_tied):
    said = {"tie_word_embeddings": outer} if outer is not None else {}
    nested = {"model_type": "mistral"} | ({"tie_word_embeddings": inner} if inner is not None else {})
    names = ["language_model.lm_head.weight"] if has_head else []
    text, _, wrapper = read({"model_type": "mistral3", "text_config": nested} | said, *names)
    assert text["tie_word_embeddings"] is is_tied
    written = wrapper.config_of(text)
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is is_tied


@pytest.mark.parametrize(
    ("kind", "stored", "own", "written"),
    [
        ("gemma3", "language_model.model.norm.weight", "model.norm.weight", None),
        ("gemma3", "model.language_model.norm.weight", "model.norm.weight", "language_model.model.norm.weight"),
        ("gemma3", "lm_head.weight", "lm_head.weight", "language_model.lm_head.weight"),
        ("mistral3", "language_model.lm_head.weight", "lm_head.weight", None),
        ("qwen2_5_vl", "model.norm.weight", "model.norm.weight", None),
        ("qwen2_5_vl", "model.language_model.norm.weight", "model.norm.weight", "model.norm.weight"),
        ("qwen3_vl", "model.language_model.norm.weight", "model.norm.weight", None),
    ],
)
def test_names_of_the_text_model(kind, stored, own, written):
    _, text, wrapper = read({"model_type": kind}, stored)
    assert list(text) == [own]
    assert not wrapper.tensors
    assert wrapper.stored_name(own) == (written or stored)


@pytest.mark.parametrize(
    ("kind", "stored", "written"),
    [
        ("gemma3", "vision_tower.vision_model.post_layernorm.bias", None),
        (
            "gemma3",
            "model.multi_modal_projector.mm_soft_emb_norm.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ),
        ("qwen2_5_vl", "model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("qwen3_vl", "model.visual.pos_embed.weight", None),
        ("gemma3", "a_head_that_nobody_knows", None),
    ],
)
def test_names_around_the_text_model(kind, stored, written):
    _, text, wrapper = read({"model_type": kind}, stored)
    assert not text
    assert list(wrapper.tensors) == [written or stored]


def test_one_tensor_under_two_names_is_refused():
    names = "language_model.model.norm.weight", "model.language_model.norm.weight"
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight' is stored twice"):
        read(GEMMA, *names)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": ["gemma3"]},
        {"model_type": "mistral3", "text_config": {"model_type": "gpt2"}},
    ],
)
def test_what_is_no_known_wrapper_stays_as_it_is(config):
    assert read(config, "x") == (config, {"x": NO_TENSOR}, None)
