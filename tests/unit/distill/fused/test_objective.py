"""What must agree before step 0, and which way the losses go through a model."""

import pytest
import torch
from transformers import LlamaConfig

from minitron_cli.distill.fused import token_chunks, vocab_chunks
from minitron_cli.distill.fused.objective import check_vocab
from minitron_cli.errors import CheckpointError
from tests.unit.distill import small


def test_equal_vocabularies_pass() -> None:
    config = LlamaConfig(vocab_size=64)
    check_vocab(config, config, "key", "key")
    check_vocab(config, config, None, "key")


def test_a_padded_vocabulary_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match="teacher's vocabulary has 128 entries and the student's 64: distill from"
    ):
        check_vocab(LlamaConfig(vocab_size=128), LlamaConfig(vocab_size=64), "key", "key")


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tokenizer is not the student's: distill from"):
        check_vocab(LlamaConfig(vocab_size=64), LlamaConfig(vocab_size=64), "key", "another")


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_run_takes_the_way_that_is_asked_for(low_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ in nothing but rounding, so training goes the same way."""
    settings = {"losses": [{"kind": "forward_kl"}, {"kind": "cross_entropy", "weight": 0.3}], "steps": 3}
    expected, _ = small.run(None, small.configured(**settings, low_memory=not low_memory), held_out=None)
    monkeypatch.setattr(token_chunks if low_memory else vocab_chunks, "run", None)
    student, _ = small.run(None, small.configured(**settings, low_memory=low_memory), held_out=None)
    torch.testing.assert_close(small.state(student), small.state(expected), rtol=1e-3, atol=1e-5)
