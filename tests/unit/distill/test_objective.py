"""What must agree before step 0."""

import pytest
from transformers import LlamaConfig

from minitron_cli.distill.objective import check_vocab
from minitron_cli.errors import CheckpointError


def test_equal_vocabularies_pass() -> None:
    config = LlamaConfig(vocab_size=64)
    check_vocab(config, config, "key", "key")
    check_vocab(config, config, None, "key")


def test_a_padded_vocabulary_is_refused() -> None:
    with pytest.raises(CheckpointError, match="teacher's vocabulary has 128 entries and the student's 64: distil from"):
        check_vocab(LlamaConfig(vocab_size=128), LlamaConfig(vocab_size=64), "key", "key")


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tokenizer is not the student's: distil from"):
        check_vocab(LlamaConfig(vocab_size=64), LlamaConfig(vocab_size=64), "key", "another")
