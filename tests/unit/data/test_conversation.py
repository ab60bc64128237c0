"""Conversations as data sets have them: what reaches the template, which answers count, and what is said."""

import json
import random
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_cli.data import template_process
from minitron_cli.data.formats import format_of, kind_of
from minitron_cli.data.rows import Columns, row_of
from minitron_cli.data.sources import TextFiles
from minitron_cli.errors import DataError

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}|{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QWEN3 = (  # thoughts are written only after the last question
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Tokenizer:
    """The part of a tokenizer that writes chats."""

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self.special_tokens_map = {"eos_token": "<|end|>"}

    def get_chat_template(self, chat_template=None, tools=None):
        return self.chat_template


def written(template: str, row: dict, kind: str = "chat") -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Text, scored parts and notes of each text of a row."""
    row_format = format_of(kind, {})
    content = row_format.content(row_of(row, row_format.to_read, "d:1", 1))
    texts = content.loss_spans(Tokenizer(template), "d:1")
    return [(text.text, [text.text[a:b] for a, b in text.spans], text.notes) for text in texts]


def talk(*contents: str, **last) -> list[dict]:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [*messages[:-1], messages[-1] | last]


@pytest.mark.parametrize("weight", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}])
def test_an_answer_of_weight_0_is_context_and_does_not_count(weight):
    first, second = talk("a", "b", **weight), talk("c", "d", weight=1, train=True)
    [(text, scored, notes)] = written(PLAIN, {"messages": first + second})
    assert (text, scored, notes) == ("<user>a|<assistant>b|<user>c|<assistant>d|", ["d|"], ())
    assert format_of("chat", {}).content(row_of({"messages": first}, Columns(("messages",)), "d:1", 1)) is None


def test_a_weight_that_is_neither_is_refused():
    with pytest.raises(DataError, match=r"d:1: a message has weight 0.5; write 1 to train on it or 0 not to"):
        written(PLAIN, {"messages": talk("a", "b", weight=0.5)})


@pytest.mark.parametrize("encode", [lambda value: value, json.dumps])
def test_tools_and_variables_of_a_row_reach_the_template(encode):
    row = {"messages": talk("a", "b"), "tools": encode([{"name": "f"}]), "chat_template_kwargs": encode({"mood": "m"})}
    [(text, scored, notes)] = written("{{ mood }}" + TOOLS, row)
    assert (text, scored, notes) == ('m<tools>[{"name": "f"}]|<user>a|<assistant>b|', ["b|"], ())


def test_what_a_row_has_and_the_text_does_not_is_noted():
    call = {"function": {"name": "f", "arguments": {}}}
    row = {"messages": talk("a", "b", tool_calls=[call], thinking="hm"), "tools": [{}], "documents": ["x"], "id": 3}
    assert written(PLAIN, row)[0][2] == (
        "have tools, which the chat template does not write",
        "have messages with tool_calls, which the chat template does not write",
        "have messages with thinking, which the chat template does not write",
    )
    assert "a column 'documents', which is not passed to" in written("{{ documents }}" + PLAIN, row)[0][2][-1]
    with pytest.raises(DataError, match="chat_template_kwargs may not hold messages"):
        written(PLAIN, {"messages": talk("a", "b"), "chat_template_kwargs": {"messages": []}})


def test_parts_of_text_are_joined_for_a_template_that_writes_text():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}
    assert written(PLAIN, row)[0][0] == "<user>a b|<assistant>c|"
    iterates = PLAIN.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
    assert written(iterates, row)[0][:2] == ("<user>a b|<assistant>c|", ["c|"])
    row["messages"][0]["content"] = [*parts, {"type": "image"}]
    with pytest.raises(DataError, match="content of type image; only text is read"):
        written(PLAIN, row)


DUMPED = "{{ c.function.arguments | tojson }}"
BY_NAME = "{% for name, value in c.function.arguments | items %}{{ name }}={{ value }}{% endfor %}"
GUARDED = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}" + DUMPED + "{% endif %}"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (DUMPED, '{"to": "é"}'),
        (BY_NAME, "to=é"),
        ("{{ c.function.arguments }}", '{"to": "é"}'),
        (GUARDED, '{"to": "é"}'),
    ],
)
@pytest.mark.parametrize("arguments", [{"to": "é"}, '{"to": "é"}'])
def test_arguments_are_written_alike_whether_they_are_text_or_an_object(call, expected, arguments):
    template = TOOLS.replace("CALL", call)
    row = {"messages": talk("a", "", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])}
    assert written(template, row)[0][0] == f"<user>a|<assistant>{expected}|"


def test_every_answer_counts_once_where_the_template_rewrites_earlier_ones():
    """Against the text that the model is shown when it gives the answer."""
    rng = random.Random(0)
    for _ in range(20):
        roles = ["user", *rng.choices(["assistant", "user", "tool"], k=rng.randrange(1, 9))]
        messages = [{"role": role, "content": f"c{i}"} for i, role in enumerate(roles)]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        if not answers:
            continue
        texts = written(QWEN3, {"messages": messages})
        scored = sorted(part for _, parts, _ in texts for part in parts)
        assert scored == sorted(f"<think></think>c{i}|" for i in answers)
        ends = {roles.index("user", i) if "user" in roles[i:] else len(roles) for i in answers}
        assert len(texts) == len(ends), "answers after one question share a text"


def test_a_remark_counts_what_is_rewritten():
    notes = [notes for _, _, notes in written(QWEN3, {"messages": talk("a", "b") + talk("c", "d")})]
    assert notes[0] == ()
    assert "earlier answers" in notes[1][0]


def test_sharegpt_rows_are_chats():
    turns = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "b", "weight": 1},
    ]
    template = TOOLS.replace("CALL", "{{ c.function.name }}" + DUMPED)
    [(text, scored, _)] = written(template, {"conversations": turns, "system": "s", "tools": "[]"}, "sharegpt")
    assert text == '<system>s|<user>a|<assistant>f{"x": 1}|<tool>1|<assistant>b|'
    assert scored == ['f{"x": 1}|', "b|"]


def test_alpaca_rows_are_chats_or_prompts():
    row = {"instruction": "do", "input": "this", "output": "done", "history": [["q", "a"]]}
    assert written(PLAIN, row, "alpaca")[0][0] == "<user>q|<assistant>a|<user>do\nthis|<assistant>done|"
    with pytest.raises(DataError, match="history need a chat template"):
        written("", row, "alpaca")
    [(text, scored, _)] = written("", {"instruction": "do", "output": "done"}, "alpaca")
    assert text.endswith("request.\n\n### Instruction:\ndo\n\n### Response:\ndone")
    assert scored == ["done"]


def test_a_prompt_and_a_completion_of_messages_are_one_chat():
    row = {"prompt": talk("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}
    [(text, scored, _)] = written(PLAIN, row, "completion")
    assert (text, scored) == ("<user>a|<assistant>b|<user>c|<assistant>d|", ["d|"])


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["text", "id"], "text"),
        (["messages", "text", "tools"], "chat"),
        (["conversations", "id"], "sharegpt"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["prompt", "completion"], "completion"),
    ],
)
def test_the_kind_follows_from_the_columns(keys, kind, tmp_path):
    assert kind_of(keys, "d") == kind
    (tmp_path / "a.jsonl").write_text(json.dumps(dict.fromkeys(keys, "x")) + "\n")
    pq.write_table(pa.table({key: ["x"] for key in keys}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        identity = TextFiles(paths=(str(tmp_path / name),), format="auto").open().identity
        assert identity[1] == kind


def test_columns_that_tell_nothing_are_named():
    with pytest.raises(DataError, match=r"d: the columns 'a', 'b' tell no format \(text has text; chat has"):
        kind_of(["a", "b"], "d")
    with pytest.raises(ValueError, match="auto finds columns by their usual names"):
        TextFiles(paths=("a",), format="auto", column="body")


BOMBS = {
    "a long loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a power": "{{ (9 ** 9) ** (9 ** 9) }}",
    "repeated text": "{{ 'x' * 10**9 }}{{ messages }}",
    "much repeated text": "{{ 'x' * 10**11 }}",
    "doubled text": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a padded field": "{{ '%1000000000d' | format(1) }}",
    "a replacement": "{{ ('x' * 10**5) | replace('x', 'x' * 10**6) }}",
    "a recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_asks_for_too_much_is_refused_at_once(name):
    written(PLAIN, {"messages": talk("a", "b")})  # the process is running
    started = time.process_time()
    with pytest.raises(DataError, match=r"d:1: the chat template refuses the conversation \(.+\); repair or drop"):
        written(BOMBS[name], {"messages": talk("a", "b")})
    assert time.process_time() - started < 1
    assert written(PLAIN, {"messages": talk("a", "b")})[0][1] == ["b|"], "the next template is rendered again"


@pytest.mark.slow
def test_the_process_that_renders_ends_in_silence_when_nobody_reads_its_answer() -> None:
    command = [sys.executable, "-P", template_process.__file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.close()
        process.stdin.write(json.dumps({"template": PLAIN}) + "\n")
        process.stdin.close()
        assert process.stderr
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_template_that_writes_the_date_writes_one_that_does_not_pass() -> None:
    """The tokens of a text, and the keys of all that is made from them, are the same tomorrow."""
    dated = "{{ strftime_now('%d %b %Y') }}: " + PLAIN
    [(text, _, _)] = written(dated, {"messages": talk("a", "b")})
    assert text == "26 Jul 2024: <user>a|<assistant>b|"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("chat", {"messages": talk("a", "b", content={"text": "y"})}, "has content of type dict, not text"),
        ("chat", {"messages": talk("a", "b", tool_calls=5)}, "tool_calls must be a list of objects"),
        ("alpaca", {"instruction": "a", "output": "b", "history": 5}, "'history' is not a list of"),
    ],
)
def test_a_broken_row_is_named(kind, row, message):
    with pytest.raises(DataError, match=rf"d:1: .*{message}"):
        written(PLAIN, row, kind)
