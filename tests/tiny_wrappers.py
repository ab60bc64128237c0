"""Tiny multimodal wrappers, each with its own weights at random, and a prompt with an image for each."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
IMAGE = 60
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "patch_size": 4}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN_VISION = VISION | {"depth": 2, "num_heads": 2, "out_hidden_size": 32}
PIXTRAL = VISION | {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}

SIGLIP = VISION | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
IDEFICS = {"image_token_id": IMAGE, "scale_factor": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT
        | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2, "query_pre_attn_scalar": 8},
        "vision_config": VISION
        | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "vision_use_head": False},
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "idefics3": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": SIGLIP, **IDEFICS},
    "internvl": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": VISION
        | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": [16, 16], "patch_size": [4, 4]},
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
    },
    "llama4": {
        "text_config": TEXT
        | {
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layers": [1, 3],
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 6,
            "floor_scale": 3,
        },
        "vision_config": SIGLIP
        | {
            "intermediate_size": 64,  # of its own channels, 2 x 2 patches each
            "vision_output_dim": 24,
            "projector_input_dim": 24,
            "projector_output_dim": 24,
        },
        "image_token_index": IMAGE,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SIGLIP | {"model_type": "clip_vision_model", "image_size": 8, "projection_dim": 16},
        "image_token_index": IMAGE,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": PIXTRAL | {"image_size": 16},
        "image_token_index": IMAGE,
        "tie_word_embeddings": False,
    },
    "qwen2_vl": {
        "text_config": TEXT | {"rope_parameters": MROPE},
        "vision_config": {
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        **QWEN_IDS,
    },
    "qwen2_5_vl": {
        "text_config": TEXT | {"rope_parameters": MROPE},
        "vision_config": QWEN_VISION | {"fullatt_block_indexes": [0], "window_size": 16},
        "tie_word_embeddings": True,
        **QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": TEXT | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        **QWEN_IDS,
    },
    "qwen3_5": {
        "text_config": TEXT
        | {
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": MROPE
            | {"mrope_interleaved": True, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5},
        },
        "vision_config": QWEN_VISION | {"num_position_embeddings": 16},
        **QWEN_IDS,
    },
    "smolvlm": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": SIGLIP, **IDEFICS},
}


OFFSET = ("gemma3", "qwen3_5")
"""Types whose norms add 1 to their weight."""


def wrapper_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Random model of one type; norms and biases too, so that no value is its default."""
    config = CONFIG_MAPPING[kind].from_dict({**CONFIGS[kind], "model_type": kind, **changes})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            is_norm = parameter.ndim < 2
            parameter.copy_(torch.randn_like(parameter) * (0.3 if is_norm else 0.2) + is_norm * (kind not in OFFSET))
    model.tie_weights()
    return model


def saved_wrapper(directory: Path, kind: str, **changes: Any) -> PreTrainedModel:
    """The same model, also saved to a directory as transformers saves it, with a processor's files beside it."""
    logging.disable_progress_bar()
    model = wrapper_model(kind, **changes)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text('{"size": 16}')
    (directory / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    return model


def under_other_names(directory: Path, names: dict[str, str]) -> None:
    """Rename a saved model's tensors: prefix on disk -> another one."""
    tensors = load_file(directory / "model.safetensors")

    def other(name: str) -> str:
        old = next((old for old in names if name.startswith(old)), "")
        return names.get(old, "") + name.removeprefix(old)

    renamed = {other(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


def prompt(kind: str) -> dict[str, Tensor]:
    """Inputs of one image among a few tokens."""
    pixels = torch.Generator().manual_seed(0)
    if not kind.startswith("qwen"):
        ids = torch.tensor([[2, 5, IMAGE, IMAGE, IMAGE, IMAGE, 7, 9, 11]])
        size = 8 if kind == "llava" else 16
        image = torch.randn(1, 3, size, size, generator=pixels)
        others = {
            "gemma3": {"token_type_ids": (ids == IMAGE).long()},
            "mistral3": {"image_sizes": torch.tensor([[16, 16]])},
        }
        is_idefics = kind in ("idefics3", "smolvlm")
        return {"input_ids": ids, "pixel_values": image[None] if is_idefics else image, **others.get(kind, {})}
    ids = torch.tensor([[2, 5, 62, IMAGE, IMAGE, IMAGE, IMAGE, 63, 7, 9, 11]])
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(16, 96, generator=pixels),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def text_prompt() -> Tensor:
    """Token ids without an image, longer than a window."""
    return torch.randint(1, 59, (2, 20), generator=torch.Generator().manual_seed(1))
