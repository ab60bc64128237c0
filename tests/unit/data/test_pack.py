import json
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from minitron_cli import io, progress
from minitron_cli.data import encode, pack, predicted_blocks, token_file
from minitron_cli.data.batches import batch
from minitron_cli.data.document_frame import DocumentFrame
from minitron_cli.data.pack import Blocks, prepare
from minitron_cli.data.sources import DataConfig, TextFiles, TokenIds
from minitron_cli.errors import DataError, Interrupted


def lines(path: Path, contents: list, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: content}) + "\n" for content in contents))
    return path


def text_source(path: Path, **options) -> TextFiles:
    return TextFiles(paths=(str(path),), **options)


def everything(*sources, length: int = 2) -> DataConfig:
    return DataConfig(sources=sources, validation_fraction=0, sequence_length=length)


def flat(blocks: Blocks) -> list[int]:
    """Tokens of all whole blocks, also of those without a token to predict."""
    return blocks.file.tokens[: len(blocks.file.tokens) // blocks.sequence_length * blocks.sequence_length].tolist()


def naive_blocks(documents: list[list[int]], length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and positions of all whole blocks with a second token of a document, one token at a time."""
    tokens, positions = [], []
    for document in documents:
        for i, token in enumerate(document):
            tokens.append(token)
            positions.append(0 if len(positions) % length == 0 or i == 0 else positions[-1] + 1)
    whole = [i for i in range(0, len(tokens) - length + 1, length) if any(positions[i : i + length])]
    return [tokens[i : i + length] for i in whole], [positions[i : i + length] for i in whole]


@pytest.mark.parametrize("length", [2, 3, 16, 100])
def test_blocks_equal_a_naive_packing(length, texts, tokenizer, tmp_path):
    texts[3] = ""
    path = lines(tmp_path / "a.jsonl", texts)
    blocks = prepare(everything(text_source(path), length=length), "train", tokenizer, "t", tmp_path / "cache")
    documents = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts if text]
    tokens, positions = naive_blocks(documents, length)
    assert [blocks.tokens(i).tolist() for i in range(len(blocks))] == tokens
    assert [blocks.positions(i).tolist() for i in range(len(blocks))] == positions
    assert blocks.tokens(0).dtype == blocks.positions(0).dtype == torch.int64
    for outside in (-1, len(blocks)):
        with pytest.raises(IndexError):
            blocks.tokens(outside)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_blocks_in_which_nothing_is_predicted_are_left_out(chunk, tokenizer, tmp_path, remarks, monkeypatch):
    """Against one token at a time: a prompt of many blocks, documents of one token, answers that begin a document."""
    monkeypatch.setattr(predicted_blocks, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    rows = [(n, rng.integers(0, 2) * (rng.random(n) < 0.2)) for n in rng.choice([1, 1, 1, 2, 5, 40], 200)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"input_ids": list(range(n)), "m": m.tolist()}) + "\n" for n, m in rows))
    for column in ("m", None):
        config = everything(TokenIds(paths=(str(path),), counts_column=column), length=4)
        blocks = prepare(config, "train", tokenizer, "t", tmp_path / "cache")
        scored = [(i > 0) and (column is None or bool(m[i])) for n, m in rows for i in range(n)]
        tokens = [token for n, _ in rows for token in range(n)]
        whole = range(0, len(tokens) - 3, 4)
        expected = [tokens[i : i + 4] for i in whole if any(scored[i + 1 : i + 4])]
        assert [blocks.tokens(i).tolist() for i in range(len(blocks))] == expected
        left_out = len(whole) - len(expected)
        assert left_out > 0
        assert remarks.messages[-1].startswith(f"train data: {left_out} of {len(whole)} blocks hold no")


def test_data_in_which_nothing_is_predicted_are_refused(tokenizer, tmp_path):
    singles = TokenIds(paths=(str(lines(tmp_path / "a.jsonl", [[5]] * 9, "input_ids")),))
    with pytest.raises(DataError, match=r"train data: none of the 4 blocks .*one token long: give longer documents"):
        prepare(everything(singles), "train", tokenizer, "t", tmp_path / "cache")
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"prompt": "a question of many tokens", "completion": "x"}))
    source = TextFiles(paths=(str(path),), format="completion")
    with pytest.raises(DataError, match=r"train data: none of the \d+ blocks .*: add rows with answers"):
        prepare(everything(source, length=10), "train", tokenizer, "t", tmp_path / "cache")


def test_ready_ids_are_packed_as_they_are(tokenizer, tmp_path):
    rows = [[5, 6, 7], [8], [9, 10, 11, 12]]
    source = TokenIds(paths=(str(lines(tmp_path / "a.jsonl", rows, "input_ids")),))
    blocks = prepare(everything(source, length=4), "train", tokenizer, "t", tmp_path / "cache")
    assert [blocks.tokens(i).tolist() for i in range(2)] == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert [blocks.positions(i).tolist() for i in range(2)] == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert [blocks.documents(i).tolist() for i in range(2)] == [[0, 0, 0, 1], [2, 2, 2, 2]]
    lines(tmp_path / "a.jsonl", [[5, 300]], "input_ids")
    with pytest.raises(DataError, match=rf"a.jsonl:1: token id 300 is not one of the vocabulary's {len(tokenizer)};"):
        prepare(everything(source), "train", tokenizer, "t", tmp_path / "cache")


def test_documents_in_a_block_do_not_see_each_other(tokenizer, texts, tmp_path):
    """With reset positions and no mask, each document's logits are those of the document alone."""
    path = lines(tmp_path / "a.jsonl", texts)
    blocks = prepare(everything(text_source(path), length=128), "train", tokenizer, "t", tmp_path / "cache")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    packed = batch(blocks, range(2))
    with torch.inference_mode():
        logits_BTV = model(packed.input_ids_BT, position_ids=packed.position_ids_BT, use_cache=False).logits
        leaking_BTV = model(packed.input_ids_BT, use_cache=False).logits
        for b in range(2):
            starts = [*(packed.position_ids_BT[b] == 0).nonzero().flatten().tolist(), 128]
            assert len(starts) > 3
            for start, stop in pairwise(starts):
                alone_TV = model(packed.input_ids_BT[b : b + 1, start:stop], use_cache=False).logits[0]
                torch.testing.assert_close(logits_BTV[b, start:stop], alone_TV, atol=1e-4, rtol=1e-4)
                assert start == 0 or (leaking_BTV[b, start:stop] - alone_TV).abs().max() > 0.1


def test_a_held_out_share_is_disjoint_complete_and_keeps_duplicates_together(tokenizer, tmp_path):
    texts = [f"document {i % 300}" for i in range(900)]
    source = text_source(lines(tmp_path / "a.jsonl", texts))
    config = DataConfig(sources=(source,), validation_fraction=0.2, sequence_length=2)

    def documents(split: str) -> list[str]:
        text = tokenizer.decode(flat(prepare(config, split, tokenizer, "t", tmp_path / "cache")))
        return text.removesuffix(tokenizer.eos_token).split(tokenizer.eos_token)

    def whole(split: list[str]) -> set[str]:
        return {text for text in split if text in texts}  # the last may be cut

    train, validation = documents("train"), documents("validation")
    assert not whole(train) & whole(validation)
    assert whole(train) | whole(validation) == set(texts)
    assert 0.12 < len(whole(validation)) / 300 < 0.28
    assert len(train) + len(validation) == 900


def test_a_document_is_held_out_wherever_it_comes_from(tokenizer, tmp_path):
    texts = [f"document {i}" for i in range(100)]
    one = text_source(lines(tmp_path / "a.jsonl", texts))
    for name, text in enumerate(reversed(texts)):
        (tmp_path / f"{name:03}.txt").write_text(text)
    many = text_source(tmp_path / "*.txt")
    ids = []
    for source in (one, many):
        config = DataConfig(sources=(source,), validation_fraction=0.3, sequence_length=2)
        blocks = prepare(config, "validation", tokenizer, "t", tmp_path / "cache")
        text = tokenizer.decode(flat(blocks))
        ids.append({part for part in text.split(tokenizer.eos_token) if part in texts})
    assert len(ids[0] ^ ids[1]) <= 2  # the last one of either may be cut


def test_validation_sources_are_used_whole_and_their_documents_are_not_trained_on(tokenizer, texts, tmp_path, remarks):
    held_out = [*texts[:9], "text of its own"]
    train = lines(tmp_path / "a.jsonl", [*texts, texts[3].upper().replace(" ", "\n\n")])
    validation = lines(tmp_path / "b.jsonl", held_out)
    config = DataConfig(sources=(text_source(train),), validation=(text_source(validation),), sequence_length=8)
    for split, left in {"train": texts[9:], "validation": held_out}.items():
        blocks = prepare(config, split, tokenizer, "t", tmp_path / "cache")
        alone = text_source(lines(tmp_path / f"{split}.jsonl", left))
        assert flat(blocks) == flat(prepare(everything(alone, length=8), "train", tokenizer, "t", tmp_path / "other"))
    assert remarks.messages == [f"{train}: 10 documents are also validation data and not trained on"]


def test_other_validation_text_is_another_training_set(tokenizer, texts, tmp_path):
    train, validation = lines(tmp_path / "a.jsonl", texts), lines(tmp_path / "b.jsonl", ["of its own"])
    config = DataConfig(sources=(text_source(train),), validation=(text_source(validation),), sequence_length=8)
    before = flat(prepare(config, "train", tokenizer, "t", tmp_path / "cache"))
    lines(tmp_path / "b.jsonl", texts[:5])
    after = flat(prepare(config, "train", tokenizer, "t", tmp_path / "cache"))
    assert after == before[-len(after) :] or len(after) < len(before)
    lines(tmp_path / "b.jsonl", texts)
    with pytest.raises(DataError, match=r"train data: every document is in data.validation too; name other text"):
        prepare(config, "train", tokenizer, "t", tmp_path / "cache")


def test_documents_that_differ_in_case_or_white_space_are_on_one_side(tokenizer, tmp_path):
    """A text that was reflowed is no new text to validate on."""
    texts = [f"number {i} of many" for i in range(200)]
    changed = [text.title().replace(" ", " \n") for text in texts]
    sides = []
    for name, variant in {"a": texts, "b": changed}.items():
        source = text_source(lines(tmp_path / f"{name}.jsonl", variant))
        config = DataConfig(sources=(source,), validation_fraction=0.3, sequence_length=2)
        text = tokenizer.decode(flat(prepare(config, "validation", tokenizer, "t", tmp_path / "cache")))
        sides.append({" ".join(part.lower().split()) for part in text.split(tokenizer.eos_token)} & set(texts))
    assert len(sides[0]) > 40
    assert len(sides[0] ^ sides[1]) <= 2  # the last one of either may be cut


def repeated(path: Path, token: int, lengths: list[int]) -> str:
    return str(lines(path, [[token] * length for length in lengths], "input_ids"))


def test_weights_are_shares_of_the_tokens_until_a_source_runs_out(tokenizer, tmp_path, remarks):
    rng = np.random.default_rng(0)
    paths = [repeated(tmp_path / f"{i}.jsonl", i, rng.integers(1, 30, 400).tolist()) for i in range(3)]
    weights = 1, 2, 5
    sources = [TokenIds(paths=(path,), weight=weight) for path, weight in zip(paths, weights, strict=True)]
    tokens = np.array(flat(prepare(everything(*sources, length=8), "train", tokenizer, "t", tmp_path / "cache")))
    for n in (200, 1000, len(tokens)):
        counts = np.bincount(tokens[:n], minlength=3)
        assert np.abs(counts - n * np.array(weights) / 8).max() <= 30, n  # one document
    exhausted = sum(len(json.loads(line)["input_ids"]) for line in Path(paths[2]).read_text().splitlines())
    assert (tokens == 2).sum() == pytest.approx(exhausted, abs=8)  # all of it but what did not fill a block
    assert remarks.messages == [
        f"train data end with {paths[2]}, exhausted after {exhausted:,} tokens; shares are kept"
    ]


@pytest.mark.parametrize("empty", [0, 1])
def test_a_source_of_which_little_is_held_out_does_not_end_the_mixture_before_it_begins(
    empty, tokenizer, tmp_path, remarks
):
    """The one document with the lowest hash is held out, whichever source it is in."""
    rows = [[[token] * n for n in range(3, 8)] for token in (0, 1)]
    probe = [TokenIds(paths=(str(lines(tmp_path / "probe.jsonl", rows[0] + rows[1], "input_ids")),))]
    config = DataConfig(sources=probe, validation_fraction=1e-9, sequence_length=2)
    lowest = flat(prepare(config, "validation", tokenizer, "t", tmp_path / "cache"))[0]
    order = [lowest, 1 - lowest] if empty == 1 else [1 - lowest, lowest]
    paths = [str(lines(tmp_path / f"{i}.jsonl", rows[i], "input_ids")) for i in order]
    config = config.model_copy(update={"sources": tuple(TokenIds(paths=(path,), weight=1) for path in paths)})
    held_out = flat(prepare(config, "validation", tokenizer, "t", tmp_path / "cache"))
    assert set(held_out) == {lowest}
    assert f"validation data contain nothing of {paths[empty]}" in remarks.messages


def test_without_weights_all_of_every_source_is_used_in_order(tokenizer, tmp_path, remarks):
    paths = [repeated(tmp_path / f"{i}.jsonl", i, [4] * n) for i, n in enumerate([1, 9, 2])]
    sources = [TokenIds(paths=(path,)) for path in paths]
    blocks = prepare(everything(*sources), "train", tokenizer, "t", tmp_path / "cache")
    assert flat(blocks) == [0] * 4 + [1] * 36 + [2] * 8
    assert remarks.messages == []


class Refusing:
    """A tokenizer that must not be used, except to ask for its special tokens."""

    eos_token_id = 0
    backend_tokenizer = Tokenizer(models.BPE())

    def get_vocab(self):
        raise AssertionError("tokenized again")


def test_tokens_are_made_once_until_something_that_counts_changes(tokenizer, texts, tmp_path):
    path = lines(tmp_path / "a.jsonl", texts)

    def fingerprint(tokenizer, length: int = 8, key: str = "t", fraction: float = 0) -> str:
        config = DataConfig(sources=(text_source(path),), validation_fraction=fraction, sequence_length=length)
        return prepare(config, "train", tokenizer, key, tmp_path / "cache").fingerprint

    first = fingerprint(tokenizer)
    assert fingerprint(Refusing()) == first
    assert fingerprint(Refusing(), length=9) != first
    path = path.rename(tmp_path / "moved.jsonl")
    assert fingerprint(Refusing()) == first
    for change in ({"key": "u"}, {"fraction": 0.1}):
        with pytest.raises(AssertionError, match="tokenized again"):
            fingerprint(Refusing(), **change)
    data = bytearray(path.read_bytes())
    data[data.index(b"lazy")] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="tokenized again"):
        fingerprint(Refusing())
    assert fingerprint(tokenizer) != first


def test_other_weights_are_another_mixture(tokenizer, tmp_path):
    paths = [repeated(tmp_path / f"{i}.jsonl", i, [4] * 50) for i in range(2)]
    shares = []
    for weight in (1, 3):
        sources = TokenIds(paths=(paths[0],), weight=1), TokenIds(paths=(paths[1],), weight=weight)
        tokens = flat(prepare(everything(*sources), "train", tokenizer, "t", tmp_path / "cache"))
        shares.append(sum(tokens) / len(tokens))
    assert shares == pytest.approx([1 / 2, 3 / 4], abs=0.02)


def test_the_fingerprint_is_that_of_the_blocks_and_not_of_how_they_were_made(tokenizer, texts, tmp_path):
    one = text_source(lines(tmp_path / "a.jsonl", texts))
    lines(tmp_path / "b" / "1.jsonl", texts[:10])
    lines(tmp_path / "b" / "2.jsonl", texts[10:])
    two = text_source(tmp_path / "b" / "*.jsonl")
    fingerprints = {
        prepare(everything(source), "train", tokenizer, "t", tmp_path / f"cache{i}").fingerprint
        for i, source in enumerate([one, two])
    }
    assert len(fingerprints) == 1


def test_too_few_tokens_for_a_block_are_counted(tokenizer, tmp_path):
    source = TokenIds(paths=(repeated(tmp_path / "a.jsonl", 1, [1500]),))
    with pytest.raises(
        DataError, match=r"train data: 1,500 tokens are fewer than one block of 2,048; add text or lower"
    ):
        prepare(everything(source, length=2048), "train", tokenizer, "t", tmp_path / "cache")
    assert len(prepare(everything(source, length=1500), "train", Refusing(), "t", tmp_path / "cache")) == 1


def test_a_part_that_is_too_small_to_hold_out_names_what_enlarges_it(tokenizer, texts, tmp_path):
    """More text enlarges it by a fiftieth of what is added."""
    source = text_source(lines(tmp_path / "a.jsonl", texts))
    config = DataConfig(sources=(source,), validation_fraction=0.02, sequence_length=1 << 20)
    with pytest.raises(
        DataError, match=r"^validation data: .*with --validation, raise .*fraction above 0\.02, or lower"
    ):
        prepare(config, "validation", tokenizer, "t", tmp_path / "cache")
    named = config.model_copy(update={"validation": (source,)})
    with pytest.raises(DataError, match=r"^validation data: .*; add text or lower data\.sequence_length$"):
        prepare(named, "validation", tokenizer, "t", tmp_path / "cache")


def left(cache: Path) -> list[Path]:
    return list(cache.iterdir()) if cache.exists() else []


def test_sources_without_a_document_are_named_and_leave_nothing(tokenizer, tmp_path):
    empty = lines(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(DataError, match=r"empty.jsonl: holds only empty documents; drop it"):
        prepare(everything(text_source(empty)), "train", tokenizer, "t", tmp_path / "cache")
    config = DataConfig(sources=(text_source(lines(tmp_path / "a.jsonl", ["one document"])),), sequence_length=2)
    with pytest.raises(
        DataError, match=r"validation data: data.validation_fraction=0.02 holds out whole documents and leaves none"
    ):
        prepare(config, "validation", tokenizer, "t", tmp_path / "cache")
    broken = lines(tmp_path / "broken.jsonl", ["good", None])
    with pytest.raises(DataError, match=r"broken.jsonl:2: column 'text' holds null"):
        prepare(everything(text_source(broken)), "train", tokenizer, "t", tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_stopped_on_request_it_leaves_nothing(tokenizer, texts, tmp_path, remarks):
    path = lines(tmp_path / "a.jsonl", texts)
    remarks.on_step = lambda title: progress.request_stop(15) if title.startswith("tokenize") else None
    with pytest.raises(Interrupted):
        prepare(everything(text_source(path)), "train", tokenizer, "t", tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_a_request_to_stop_is_heard_in_the_middle_of_a_document(tokenizer, tmp_path, remarks, monkeypatch):
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 100)
    (tmp_path / "long.txt").write_text("the lazy fox\n" * 100)
    steps = []

    def stop_later(title: str) -> None:
        steps.append(title)
        if steps.count("tokenize train data") == 3:  # the first is the document's, then come those of its pieces
            progress.request_stop(2)

    remarks.on_step = stop_later
    with pytest.raises(Interrupted):
        prepare(everything(text_source(tmp_path / "long.txt")), "train", tokenizer, "t", tmp_path / "cache")


def test_a_source_that_changes_while_it_is_read_is_refused(tokenizer, texts, tmp_path, remarks):
    path = lines(tmp_path / "a.jsonl", texts)
    remarks.on_step = lambda title: title.startswith("tokenize") and lines(path, [*texts, "one more"])
    with pytest.raises(DataError, match="train data: changed while they were read; run the command again"):
        prepare(everything(text_source(path)), "train", tokenizer, "t", tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_the_bar_reaches_its_end(tokenizer, texts, tmp_path, remarks):
    (tmp_path / "b.txt").write_text("some text")
    sources = text_source(lines(tmp_path / "a.jsonl", texts)), text_source(tmp_path / "b.txt")
    prepare(everything(*sources), "train", tokenizer, "t", tmp_path / "cache")
    done, total = remarks.done["tokenize train data"]
    assert done == total == sum(source.open().size_bytes for source in sources)


def test_a_killed_run_is_made_good_by_the_next(tokenizer, texts, tmp_path, monkeypatch):
    config = everything(text_source(lines(tmp_path / "a.jsonl", texts)))
    expected = prepare(config, "train", tokenizer, "t", tmp_path / "undisturbed").fingerprint

    class Killed(BaseException):
        pass

    class Torn(io.Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            super().write(fd, data[: len(data) // 2], offset)
            raise Killed

        def rename(self, old: Path, new: Path) -> None:
            raise Killed

    monkeypatch.setattr(io, "disk", Torn())
    with pytest.raises(Killed):
        prepare(config, "train", tokenizer, "t", tmp_path / "cache")
    monkeypatch.undo()
    assert [path.name.startswith(io.TEMPORARY) for path in left(tmp_path / "cache")] == [True]
    assert prepare(config, "train", tokenizer, "t", tmp_path / "cache").fingerprint == expected


class Counting(encode.Encoder):
    pieces = 0

    def __call__(self, pieces):
        type(self).pieces += len(pieces)
        return super().__call__(pieces)


@pytest.mark.parametrize("weights", [(None, None), (1, 2)])
def test_a_killed_run_continues_behind_the_parts_that_it_finished(weights, tokenizer, texts, tmp_path, monkeypatch):
    paths = lines(tmp_path / "a.jsonl", texts), lines(tmp_path / "b.jsonl", [text.upper() for text in texts])
    sources = [text_source(path, weight=weight) for path, weight in zip(paths, weights, strict=True)]
    config = DataConfig(sources=sources, validation_fraction=0.1, sequence_length=8)
    monkeypatch.setattr(pack, "Encoder", Counting)
    monkeypatch.setattr(Counting, "pieces", 0)
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 300)
    expected = prepare(config, "train", tokenizer, "t", tmp_path / "undisturbed").fingerprint
    all_pieces, Counting.pieces = Counting.pieces, 0

    class Killed(BaseException):
        pass

    done = []

    def killed_later(groups):
        for group in groups:
            if sum(done) > all_pieces // 2:
                raise Killed
            done.append(len(group))
            yield encode.Encoder(*encode.encoder_arguments(tokenizer, DocumentFrame.of(tokenizer, "auto")))(group)

    monkeypatch.setattr(token_file, "PART_TOKENS", 200)
    with monkeypatch.context() as patch:
        patch.setattr(pack, "mapping", lambda *args: nullcontext(killed_later))
        with pytest.raises(Killed):
            prepare(config, "train", tokenizer, "t", tmp_path / "cache")
    assert [path.suffix for path in left(tmp_path / "cache")] == [token_file.PARTS]
    assert prepare(config, "train", tokenizer, "t", tmp_path / "cache").fingerprint == expected
    assert all_pieces - sum(done) <= Counting.pieces < all_pieces - sum(done) // 2
    assert [path.suffix for path in left(tmp_path / "cache")] == [""]


@pytest.mark.slow
def test_several_processes_make_the_same_tokens_as_one(tokenizer, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 100)
    plain = text_source(lines(tmp_path / "a.jsonl", texts), weight=1)
    rows = [{"prompt": text, "completion": text[::-1]} for text in texts]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = text_source(tmp_path / "b.jsonl", format="completion", weight=2)
    fingerprints = []
    for processes in (1, 2):
        monkeypatch.setattr(pack, "processes_for", lambda size, n=processes: n)
        blocks = prepare(everything(plain, answers), "train", tokenizer, "t", tmp_path / str(processes))
        fingerprints.append(blocks.fingerprint)
    assert fingerprints[0] == fingerprints[1]


def test_of_a_distributed_run_the_first_process_does_the_work(tokenizer, texts, tmp_path, monkeypatch):
    config = everything(text_source(lines(tmp_path / "a.jsonl", texts)))
    waited = []

    def meanwhile(seconds: float) -> None:
        waited.append(seconds)
        with monkeypatch.context() as patch:
            patch.setenv("RANK", "0")
            prepare(config, "train", tokenizer, "t", tmp_path / "cache")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(pack.time, "sleep", meanwhile)
    assert len(prepare(config, "train", Refusing(), "t", tmp_path / "cache"))
    assert len(waited) == 1
