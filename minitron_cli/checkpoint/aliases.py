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
    "gemma-2-2b": Alias(
        "google/gemma-2-2b",
        {
            "model_type": "gemma2",
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-2-9b": Alias(
        "google/gemma-2-9b",
        {
            "model_type": "gemma2",
            "vocab_size": 256000,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-3-1b": Alias(
        "google/gemma-3-1b-pt",
        {
            "model_type": "gemma3_text",
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
    ),
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
    "minitron-4b": Alias(
        "nvidia/Minitron-4B-Base",
        {
            "model_type": "nemotron",
            "vocab_size": 256000,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "minitron-8b": Alias(
        "nvidia/Minitron-8B-Base",
        {
            "model_type": "nemotron",
            "vocab_size": 256000,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_hidden_layers": 32,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
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
    "mixtral-8x7b": Alias(
        "mistralai/Mixtral-8x7B-v0.1",
        {
            "model_type": "mixtral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
    ),
    "olmo-2-7b": Alias(
        "allenai/OLMo-2-1124-7B",
        {
            "model_type": "olmo2",
            "vocab_size": 100352,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "phi-3-mini": Alias(
        "microsoft/Phi-3-mini-4k-instruct",
        {
            "model_type": "phi3",
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 96,
            "tie_word_embeddings": False,
        },
    ),
    "phi-4": Alias(
        "microsoft/phi-4",
        {
            "model_type": "phi3",
            "vocab_size": 100352,
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
    "pythia-1.4b": Alias(
        "EleutherAI/pythia-1.4b",
        {
            "model_type": "gpt_neox",
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "tie_word_embeddings": False,
        },
    ),
    "pythia-6.9b": Alias(
        "EleutherAI/pythia-6.9b",
        {
            "model_type": "gpt_neox",
            "vocab_size": 50432,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
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
    "qwen3-30b-a3b": _qwen3(
        "Qwen/Qwen3-30B-A3B-Base",
        model_type="qwen3_moe",
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "smollm3-3b": Alias(
        "HuggingFaceTB/SmolLM3-3B-Base",
        {
            "model_type": "smollm3",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
}
