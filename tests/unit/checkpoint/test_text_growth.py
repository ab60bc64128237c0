"""A tokenizer whose normalizer fills the memory is refused before it is loaded."""

import json
import time

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from minitron_cli.checkpoint import hf, text_growth
from minitron_cli.errors import CheckpointError


def saved(path, **parts):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "normalizer": 1}, unk_token="a"))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def doubling(kind, count, find):
    return kind.Sequence([kind.Replace(find, "aa") for _ in range(count)])


@pytest.mark.parametrize("find", ["a", Regex("a?")])
@pytest.mark.parametrize(("part", "kind"), [("normalizer", normalizers), ("decoder", decoders)])
def test_a_chain_of_replacements_is_refused(tmp_path, find, part, kind):
    saved(tmp_path, **{part: doubling(kind, 40, find)})
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"its {part} can make a text .* times longer; restore the file"):
        hf.load_tokenizer(tmp_path)
    assert time.monotonic() - started < 2


def test_an_escaped_key_hides_nothing(tmp_path):
    path = saved(tmp_path, normalizer=doubling(normalizers, 40, "a")) / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer": {', '"normal\\u0069zer": {'))
    assert json.loads(path.read_text())["normalizer"]
    with pytest.raises(CheckpointError, match="its normalizer can make a text"):
        text_growth.check(tmp_path)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("\u2026", "...")]),
    ],
)
def test_normalizers_of_real_models_pass(tmp_path, normalizer):
    if normalizer is None:
        saved(tmp_path)
    else:
        saved(tmp_path, normalizer=normalizer)
    text_growth.check(tmp_path)
