"""Files of a hub repository that are downloaded."""

from huggingface_hub.utils import filter_repo_objects

from minitron_cli.checkpoint.model_names import FILES, OTHER_COPIES

WANTED = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "additional_chat_templates/tool.jinja",
    "sparsity.masks",
    "LICENSE",
    "NOTICE.md",
    "USE_POLICY.md",
]
OTHERS = [
    "original/model.safetensors",
    "metal/model.bin",
    "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors",
    "pytorch_model.bin",
    "onnx/model.onnx",
]


def test_weights_are_downloaded_once() -> None:
    found = filter_repo_objects([*WANTED, *OTHERS], allow_patterns=[*FILES], ignore_patterns=[*OTHER_COPIES])
    assert sorted(found) == sorted(WANTED)
