"""One notion of the same tokenizer: each text becomes the same ids, whatever the files look like."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.errors import CheckpointError
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from tests.tiny import write_tiny

TOKENS = 300
NAMES = ("the student", "the teacher")
TEXTS = [
    "The Cat sat on 12 mats, didn't it? " * 20,
    "naïve café menus and the Dog ran over hills " * 20,
    " ".join("".join(random.Random(i).choices("xyz", k=9)) for i in range(90)),  # whose merges compete
]
Json = dict[str, Any]


def written(directory: Path, rows: int = TOKENS) -> Path:
    write_tiny(directory, vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    train_bpe(TEXTS, TOKENS, directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Rows of the embedding -> a checkpoint with one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {rows: written(root / str(rows), rows) for rows in (TOKENS, TOKENS + 1, 2 * TOKENS)}


@pytest.fixture
def student(models: dict[int, Path]) -> SourceModel:
    return open_source_model(models[TOKENS])


def edited(model: Path, directory: Path, change: Callable[[Json], object]) -> SourceModel:
    """Copy of a checkpoint with another `tokenizer.json`, written in another way."""
    shutil.copytree(model, directory)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1))
    return open_source_model(directory)


def renumbered(content: Json) -> None:
    ids = list(range(1, TOKENS))
    random.Random(0).shuffle(ids)
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: ids[i - 1] if i else 0 for token, i in vocabulary.items()}


def add(content: Json, *tokens: str) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    content["added_tokens"] += [{"id": TOKENS + i, "content": token} | flags for i, token in enumerate(tokens)]


def swap_merges(content: Json) -> None:
    """All tokens stay; they are made in the opposite order."""
    content["model"]["merges"] = content["model"]["merges"][::-1]


SAME: dict[str, tuple[int, Callable[[Json], object]]] = {
    "saved again": (TOKENS, lambda c: None),
    "padded": (2 * TOKENS, lambda c: None),
    "chat tokens": (2 * TOKENS, lambda c: add(c, "<|im_start|>", "<|im_end|>")),
    "writes bos": (TOKENS, lambda c: c.update(post_processor=None)),
}
OTHER: dict[str, tuple[Callable[[Json], object], str]] = {
    "renumbered": (renumbered, r"^token '.+' has the id \d+ in the student and \d+ in the teacher$"),
    "other merges": (swap_merges, r"^the tokenizers of the student and the teacher split '.+' differently$"),
    "lower case": (lambda c: c.update(normalizer={"type": "Lowercase"}), "differently"),
    "composed": (lambda c: c.update(normalizer={"type": "NFC"}), "differently"),
    "other digits": (
        lambda c: c.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, c["pre_tokenizer"]],
            }
        ),
        "differently",
    ),
}


@pytest.mark.parametrize(("rows", "change"), SAME.values(), ids=SAME)
def test_the_same_tokenizer_in_other_files_is_accepted(
    models: dict[int, Path], student: SourceModel, tmp_path: Path, rows: int, change: Callable[[Json], object]
) -> None:
    teacher = edited(models[rows], tmp_path / "teacher", change)
    assert (teacher.path / "tokenizer.json").read_bytes() != (student.path / "tokenizer.json").read_bytes()
    assert tokenizers.difference(student, teacher, NAMES) is None
    tokenizers.require_same(student, teacher)


def test_another_eos_and_chat_template_are_accepted(student: SourceModel, tmp_path: Path) -> None:
    shutil.copytree(student.path, tmp_path / "teacher")
    file = tmp_path / "teacher/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "!", "chat_template": "{{ messages }}"}))
    assert tokenizers.difference(student, open_source_model(tmp_path / "teacher"), NAMES) is None


@pytest.mark.parametrize(("change", "why"), OTHER.values(), ids=OTHER)
def test_another_tokenizer_is_refused_in_one_sentence(
    models: dict[int, Path], student: SourceModel, tmp_path: Path, change: Callable[[Json], object], why: str
) -> None:
    teacher = edited(models[TOKENS], tmp_path / "teacher", change)
    with pytest.raises(CheckpointError, match=f"{why.rstrip('$')}: distill from the model that the student was pruned"):
        tokenizers.require_same(student, teacher)
    found = tokenizers.difference(teacher, student, NAMES)
    assert found


def test_a_tokenizer_with_more_plain_tokens_is_another(student: SourceModel, tmp_path: Path) -> None:
    write_tiny(tmp_path, vocab_size=TOKENS, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    train_bpe(TEXTS, TOKENS - 10, tmp_path)
    other = open_source_model(tmp_path)
    for first, second in ((student, other), (other, student)):
        found = tokenizers.difference(first, second, NAMES)
        assert found
        assert "tokens and the teacher's" in found


def test_a_token_that_the_other_model_has_no_row_for_is_another(models: dict[int, Path], tmp_path: Path) -> None:
    reader = edited(models[2 * TOKENS], tmp_path / "reader", lambda c: add(c, "<|im_start|>", "<|im_end|>"))
    short, padded = (open_source_model(models[rows]) for rows in (TOKENS + 1, 2 * TOKENS))
    found = tokenizers.difference(reader, short, NAMES)
    assert found == "the student's token '<|im_end|>' has the id 301 and the teacher's embedding 301 rows"
    assert tokenizers.difference(reader, padded, NAMES) is None
    assert tokenizers.difference(short, reader, NAMES) is None


def test_a_token_that_neither_model_has_a_row_for_is_in_no_text(models: dict[int, Path], tmp_path: Path) -> None:
    """Gemma 3 of 1B and its children are so: <image_soft_token> has the id 262144, as many as there are rows."""
    parent = edited(models[TOKENS], tmp_path / "parent", lambda content: add(content, "<image_soft_token>"))
    child = edited(parent.path, tmp_path / "child", lambda content: None)
    assert tokenizers.difference(child, parent, NAMES) is None
