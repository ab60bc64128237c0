"""What a block is said to decode to: every character once, and what counts as in training."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from minitron_cli.cli.data import View, _printed
from minitron_cli.data.block_text import Piece, pieces
from minitron_cli.data.pack import prepare
from minitron_cli.data.sources import DataConfig, TextFiles, TokenIds

BOS, EOS = "<s>", "</s>"


def blocks_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast | None, rows: list, source, length: int):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        sources=(source(paths=(str(tmp_path / "rows.jsonl"),)),), validation_fraction=0, sequence_length=length
    )
    return prepare(config, "train", tokenizer, "key", tmp_path / "cache", vocab_size=50)


@pytest.fixture
def with_bos() -> PreTrainedTokenizerFast:
    """Words of single characters and spaces, of which a decoder drops a leading one, as sentencepiece does."""
    vocab = {token: i for i, token in enumerate([BOS, EOS, "?", "\u2581", *"abcdefgh"])}
    raw = Tokenizer(models.BPE(vocab, [], unk_token="?"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS)


def test_pieces_are_the_decoded_block_with_what_counts_special_tokens_and_documents(tmp_path, with_bos):
    """`<s>▁ab▁c</s>` and `<s>▁d▁e▁f▁g</s>` in blocks of 8, of which the second begins inside a document."""
    rows = [{"text": "ab c"}, {"text": "d e f g"}]
    blocks = blocks_of(tmp_path, with_bos, rows, TextFiles, 8)
    assert pieces(blocks, 0, with_bos) == [
        Piece("<s>", 1, False, True, 0),
        Piece(" ab c", 5, True, False, 0),
        Piece("</s>", 1, True, True, 0),
        Piece("<s>", 1, False, True, 1),
    ]
    assert [(piece.tokens, piece.counts, piece.special) for piece in pieces(blocks, 1, with_bos)] == [
        (1, False, True),  # the bos in place of the block's first token
        (1, False, False),  # what follows it has its context in the block before
        (6, True, False),
    ]
    for i in range(2):
        whole = with_bos.decode(blocks.tokens(i).tolist(), clean_up_tokenization_spaces=False)
        assert "".join(piece.text for piece in pieces(blocks, i, with_bos)) == whole


def test_a_character_of_several_tokens_at_a_border_is_printed_once(tmp_path, tokenizer):
    """The block begins inside a character: its first byte is not predicted, the others are."""
    blocks = blocks_of(tmp_path, tokenizer, [{"text": "\u20ac\u20ac\u20ac"}], TextFiles, 5)
    found = pieces(blocks, 0, tokenizer)
    assert "".join(piece.text for piece in found) == tokenizer.decode(blocks.tokens(0).tolist())
    assert [(piece.tokens, piece.counts) for piece in found] == [(1, False), (4, True)]


def test_without_a_tokenizer_ids_are_printed(tmp_path):
    blocks = blocks_of(tmp_path, None, [{"input_ids": [5, 6, 7, 8]}], TokenIds, 4)
    assert pieces(blocks, 0, None) == [Piece("5 ", 1, False, False, 0), Piece("6 7 8 ", 3, True, False, 0)]


def test_a_printed_block_has_borders_and_brackets_and_no_control_characters():
    shown = View(
        2,
        5,
        3,
        [Piece("<s>", 1, False, True, 4), Piece("a\x1b[2J\n", 3, True, False, 4), Piece("b", 1, False, False, 5)],
    )
    assert "".join(text for text, _ in _printed(shown, 1_000, is_styled=False)) == (
        "block 2 of 1,000: 5 tokens, 3 count\n--- document 4 ---\n\u27e6<s>\u27e7a\u241b[2J\n\n--- document 5 ---\n"
        "\u27e6b\u27e7\n"
    )
    styles = dict(_printed(shown, 1_000, is_styled=True))
    assert (styles["<s>"], styles["a\u241b[2J\n"], styles["b"]) == ("dim reverse", "green", "dim")
