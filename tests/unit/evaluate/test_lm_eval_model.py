"""Answers of lm-eval's own class for transformers, from the logits of the answers alone."""

import copy
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from minitron_cli.checkpoint import hf
from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.evaluate.lm_eval_model import Model
from tests.tiny import tiny_model

CONTEXT = 24
VOCAB = 260


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["one two three " * 20], VOCAB, folder)
    return hf.load_tokenizer(folder)


def requests_of(lengths: list[tuple[int, int]]) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """Requests with prompts and answers of these lengths; every third has two more that differ in the last token."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n, (prompt, answer) in enumerate(lengths):
        ids = torch.randint(1, VOCAB, (prompt + answer,), generator=generator).tolist()
        for last in [ids[-1], *([7, 11] if n % 3 == 0 else [])]:
            found.append(((f"prompt {n}", f"answer {n} {last}"), ids[:prompt], [*ids[prompt:-1], last]))
    return found


MIXED = [(5, 1), (9, 4), (3, 1), (20, 2), (1, 9), (30, 3), (12, 1), (2, CONTEXT), (23, 1), (24, 1)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_answer_is_that_of_lm_eval(family, batch_size, tokenizer):
    """Answers of one token and of many, prompts that share all but the last token, and prompts beyond the context."""
    model = tiny_model(family, vocab_size=VOCAB, max_position_embeddings=CONTEXT).eval()
    own, theirs = (
        kind(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, max_length=CONTEXT)
        for kind in (Model, HFLM)
    )
    asked = requests_of(MIXED)
    found, expected = (lm._loglikelihood_tokens(asked, disable_tqdm=True) for lm in (own, theirs))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [best for _, best in found] == [best for _, best in expected]
    assert len({value for value, _ in found}) == len(asked)


def test_only_the_logits_of_answers_are_computed(tokenizer):
    """As many positions as answers and padding of a batch take; prompts that are alike are read once."""
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT).eval()
    read: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _, args, __: read.append(tuple(args[0].shape[:2])))
    lm = Model(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2, max_length=CONTEXT)
    lm._loglikelihood_tokens(requests_of([(20, 1), (19, 2), (8, 1), (5, 2)]), disable_tqdm=True)
    assert read == [(2, 2), (2, 4)]


def test_no_request_is_no_answer(tokenizer):
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT).eval()
    assert Model(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2)._loglikelihood_tokens([]) == []


def test_a_model_that_computes_all_logits_is_asked_too(tokenizer):
    """A class of somebody's own may know nothing of positions."""
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT).eval()
    asked = requests_of(MIXED)
    theirs = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3, max_length=CONTEXT)
    expected = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    forward = model.forward
    model.forward = lambda input_ids: forward(input_ids)
    own = Model(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3, max_length=CONTEXT)
    assert own._loglikelihood_tokens(asked, disable_tqdm=True) == expected


def test_an_answer_is_scored_alone_whoever_reads_the_same(tokenizer):
    """lm-eval computes requests that read the same tokens once, and takes the wrong ones of the shorter answer."""
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT).eval()
    lm = Model(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=8, max_length=CONTEXT)
    asked = [(("a", "bc"), [1, 2, 3], [4, 5]), (("ab", "c"), [1, 2, 3, 4], [6]), (("ab", "d"), [1, 2, 3, 4], [7])]
    together = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    with torch.no_grad():
        logp = model(torch.tensor([[1, 2, 3, 4]])).logits[0].log_softmax(-1)
    expected = [logp[2, 4] + logp[3, 5], logp[3, 6], logp[3, 7]]
    assert [value for value, _ in together] == pytest.approx([float(value) for value in expected], rel=1e-5)
