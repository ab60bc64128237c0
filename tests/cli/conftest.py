"""A runner for the program, and a tiny model with a tokenizer and text of its own."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.cli.program import Run, invoke

WORDS = "the cat sat on a mat and the dog ran over hills while birds sing in tall trees near old stone walls"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("prune", "--target", "4B")` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINITRON_RUNS", raising=False)
    return invoke


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `model/` (Llama, 4 layers, hidden 64) and `text.jsonl` (400 documents)."""
    from minitron_cli.data.tokenizer import train_bpe
    from tests.tiny import write_tiny

    root = tmp_path_factory.mktemp("tiny")
    draw = random.Random(0)
    documents = [" ".join(draw.choice(WORDS.split()) for _ in range(60)) for _ in range(400)]
    (root / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    train_bpe(documents, 300, root / "tokenizer")
    write_tiny(root / "model", vocab_size=300, hidden_size=64, intermediate_size=128)
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "model")
    return root
