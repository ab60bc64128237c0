"""Short names of well-known models: where they live on the hub, and the dimensions they were published with.

The dimensions let `--dry-run` count shapes without a network; a real run reads the checkpoint's own config.
"""

from typing import Any, NamedTuple


class Alias(NamedTuple):
    hub_id: str
    config: dict[str, Any]


def _llama(hub_id: str, **config: Any) -> Alias:
    return Alias(hub_id, {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": False} | config)


def _qwen3(hub_id: str, **config: Any) -> Alias:
    defaults = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": False}
    return Alias(hub_id, defaults | config)


ALIASES: dict[str, Alias] = {
    "llama-3.1-8b": _llama(
        "meta-llama/Llama-3.1-8B",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "llama-3.2-1b": _llama(
        "meta-llama/Llama-3.2-1B",
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "llama-3.2-3b": _llama(
        "meta-llama/Llama-3.2-3B",
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "mistral-7b": Alias(
        "mistralai/Mistral-7B-v0.3",
        {
            "model_type": "mistral",
            "vocab_size": 32768,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "mistral-nemo-12b": Alias(
        "mistralai/Mistral-Nemo-Base-2407",
        {
            "model_type": "mistral",
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3-4b": _qwen3(
        "Qwen/Qwen3-4B-Base",
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": _qwen3(
        "Qwen/Qwen3-8B-Base",
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
