"""Chats and completions: which tokens count, against positions counted by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_cli.data.batches import batch
from minitron_cli.data.pack import prepare
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.errors import DataError

TURN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = "{% for m in messages if m.content is undefined %}{{ raise_exception('no content') }}{% endfor %}" + TURN
FORGETFUL = (  # as Qwen 3 does with thoughts: an answer is written in another way once a question follows it
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else m.content[:2] }}|"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "the fox?"},
    {"role": "assistant", "content": "lazy dog"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "brown ½"},
]


@pytest.fixture
def chatty(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TURN)
    return tokenizer


def counted(tokenizer, path, **options):
    """The text of all tokens, and of those that count."""
    config = DataConfig(sources=(TextFiles(paths=(str(path),), **options),), sequence_length=2, validation_fraction=0)
    blocks = prepare(config, "train", tokenizer, "key", path.parent / "cache")
    tokens, mask = blocks.file.tokens, blocks.file.loss_mask
    return tokenizer.decode(tokens), tokenizer.decode(tokens[mask])


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_of_a_chat_the_answers_count(chatty, tmp_path):
    whole = "<user>the fox?|<assistant>lazy dog|<user>and?|<assistant>brown ½|"
    rows = [{"messages": CHAT}, {"messages": CHAT[:1]}, {"messages": CHAT}]  # the second holds no answer
    text, scored = counted(chatty, written(tmp_path / "a.jsonl", rows), format="chat")
    assert (whole * 2).startswith(text)
    assert text[-5:] in whole * 2
    assert ("lazy dog|brown ½|" * 2).startswith(scored)
    assert len(scored) > 30


def test_chats_are_read_from_tables_and_other_columns(chatty, tmp_path):
    pq.write_table(pa.table({"talk": [CHAT] * 2}), tmp_path / "a.parquet")
    text, scored = counted(chatty, tmp_path / "a.parquet", format="chat", column="talk")
    assert text.startswith("<user>the fox?|<assistant>lazy")
    assert scored.startswith("lazy dog|brown ½|")


def test_an_answer_that_the_template_rewrites_later_counts_in_a_text_of_its_own(tokenizer, monkeypatch, tmp_path):
    """It is the text that the model sees when it gives the answer."""
    monkeypatch.setattr(tokenizer, "chat_template", FORGETFUL)
    text, scored = counted(tokenizer, written(tmp_path / "a.jsonl", [{"messages": CHAT}] * 2), format="chat")
    assert text.startswith(
        "<user>the fox?|<assistant>la|<user>and?|<assistant>brown ½|<user>the fox?|<assistant>lazy dog|"
    )
    assert scored == "brown ½|lazy dog|" * 2


def test_of_a_completion_all_after_the_prompt_counts_and_so_does_the_end(tokenizer, tmp_path):
    rows = [{"prompt": "the quick", "completion": " brown fox"}, {"prompt": "no answer", "completion": ""}] * 2
    text, scored = counted(tokenizer, written(tmp_path / "a.jsonl", rows), format="completion")
    assert text.startswith("the quick brown fox<|end|>the quick")
    assert scored.startswith(" brown fox<|end|> brown")
    rows = [{"q": "the quick", "a": " brown fox"}] * 2
    path = written(tmp_path / "b.jsonl", rows)
    assert counted(tokenizer, path, format="completion", prompt_column="q", column="a") == (text, scored)


def test_text_beside_chats_counts_whole(chatty, tmp_path):
    chat = TextFiles(paths=(str(written(tmp_path / "a.jsonl", [{"messages": CHAT}])),), format="chat")
    (tmp_path / "b.txt").write_text("the lazy dog " * 3)
    config = DataConfig(
        sources=(chat, TextFiles(paths=(str(tmp_path / "b.txt"),))), sequence_length=2, validation_fraction=0
    )
    blocks = prepare(config, "train", chatty, "key", tmp_path / "cache")
    mask = blocks.file.loss_mask
    assert not mask[:4].any()
    assert mask[-8:].all()


def test_plain_text_needs_no_mask(tokenizer, write, tmp_path):
    path = write("a.txt", "the lazy dog " * 9)
    config = DataConfig(sources=(TextFiles(paths=(str(path),)),), sequence_length=4, validation_fraction=0)
    blocks = prepare(config, "train", tokenizer, "key", tmp_path / "cache")
    assert batch(blocks, [0, 1]).loss_mask_BT is None


BROKEN = {
    "no conversation": ({"messages": "hello"}, "column 'messages' is not a conversation; write a list of messages"),
    "no roles": ({"messages": [{"content": "a"}]}, "is not a conversation"),
    "no column": ({"text": "a"}, "there is no column 'messages' but 'text'; set column"),
    "no content": ({"messages": [{"role": "assistant"}]}, "the chat template refuses the conversation"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_conversation_is_named(name, chatty, tmp_path, monkeypatch):
    row, message = BROKEN[name]
    monkeypatch.setattr(chatty, "chat_template", STRICT)
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{message}"):
        counted(chatty, written(tmp_path / "a.jsonl", [{"messages": CHAT}, row]), format="chat")


def test_a_template_that_hides_the_last_answer_is_refused(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }} turns")
    with pytest.raises(DataError, match=r"a.jsonl:1: the chat template does not write the last answer after .*format"):
        counted(tokenizer, written(tmp_path / "a.jsonl", [{"messages": CHAT}]), format="chat")


def test_a_tokenizer_without_a_template_cannot_read_chats(tokenizer, tmp_path):
    with pytest.raises(DataError, match="the tokenizer has no chat template: use the tokenizer of a chat model"):
        counted(tokenizer, written(tmp_path / "a.jsonl", [{"messages": CHAT}]), format="chat")


def test_a_text_file_holds_no_chats(chatty, write):
    with pytest.raises(DataError, match=r"a.txt: column 'messages' is not a conversation"):
        counted(chatty, write("a.txt", "hello"), format="chat")
