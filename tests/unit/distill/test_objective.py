"""What must agree before step 0, and which way the losses go through a model."""

import pytest
import torch
from transformers import LlamaConfig

from minitron_cli.data.batches import batch
from minitron_cli.distill import by_tokens, by_vocab
from minitron_cli.distill.forward import Models
from minitron_cli.distill.objective import check_vocab
from minitron_cli.distill.targets import targets
from minitron_cli.errors import CheckpointError
from tests.unit.distill import small


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


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_run_takes_the_way_that_is_asked_for(low_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a model the two differ in nothing but rounding."""
    losses = [{"kind": "forward_kl"}, {"kind": "cross_entropy", "weight": 0.3}]
    part = batch(small.Text(), [3, 1])
    results = []
    for low in (False, low_memory):
        monkeypatch.setattr(by_vocab if not low else by_tokens, "run", None)
        config = small.configured(losses=losses, low_memory=low)
        models = Models(small.student(), small.teacher(), config, (), torch.device("cpu"), "fp32")
        target = targets(part)
        found = models.losses(part, target, len(target.labels_N), 0.0)
        found.total.backward()
        results.append([found.figures_F, *(p.grad for p in models.trained().values())])
        monkeypatch.undo()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
