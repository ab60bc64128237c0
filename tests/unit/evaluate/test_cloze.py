import copy
import json
import random
import subprocess
import sys

import pytest

from minitron_cli.data.pack import prepare
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import DataError
from minitron_cli.evaluate.cloze import _documents, make_items, write_task
from minitron_cli.evaluate.config import Cloze

CONFIG = Cloze(items=20, context_words=8, continuation_words=3)


def document(seed, words=400):
    source = random.Random(seed)
    spaces = [" ", "\n    ", ", ", "; "]
    return "".join(f"word{source.randrange(1000)}" + source.choice(spaces) for _ in range(words))


DOCUMENTS = [document(0), "too short", document(1), "{{ braces }} {% and %} " * 100 + document(2)]


@pytest.fixture(scope="module")
def items():
    return make_items(DOCUMENTS, CONFIG)


def test_the_gold_answer_is_what_follows_in_the_text(items):
    assert all(any(item["context"] + item["choices"][item["gold"]] in text for text in DOCUMENTS) for item in items)


def test_no_other_answer_follows_in_the_text(items):
    for item in items:
        wrong = [choice for i, choice in enumerate(item["choices"]) if i != item["gold"]]
        assert not any(item["context"] + choice in text for choice in wrong for text in DOCUMENTS)


def test_wrong_answers_are_of_the_same_document_and_differ(items):
    for item in items:
        (text,) = [t for t in DOCUMENTS if item["context"] + item["choices"][item["gold"]] in t]
        assert all(choice in text for choice in item["choices"])
        assert len({choice.strip() for choice in item["choices"]}) == CONFIG.choices


def test_there_are_as_many_questions_as_asked_for_each_a_different_one(items):
    assert len(items) == CONFIG.items == len({item["context"] for item in items})


def test_the_gold_answer_stands_anywhere(items):
    assert {item["gold"] for item in items} == set(range(CONFIG.choices))


def test_the_seed_chooses_the_questions(items):
    others = make_items(DOCUMENTS, CONFIG.model_copy(update={"seed": 1}))
    assert make_items(DOCUMENTS, CONFIG) == items
    assert {item["context"] for item in others} != {item["context"] for item in items}


def test_questions_come_in_the_order_of_the_text():
    texts = [document(0), document(1)]
    locations = ["".join(texts).index(item["context"]) for item in make_items(texts, CONFIG)]
    assert locations == sorted(locations)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    code = (
        "import sys, pathlib; from tests.unit.evaluate.test_cloze import *;"
        "write_task(pathlib.Path(sys.argv[1]), DOCUMENTS, CONFIG)"
    )
    write_task(tmp_path / "here", DOCUMENTS, CONFIG)  # with hashes of strings that are drawn anew in every process
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True, env={"PYTHONHASHSEED": "1"})
    for name in ("cloze.yaml", "cloze.jsonl"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_context_with_several_endings_has_none_of_them_as_a_wrong_answer():
    twins = "".join(f"a b c d e f g h {ending} {ending} {ending} " for ending in "xyz")
    others = "".join(f"w{i} " for i in range(4 * 11))
    items = make_items([twins + others], Cloze(items=99, context_words=8, continuation_words=3, choices=5))
    about_twins = [item for item in items if item["context"].strip() == "a b c d e f g h"]
    assert len(about_twins) == 3
    for item in about_twins:
        assert sum(choice.strip() in ("x x x", "y y y", "z z z") for choice in item["choices"]) == 1


def test_repeated_text_asks_nothing_that_has_two_answers():
    refrain = "one two three four five six seven eight nine ten eleven\n"
    with pytest.raises(DataError, match="no validation document has 44 words"):
        make_items([refrain * 50], CONFIG)


def test_text_without_spaces_is_cut_too():
    text = "".join(chr(0x4E00 + i) + ("。" if i % 7 == 6 else "") for i in range(2000))
    items = make_items([text], CONFIG)
    assert all(item["context"] + item["choices"][item["gold"]] in text for item in items)


def test_the_number_of_questions_is_returned(tmp_path):
    assert write_task(tmp_path / "new", DOCUMENTS, CONFIG) == CONFIG.items
    lines = (tmp_path / "new" / "cloze.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == make_items(DOCUMENTS, CONFIG)


@pytest.mark.parametrize("end", ["<eos>", "|"])
def test_a_conversation_is_one_document_whatever_ends_its_turns(tokenizer, tmp_path, end):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    own.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    talks = [[(role, f"{k} {i}") for k in range(3) for role in ("user", "assistant")] for i in range(6)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    found = documents_of(tmp_path, own, "chat", rows)
    written = ["".join(f"{role}: {text}{'' if end == '<eos>' else end}" for role, text in talk) for talk in talks]
    assert found[:-1] == written[:-1]
    assert found[-1]
    assert written[-1].startswith(found[-1])


def test_a_text_ends_with_its_document(tokenizer, tmp_path):
    found = documents_of(tmp_path, tokenizer, "text", [{"text": text} for text in DOCUMENTS])
    assert found[:-1] == DOCUMENTS[:-1]
    assert DOCUMENTS[-1].startswith(found[-1])


def documents_of(directory, tokenizer, format, rows):
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "files", "paths": [str(directory / "rows.jsonl")], "format": format}
    config = DataConfig.model_validate({"sources": [source], "validation": [source], "sequence_length": 4})
    return _documents(tokenizer, prepare(config, "validation", tokenizer, "key", directory / "cache"))
