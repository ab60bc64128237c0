import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.errors import DataError

TEXTS = [Path(__file__).read_text(), "naïve café — 東京 𝄞\n\tindented\r\n" * 9]


def test_the_tokenizer_has_the_size_asked_for_and_loses_nothing(tmp_path):
    train_bpe(iter(TEXTS), 400, tmp_path / "new" / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    assert len(tokenizer) == 400
    for text in [*TEXTS, "bytes never seen: ÿ\x00\x7f  ", ""]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) < 0.7 * len(TEXTS[0].encode())  # it has learned something


def test_one_token_begins_ends_and_pads_and_is_never_added_unasked(tmp_path):
    train_bpe(TEXTS, 300, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert 0 not in tokenizer.encode("some text")


def test_the_same_texts_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        train_bpe(TEXTS, 350, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    train_bpe(TEXTS[:1], 350, tmp_path / "c")
    assert (tmp_path / "c" / "tokenizer.json").read_bytes() != (tmp_path / "a" / "tokenizer.json").read_bytes()


def test_the_class_is_one_that_older_readers_know(tmp_path):
    """transformers 5 itself would write TokenizersBackend, which transformers 4 refuses."""
    train_bpe(TEXTS, 300, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(("size", "possible"), [(100, 257), (5000, r"\d+")])
def test_a_size_that_the_text_cannot_fill_is_refused(size, possible, tmp_path):
    with pytest.raises(DataError, match=rf"a vocabulary of {possible} tokens, not {size:,}; ask for {possible}"):
        train_bpe(["short text"], size, tmp_path / "none")
    assert not (tmp_path / "none").exists()
