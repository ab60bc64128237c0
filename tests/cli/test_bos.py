"""What documents begin with, as the program says it and as it is asked for."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.cli.program import invoke
from tests.tiny import write_tiny


def write_model(directory: Path, *, has_bos: bool) -> Path:
    """A tiny model and its tokenizer of words, which writes a bos if it has one."""
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["<s>", "</s>", "?", "a", "b"])}, "?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if has_bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>"} if has_bos else {}
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", **named).save_pretrained(directory)
    return write_tiny(directory)


@pytest.mark.parametrize(("has_bos", "begin"), [(True, "<s>"), (False, "nothing")])
def test_inspect_shows_what_documents_begin_and_end_with(has_bos: bool, begin: str, tmp_path: Path) -> None:
    result = invoke("inspect", write_model(tmp_path, has_bos=has_bos), "--json")
    assert json.loads(result.stdout)["documents"] == {"begin_with": begin, "end_with": "</s>"}


def test_a_tokenizer_that_does_not_load_is_named_beside_the_rest(tmp_path: Path) -> None:
    (write_tiny(tmp_path) / "tokenizer.json").write_text("{")
    result = invoke("inspect", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert "restore the tokenizer files" in facts["documents"]
    assert facts["family"] == "llama"


def test_a_bos_that_the_tokenizer_has_not_is_refused_in_one_sentence(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", has_bos=False)
    (tmp_path / "text.txt").write_text("a b " * 200)
    words = ("importance", model, "--data", tmp_path / "text.txt", "--bos", "always", "--runs-dir", tmp_path / "runs")
    result = invoke(*words)
    assert result.exit_code == 2
    assert "data.bos=always: the tokenizer has no bos token; use auto, or name one as bos_token" in result.stderr
