from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minitron_cli import progress

EOS = "<|end|>"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 300 tokens that writes no special token around a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog", "def f(x): return x"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)


@pytest.fixture
def texts() -> list[str]:
    """Documents of 1 to about 60 tokens."""
    return [f"{i}: " + "the lazy fox " * (i * 7 % 20) for i in range(40)]


class Remarks:
    """A display that keeps what was said, and calls `on_step` at every step of a bar."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.done: dict[str, tuple[int, int | None]] = {}
        self.on_step = lambda title: None

    def start(self, title: str, total: int | None, unit: str) -> progress.Step:
        self.done[title] = (0, total)

        def step(n: int = 1, **figures: float | int | str) -> None:
            self.done[title] = (self.done[title][0] + n, total)
            self.on_step(title)

        return step

    def finish(self, step: progress.Step) -> None:
        pass

    def say(self, text: str) -> None:
        self.messages.append(text)

    warn = say


@pytest.fixture
def remarks():
    display = Remarks()
    progress.show_on(display)
    return display


@pytest.fixture
def write(tmp_path: Path):
    """Write bytes or text to a file of this name and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
