"""Which documents are held out when there are few of them. Many are in test_pack.py."""

import json
from pathlib import Path

import pytest

from minitron_cli import progress
from minitron_cli.data import files
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.data.split import Split
from minitron_cli.errors import DataError, Interrupted


def documents(config: DataConfig, name: str) -> list[str]:
    split = Split.open(config, name)
    return [doc.content for i in range(len(split.sources)) for doc in split.documents(i, lambda *a: None)]


def rows_of(directory: Path, texts: list[str]) -> DataConfig:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig(sources=(TextFiles(paths=(str(path),)),), validation_fraction=1e-6)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_of_few_documents_one_is_held_out(tmp_path, count):
    texts = [f"document {i}" for i in range(count)]
    config = rows_of(tmp_path, texts)
    (held_out,) = documents(config, "validation")
    assert documents(config, "train") == [text for text in texts if text != held_out]


def test_which_one_does_not_depend_on_their_order_or_their_place(tmp_path):
    texts = [f"document {i}" for i in range(9)]
    (one,) = documents(rows_of(tmp_path, texts), "validation")
    for i, text in enumerate(texts):
        (tmp_path / f"{9 - i}.txt").write_text(text)
    config = DataConfig(
        sources=(
            TextFiles(paths=(str(tmp_path / "[1-4].txt"),)),
            TextFiles(paths=(str(tmp_path / "[5-9].txt"),)),
        ),
        validation_fraction=1e-6,
    )
    assert documents(config, "validation") == [one]


@pytest.mark.parametrize(("texts", "fraction"), [(["alone"], 1e-6), (["twice", "Twice "], 1e-6), (["a", "b"], 0)])
def test_nothing_is_held_out_where_nothing_would_be_left_or_nothing_is_asked_for(tmp_path, texts, fraction):
    config = rows_of(tmp_path, texts).model_copy(update={"validation_fraction": fraction})
    assert documents(config, "train") == texts
    assert documents(config, "validation") == []


def test_one_plain_text_is_cut_at_blank_lines_and_nothing_of_it_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PASSAGE_BYTES", 40)
    paragraphs = [f"paragraph {i}: ½ of it\nand the rest\n" for i in range(9)]
    long = "".join(f"line {i} without a break\n" for i in range(20))
    text = "\n".join(paragraphs) + long + " \t\nthe end"
    path = tmp_path / "corpus.txt"
    path.write_text(text)
    whole = DataConfig(sources=(TextFiles(paths=(str(path),)),), validation_fraction=0)
    found = documents(whole, "train")
    assert "".join(found) == text
    assert [part.startswith("paragraph") for part in found[:5]] == [True] * 5
    assert all(part.endswith("\n\n") for part in found[:4])  # two paragraphs each
    assert all(40 <= len(part.encode()) < 40 * 4 + 26 for part in found[:-1])

    split = whole.model_copy(update={"validation_fraction": 1e-6})
    (held_out,) = documents(split, "validation")
    assert held_out in found
    assert documents(split, "train") == [part for part in found if part != held_out]


def test_several_plain_texts_are_a_document_each(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PASSAGE_BYTES", 4)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}\n\nmore\n\nand more\n")
    config = DataConfig(sources=(TextFiles(paths=(str(tmp_path / "*.txt"),)),), validation_fraction=0)
    assert documents(config, "train") == ["a.txt\n\nmore\n\nand more\n", "b.txt\n\nmore\n\nand more\n"]


def test_a_line_that_is_not_text_is_named_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PASSAGE_BYTES", 4)
    (tmp_path / "a.txt").write_bytes(b"first\n\nsecond\n\nthi\xe9rd\n")
    config = DataConfig(sources=(TextFiles(paths=(str(tmp_path / "a.txt"),)),), validation_fraction=0)
    with pytest.raises(DataError, match=r"a.txt:5: is not UTF-8"):
        documents(config, "train")


@pytest.mark.parametrize("alone", ["sources", "validation"])
def test_a_text_that_is_validated_on_is_found_whether_it_is_cut_or_not(tmp_path, monkeypatch, alone):
    """One file alone is cut into documents, and is one document among others."""
    monkeypatch.setattr(files, "PASSAGE_BYTES", 20)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"paragraph {i} of {name}\n\n" for i in range(4)))
    one, all_of_them = (TextFiles(paths=(str(tmp_path / name),)) for name in ("b.txt", "*.txt"))
    sides = {"sources": all_of_them, "validation": all_of_them} | {alone: one}
    config = DataConfig(**{side: (source,) for side, source in sides.items()})
    wanted = [] if alone == "sources" else [(tmp_path / "a.txt").read_text()]
    assert documents(config, "train") == wanted


def test_looking_for_the_lowest_hash_can_be_stopped(tmp_path):
    config = rows_of(tmp_path, [f"document {i}" for i in range(9)])
    progress.request_stop(2)
    try:
        with pytest.raises(Interrupted):
            documents(config, "train")
    finally:
        progress.request_stop(None)


def _talk(i: int, **more: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": f"Say {i}"}], **more}


def _spaced(value: object) -> object:
    """The value with other letter case and white space in its texts, but not in roles."""
    if isinstance(value, dict):
        return {name: field if name == "role" else _spaced(field) for name, field in value.items()}
    return [_spaced(item) for item in value] if isinstance(value, list) else f"  {value.upper()}\n".replace(" ", "  ")


@pytest.mark.parametrize(
    ("format", "rows", "held_out"),
    [
        ("chat", [_talk(i, id=str(i)) for i in range(4)], [_talk(i) for i in range(2)]),
        ("chat", [_talk(i) for i in range(4)], [_spaced(_talk(i)) for i in range(2)]),
        (
            "completion",
            [{"prompt": f"Ask {i} ", "completion": f"Say {i}"} for i in range(4)],
            [{"prompt": f"ask  {i}", "completion": f"say {i}\n"} for i in range(2)],
        ),
        (
            "alpaca",
            [{"instruction": f"Ask {i}", "output": f"Say {i}"} for i in range(4)],
            [{"instruction": f"ask {i}", "output": f"SAY {i}"} for i in range(2)],
        ),
    ],
)
def test_conversations_that_are_validated_on_are_found(tmp_path, format, rows, held_out):
    """An unread column, letter case and white space make no difference."""
    sides = {"sources": rows, "validation": held_out}
    for side, some in sides.items():
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    sources = {side: (TextFiles(paths=(str(tmp_path / f"{side}.jsonl"),), format=format),) for side in sides}
    assert len(documents(DataConfig(**sources), "train")) == 2
    assert len(documents(DataConfig(**sources), "validation")) == 2


def test_conversations_that_differ_in_a_word_or_a_role_are_different(tmp_path):
    others = [_talk(9), {"messages": [{**m, "role": "assistant"} for m in _talk(0)["messages"]]}]
    for side, some in {"sources": [_talk(0)], "validation": others}.items():
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    sources, validation = (
        (TextFiles(paths=(str(tmp_path / f"{side}.jsonl"),), format="chat"),) for side in ("sources", "validation")
    )
    assert len(documents(DataConfig(sources=sources, validation=validation), "train")) == 1
