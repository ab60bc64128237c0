import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minitron_cli.data import encode
from minitron_cli.data.document_frame import DocumentFrame
from minitron_cli.data.encode import Encoder, checked, encoded, encoder_arguments
from minitron_cli.data.rows import Document, Ids
from minitron_cli.errors import DataError


def documents(contents: list) -> list[Document]:
    return [Document(content, f"file:{i}", 1) for i, content in enumerate(contents)]


def arrays_of(texts: list[str], tokenizer: PreTrainedTokenizerFast, after_group=lambda: None) -> list[Ids]:
    frame = DocumentFrame.of(tokenizer, "auto")
    encode = Encoder(*encoder_arguments(tokenizer, frame))
    return list(encoded(documents(texts), frame, lambda groups: map(encode, groups), after_group))


def ids_of(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [document.ids.tolist() for document in arrays_of(texts, tokenizer)]


def expected_ids(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    """Each character is a token, so that a text may be cut anywhere."""
    model = models.WordLevel(
        {"<end>": 0} | {character: i for i, character in enumerate("abc \n", 1)}, unk_token="<end>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Each word of a to ccc is a token, so that a text must be cut at a line's end or a space."""
    names = [a * n for a in "abc" for n in range(1, 6)]
    model = models.WordLevel({name: i for i, name in enumerate(["<end>", "?", *names])}, unk_token="?")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def test_a_document_is_what_the_tokenizer_makes_of_it_and_the_end_of_text(tokenizer, texts):
    assert ids_of(texts, tokenizer) == expected_ids(texts, tokenizer)


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 10_000])
def test_a_long_document_keeps_every_character(limit, characters, monkeypatch):
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", limit)
    rng = random.Random(limit)
    texts = ["".join(rng.choices("abc \n", k=rng.randint(1, 200))) for _ in range(30)]
    assert ids_of(texts, characters) == expected_ids(texts, characters)


def test_a_long_document_is_cut_behind_a_line(words, monkeypatch):
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 40)
    rng = random.Random(0)
    lines = [" ".join(rng.choices(["a", "bb", "ccccc"], k=5)) + "\n" for _ in range(400)]
    texts = ["".join(lines[i : i + 40]) for i in range(0, 400, 40)]
    assert ids_of(texts, words) == expected_ids(texts, words)


def test_no_more_than_a_group_is_tokenized_at_once(characters, monkeypatch):
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 50)
    groups = []
    assert len(arrays_of(["a" * 999, *["b"] * 500], characters, lambda: groups.append(1))) == 501
    assert len(groups) == 30  # 20 pieces of at most 50, then 50 documents at a time


def test_padding_and_truncation_of_the_tokenizers_file_are_not_applied_nor_changed(tokenizer, texts):
    expected = expected_ids(texts, tokenizer)
    cutting = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token=tokenizer.eos_token
    )
    cutting.backend_tokenizer.enable_truncation(4)
    cutting.backend_tokenizer.enable_padding(length=90)
    assert ids_of(texts, cutting) == expected
    assert cutting.backend_tokenizer.truncation["max_length"] == 4
    assert cutting.backend_tokenizer.padding["length"] == 90


def test_a_tokenizer_without_an_end_of_text_is_refused(tokenizer):
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="the tokenizer has no end-of-text token: name one as eos_token"):
        ids_of(["a"], without)


def test_ready_ids_pass_unchanged():
    arrays = [Ids(np.array([0, 299, 5], np.uint16)), Ids(np.array([7]), np.array([True]))]
    assert list(checked(documents(arrays), 300)) == arrays


@pytest.mark.parametrize(("ids", "wrong"), [([5, 300], 300), ([-1, 5], -1), ([2**63], 2**63)])
def test_ids_that_the_tokenizer_does_not_know_are_named(ids, wrong):
    with pytest.raises(
        DataError, match=f"file:1: token id {wrong} is not one of the vocabulary's 300; use the ids of this"
    ):
        list(checked(documents([Ids(np.array([1])), Ids(np.array(ids))]), 300))
