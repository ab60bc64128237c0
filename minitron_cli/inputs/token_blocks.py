"""Token blocks that stages read; text is tokenized once per workspace."""

from pathlib import Path
from typing import Literal

from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks, prepare
from minitron_cli.data.sources import DataConfig


def blocks_of(context: Context, data: DataConfig, split: Literal["train", "validation"], model: Path) -> Blocks:
    """Blocks of one split, tokenized by the tokenizer of the model at `model`."""
    tokenizer = hf.load_tokenizer(model)
    return prepare(data, split, tokenizer, fingerprint.of_tokenizer(model), context.workspace.root / "tokens")
