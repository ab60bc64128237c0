"""Loss per byte: each model reads the same text in tokens of its own."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_cli.data.pack import prepare
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import CheckpointError, DataError
from minitron_cli.evaluate.per_byte import Piece, _OwnTokens, loss_per_byte, pieces_of
from tests.unit.evaluate.test_perplexity import Blocks

TEXT = "import pytest and a café, then return the tokens of all models, one by one. " * 4
PIECES = [Piece(7, TEXT), Piece(7, "def model(tokenizer):"), Piece(9, "naïve"), Piece(4, TEXT[:90])]


def nats(model: Any, ids: list[int], before: int) -> float:
    """Sum of -log p of the ids after one token, from transformers' logits."""
    row = torch.tensor([[before, *ids]])
    with torch.no_grad():
        logp = model(row, use_cache=False).logits[0, :-1].log_softmax(-1)
    return -float(logp[torch.arange(len(ids)), row[0, 1:]].sum())


def test_pieces_that_fit_a_block_have_the_loss_of_transformers(model: Any, tokenizer: Any) -> None:
    ids = [tokenizer(piece.text)["input_ids"] for piece in PIECES]
    expected = [nats(model, some, tokenizer.eos_token_id) for some in ids]
    sizes = [len(piece.text.encode()) for piece in PIECES]
    assert sizes[2] == 6  # the bytes of five characters
    found = loss_per_byte(model, tokenizer, PIECES, length=sum(map(len, ids)) + len(ids), batch_size=2).items
    assert found.values == pytest.approx([n / math.log(2) / size for n, size in zip(expected, sizes, strict=True)])
    assert (found.weights, found.groups) == (sizes, [7, 7, 9, 4])


def test_the_figures_are_those_of_all_bytes(model: Any, tokenizer: Any) -> None:
    total = sum(nats(model, tokenizer(piece.text)["input_ids"], tokenizer.eos_token_id) for piece in PIECES)
    found = loss_per_byte(model, tokenizer, PIECES, length=400).metrics()
    size = sum(len(piece.text.encode()) for piece in PIECES)
    bits, perplexity = found["bits_per_byte"], found["byte_perplexity"]
    assert bits.value == pytest.approx(total / math.log(2) / size)
    assert perplexity.value == pytest.approx(math.exp(total / size))
    assert bits.stderr is not None
    assert perplexity.value is not None
    assert perplexity.stderr == pytest.approx(perplexity.value * math.log(2) * bits.stderr)
    assert (perplexity.scale, bits.scale, bits.unit, bits.clusters) == ("log", "linear", "block", 3)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 50])
def test_every_token_is_predicted_once_after_the_one_before_it(tokenizer: Any, length: int) -> None:
    blocks = _OwnTokens.of(PIECES, tokenizer, length)
    found: dict[int, list[int]] = {i: [] for i in range(len(PIECES))}
    for i in range(len(blocks)):
        tokens, positions, pieces = blocks.tokens(i), blocks.positions(i), blocks.documents(i)
        assert len(tokens) == length
        for t in range(1, length):
            if positions[t] == 0:
                continue
            piece = int(pieces[t])
            assert (positions[t], pieces[t]) == (positions[t - 1] + 1, pieces[t - 1])
            assert tokens[t - 1] == (found[piece][-1] if found[piece] else tokenizer.eos_token_id)
            found[piece].append(int(tokens[t]))
    assert list(found.values()) == [tokenizer(piece.text)["input_ids"] for piece in PIECES]


def test_a_bos_token_comes_before_eos(model: Any, tokenizer: Any) -> None:
    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = tokenizer.convert_ids_to_tokens(5)
    ids = tokenizer(PIECES[1].text)["input_ids"]
    found = loss_per_byte(model, with_bos, PIECES[1:2], length=64).items
    assert found.values == pytest.approx([nats(model, ids, 5) / math.log(2) / len(PIECES[1].text)])


def test_pieces_are_the_documents_of_each_block(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer("one two three four five six seven eight nine ten")["input_ids"]
    ids = [*ids[:9], tokenizer.eos_token_id, *ids[9:]][: len(ids) // 2 * 2]
    blocks = Blocks(torch.tensor(ids).view(2, -1))
    found = pieces_of(blocks, tokenizer, None)
    assert "".join(piece.text for piece in found) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len({piece.document for piece in found}) == len(found) == 3
    monkeypatch.setattr(blocks, "tokens", lambda i: torch.zeros_like(blocks.text(i)))
    assert pieces_of(blocks, tokenizer, None) == found
    first = pieces_of(blocks, tokenizer, 1)
    assert found[: len(first)] == first
    assert len(first) < len(found)


def test_what_does_not_count_is_context(model: Any, tokenizer: Any) -> None:
    """A token counts if one of its characters does; bytes are those that count."""
    text = "Ask: what is the naïve answer? Say: none."
    found = tokenizer(text, return_offsets_mapping=True)
    start, stop = text.index("naïve"), text.index("Say")
    row = torch.tensor([[tokenizer.eos_token_id, *found["input_ids"]]])
    with torch.no_grad():
        logp = model(row, use_cache=False).logits[0, :-1].log_softmax(-1)
    counted = [t for t, (first, end) in enumerate(found["offset_mapping"]) if first < stop and end > start]
    expected = -float(sum(logp[t, found["input_ids"][t]] for t in counted))
    pieces = [Piece(0, text, ((start, stop),)), PIECES[1]]
    bits = loss_per_byte(model, tokenizer, pieces, length=400).items
    assert bits.values[0] == pytest.approx(expected / math.log(2) / len("naïve answer? ".encode()))
    assert bits.values[1] == pytest.approx(loss_per_byte(model, tokenizer, PIECES[1:2], length=400).items.mean)
    assert bits.weights == [15, 21]


@pytest.mark.parametrize("length", [8, 64])
def test_of_completions_the_same_bytes_count_in_any_tokens(tokenizer: Any, tmp_path: Path, length: int) -> None:
    rows = [{"prompt": f"Question {i}, naïve? ", "completion": f"Yes, {i} of them."} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "files", "paths": [str(tmp_path / "rows.jsonl")], "format": "completion"}
    config = DataConfig.model_validate({"sources": [source], "validation": [source], "sequence_length": length})
    blocks = prepare(config, "validation", tokenizer, "key", tmp_path / "cache")
    found = pieces_of(blocks, tokenizer, None)
    counted = "".join(
        piece.text[start:stop] for piece in found for start, stop in piece.scored or ((0, len(piece.text)),)
    )
    written = "".join(row["completion"] for row in rows)
    assert len(counted) > 0.7 * len(written)
    assert written.startswith(counted)
    own = _OwnTokens.of(found, tokenizer, 5)
    scored = [own.tokens(i)[(own.positions(i) > 0) & own.loss_mask(i)] for i in range(len(own))]
    assert tokenizer.decode(torch.cat(scored)) == counted


def test_text_of_which_only_special_tokens_count_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(torch.tensor([[5, 6, 7, tokenizer.eos_token_id]]))
    monkeypatch.setattr(blocks, "text_mask", lambda i: torch.tensor([False, False, False, True]))
    with pytest.raises(DataError, match="nothing but special tokens counts"):
        pieces_of(blocks, tokenizer, None)


def test_a_tokenizer_that_does_not_tell_characters_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert len(_OwnTokens.of(PIECES, tokenizer, 8))
    with pytest.raises(CheckpointError, match=r"give the model a tokenizer.json, or evaluate it on plain text"):
        _OwnTokens.of([Piece(0, "a b", ((2, 3),))], tokenizer, 8)
