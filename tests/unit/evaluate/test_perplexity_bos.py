"""Perplexity on files equals lm-eval's on the same documents and window, with and without a bos."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from minitron_cli.data.pack import Blocks, prepare
from minitron_cli.data.sources import DataConfig, Source, TextFiles, TokenIds
from minitron_cli.evaluate.perplexity import perplexity
from tests.tiny import tiny_model
from tests.unit.evaluate.conftest import TEXT

TEXTS = [TEXT[start : start + length] for start, length in ((0, 90), (300, 400), (900, 7), (1100, 260), (1500, 150))]
WORDS = [text.split() for text in TEXTS if len(text) > 100]
PAIRS = [(" ".join(words[:3]), " " + " ".join(words[3:])) for words in WORDS]


@pytest.fixture(scope="module")
def bos_tokenizer(tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with a bos that it writes before every text."""
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.add_special_tokens(["<bos>"])
    number = raw.token_to_id("<bos>")
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", number)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(scope="module")
def silent_tokenizer(bos_tokenizer) -> PreTrainedTokenizerFast:
    """The same with a bos that it names and does not write."""
    raw = Tokenizer.from_str(bos_tokenizer.backend_tokenizer.to_str())
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(scope="module")
def bos_model(bos_tokenizer) -> Any:
    return tiny_model("llama", vocab_size=len(bos_tokenizer), max_position_embeddings=512)


def one_block(tokenizer: Any, source: Source, bos: str, tokens: int, path: Path) -> Blocks:
    """All `tokens` tokens of the source in a single block, so that each document has the window it has in lm-eval."""
    config = DataConfig(sources=(source,), validation_fraction=0, bos=bos, sequence_length=tokens)
    return prepare(config, "train", tokenizer, "t", path)


def total_nll(model: Any, blocks: Blocks) -> float:
    found = perplexity(model, blocks)
    return found.loss_nats * found.tokens


def rows(path: Path, values: list[dict[str, Any]]) -> tuple[str]:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return (str(path),)


def rolling(lm: HFLM) -> float:
    """Negative log-likelihood that lm-eval gives the documents and the end-of-text token of each."""
    asked = [Instance("loglikelihood_rolling", {}, (f"{text}<eos>",), i) for i, text in enumerate(TEXTS)]
    return -sum(lm.loglikelihood_rolling(asked, disable_tqdm=True))


def test_text_with_a_bos_has_lm_evals_rolling_likelihood(bos_model, bos_tokenizer, tmp_path):
    """lm-eval puts the bos before the text when add_bos_token is false, and a second one when it is true."""
    text = TextFiles(paths=rows(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS]))
    lm = HFLM(pretrained=bos_model, tokenizer=bos_tokenizer, add_bos_token=False)
    tokens = sum(len(bos_tokenizer(text).input_ids) + 1 for text in TEXTS)
    one = total_nll(bos_model, one_block(bos_tokenizer, text, "auto", tokens, tmp_path / "cache"))
    assert one == pytest.approx(rolling(lm), rel=1e-5)
    begin = [bos_tokenizer.bos_token_id, *bos_tokenizer("").input_ids]
    ids = [begin + bos_tokenizer(f"{text}<eos>", add_special_tokens=False).input_ids for text in TEXTS]
    twice = TokenIds(paths=rows(tmp_path / "ids.jsonl", [{"input_ids": row} for row in ids]))
    lm = HFLM(pretrained=bos_model, tokenizer=bos_tokenizer, add_bos_token=True)
    two = total_nll(bos_model, one_block(bos_tokenizer, twice, "auto", tokens + len(TEXTS), tmp_path / "cache"))
    assert two == pytest.approx(rolling(lm), rel=1e-5)
    assert abs(two - one) > 0.1


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_always_gives_a_tokenizer_that_writes_no_bos_lm_evals_prefix(
    add_bos_token, bos_model, silent_tokenizer, tmp_path
):
    text = TextFiles(paths=rows(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS]))
    lm = HFLM(pretrained=bos_model, tokenizer=silent_tokenizer, add_bos_token=add_bos_token)
    tokens = sum(len(silent_tokenizer(text).input_ids) + 2 for text in TEXTS)
    found = total_nll(bos_model, one_block(silent_tokenizer, text, "always", tokens, tmp_path / "cache"))
    assert found == pytest.approx(rolling(lm), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "bos"), [("bos_tokenizer", "never"), ("silent_tokenizer", "auto"), ("silent_tokenizer", "never")]
)
def test_text_without_a_bos_has_lm_evals_likelihood_after_its_first_token(name, bos, bos_model, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    text = TextFiles(paths=rows(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS]))
    lm = HFLM(pretrained=bos_model, tokenizer=tokenizer, add_bos_token=False)
    documents = [lm.tok_encode(f"{text}<eos>") for text in TEXTS]
    asked = [(("", ""), ids[:1], ids[1:]) for ids in documents]
    expected = -sum(value for value, _ in lm._loglikelihood_tokens(asked, disable_tqdm=True))
    blocks = one_block(tokenizer, text, bos, sum(map(len, documents)), tmp_path / "cache")
    assert total_nll(bos_model, blocks) == pytest.approx(expected, rel=1e-5)


COMPLETIONS = [
    ("bos_tokenizer", "auto", True),
    ("bos_tokenizer", "never", False),
    ("silent_tokenizer", "auto", True),
    ("silent_tokenizer", "auto", False),
]


@pytest.mark.parametrize(("name", "bos", "add_bos_token"), COMPLETIONS)
def test_completions_have_lm_evals_likelihood(name, bos, add_bos_token, bos_model, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    pairs = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    source = TextFiles(paths=rows(tmp_path / "pairs.jsonl", pairs), format="completion")
    lm = HFLM(pretrained=bos_model, tokenizer=tokenizer, add_bos_token=add_bos_token)
    asked = [Instance("loglikelihood", {}, (prompt, f"{answer}<eos>"), i) for i, (prompt, answer) in enumerate(PAIRS)]
    expected = -sum(value for value, _ in lm.loglikelihood(asked, disable_tqdm=True))
    tokens = sum(len(lm.tok_encode(f"{prompt}{answer}<eos>")) for prompt, answer in PAIRS)
    found = total_nll(bos_model, one_block(tokenizer, source, bos, tokens, tmp_path / "cache"))
    assert found == pytest.approx(expected, rel=1e-5)
