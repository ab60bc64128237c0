"""A tiny model with a tokenizer of its own, and text, to run stages on."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.data.tokenizer import train_bpe
from tests.tiny import write_tiny

WORDS = "the cat sat on a mat and the dog ran over hills while birds sing in tall trees near old stone walls"


def write_place(root: Path, model_type: str = "llama", **options: object) -> None:
    """`model/` and `text.txt` under `root`."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS.split(), k=60)) for _ in range(100)]
    (root / "text").mkdir(parents=True)
    for i, document in enumerate(documents):
        (root / "text" / f"{i}.txt").write_text(document)
    train_bpe(documents, 300, root / "tokenizer")
    write_tiny(root / "model", model_type, **({"vocab_size": 300} | options))
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "model")


def data(root: Path, length: int = 16) -> DataConfig:
    sources = (TextFiles(paths=(str(root / "text" / "*.txt"),)),)
    return DataConfig(sources=sources, sequence_length=length, validation_fraction=0.1)


def context(root: Path, **options: object) -> Context:
    return replace(Context(Workspace(root)), **options)
