"""Models in forms that are not read: what a file or directory holds instead of a checkpoint, and what to give."""

from pathlib import Path

ADAPTER = "is an adapter, not a model: merge it into its base model first (peft: merge_and_unload) and give the result"
GGUF = "is GGUF, the format of llama.cpp: give the original checkpoint, in safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def instead_of_a_checkpoint(path: Path) -> str | None:
    """Sentence on a directory without `model.safetensors` and its index that holds a model in another form, or None."""
    if any((path / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return None
    if (path / "adapter_config.json").is_file():
        return f"{path} {ADAPTER}"
    if gguf := _first(path, "*.gguf"):
        return f"{path} holds {gguf}, which {GGUF}"
    if pickle := next(filter(None, (_first(path, pattern) for pattern in PICKLES)), None):
        return (
            f"{path} holds only pickled weights ({pickle}), which can run code: "
            "convert it to safetensors with its own library first"
        )
    return None


def instead_of_a_directory(file: Path) -> str:
    """Sentence on a file that was given as a model."""
    if file.suffix == ".gguf":
        return f"{file} {GGUF}"
    return f"{file} is not a directory: give the directory of a Hugging Face checkpoint"


def _first(path: Path, pattern: str) -> str | None:
    return min((found.name for found in path.glob(pattern)), default=None)
