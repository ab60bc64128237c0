"""Row formats: the registry, and that a new one takes one file and one name."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from minitron_cli.data.formats import FORMATS, format_of
from minitron_cli.data.rows import Row
from minitron_cli.data.sources import TextFiles
from minitron_cli.errors import DataError
from tests.extended_package import ExtendedPackage

TOY = '''
"""Rows of questions and answers, written as Q and A."""

from typing import Literal, NamedTuple

from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.loss_spans import LossSpans
from minitron_cli.data.rows import Row, text_value


class Pair(NamedTuple):
    question: str
    answer: str

    def loss_spans(self, tokenizer, where):
        start = f"Q: {self.question} A:"
        text = f"{start} {self.answer}"
        return [LossSpans(text, ((len(start), len(text)),), ends_with_eos=True)]


class QAFormat(BaseFormat):
    """A question and its answer, which alone is scored."""

    kind: Literal["qa"] = "qa"
    column: str = "answer"
    prompt_column: str = "question"

    @property
    def columns(self):
        return (self.prompt_column, self.column)

    def content(self, row: Row):
        return Pair(*(text_value(row, i, column) for i, column in enumerate(self.columns)))
'''
SCRIPT = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from minitron_cli.checkpoint import hf
from minitron_cli.cli.app import app
from minitron_cli.data.pack import prepare
from minitron_cli.data.sources import DataConfig
from minitron_cli.recipe import Recipe

tokenizer = hf.load_tokenizer(Path("tokenizer"))
source = {"kind": "files", "paths": ["pairs.jsonl"], "format": "qa", "prompt_column": "q", "column": "a"}
config = DataConfig.model_validate({"sources": [source], "validation_fraction": 0, "sequence_length": 2})
blocks = prepare(config, "train", tokenizer, "key", Path("cache"))
print(tokenizer.decode(blocks.file.tokens))
print(tokenizer.decode(blocks.file.tokens[blocks.file.loss_mask]))
print(Recipe.model_json_schema()["$defs"]["TextFiles"]["properties"]["format"])
print("qa" in CliRunner().invoke(app, ["importance", "--help"], env={"COLUMNS": "300"}).output)
"""


@pytest.mark.slow
def test_a_new_format_is_one_file_and_one_name(tokenizer, tmp_path: Path) -> None:
    package = ExtendedPackage(tmp_path)
    package.add("minitron_cli/data/formats/qa.py", TOY)
    package.name("minitron_cli/choices.py", {'"alpaca", "auto"]': '"alpaca", "qa", "auto"]'})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"q": "the fox?", "a": "lazy dog"}] * 3
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, scored, schema, is_offered = package.run(SCRIPT).splitlines()
    assert text.startswith("Q: the fox? A: lazy dog<|end|>Q: the fox? A: lazy dog<|end|>")
    assert scored.startswith(" lazy dog<|end|> lazy dog<|end|>")
    assert "qa: a question and its answer, which alone is scored." in schema
    assert is_offered == "True"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_reads_the_columns_it_is_given(kind: str) -> None:
    named = format_of(kind, {"column": "a", "prompt_column": "b"})
    assert named.column == "a"
    assert set(named.columns) <= {"a", "b"}
    assert format_of(kind, {"column": None}).columns == FORMATS[kind]().columns


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="rows:1: column "):
        format_of(kind, {}).content(Row((None, None), "rows:1", 1))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValidationError, match="'text', 'chat', 'completion', 'sharegpt', 'alpaca' or 'auto'"):
        TextFiles(paths=("a",), format="chats")
