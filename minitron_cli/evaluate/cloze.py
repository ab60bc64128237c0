"""Multiple-choice task made from text: choose the true continuation. Knows text and lm-eval's task format.

A document is split into passages of equal length, each a context and its continuation. The wrong answers of a question
are the continuations of other passages of the same document, so style and topic alone do not give the answer away.
"""

import json
import random
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from minitron_cli import io
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import DataError
from minitron_cli.evaluate.config import Cloze

WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)")  # includes the space before it, so that joined words reproduce the text


def task_of_blocks(scratch: Path, tokenizer: Any, blocks: Blocks, config: Cloze) -> Path:
    """Task directory in `scratch`, made from the documents of the blocks; the same for all models of one tokenizer."""
    final = scratch / "cloze"
    if not final.is_dir():
        io.make_dirs(scratch)
        with io.new_dir(final) as directory:
            write_task(directory, _documents(tokenizer, blocks), config)
    return final


def _documents(tokenizer: Any, blocks: Blocks) -> list[str]:
    """Text of the blocks, split into documents."""
    pieces = blocks.text_tokens().tensor_split(blocks.file.starts.tolist())
    texts = (tokenizer.decode(piece.tolist(), skip_special_tokens=True) for piece in pieces)
    return [text for text in texts if text.strip()]


def write_task(directory: Path, documents: Sequence[str], config: Cloze, *, name: str = "cloze") -> int:
    """Write an lm-eval task, `name`.yaml and `name`.jsonl, into `directory`; returns the number of questions."""
    items = make_items(documents, config)
    io.make_dirs(directory)
    io.write_new(directory / f"{name}.jsonl", "".join(map(_json_line, items)).encode())
    io.write_new(directory / f"{name}.yaml", _task_yaml(name).encode())
    return len(items)


def make_items(documents: Sequence[str], config: Cloze) -> list[dict[str, Any]]:
    """Questions `{context, choices, gold, document}` in text order; deterministic in text and config.

    DataError if no document has enough different passages.
    """
    random_source = random.Random(config.seed)
    passages = [_passages(text, config) for text in documents]
    locations = [(d, p) for d, found in enumerate(passages) for p in range(len(found)) if len(found) >= config.choices]
    random_source.shuffle(locations)
    usable = (place for place in locations if _has_choices(passages[place[0]], place[1], config))
    chosen = sorted(islice(usable, config.items))
    if not chosen:
        words = config.choices * (config.context_words + config.continuation_words)
        raise DataError(
            f"cloze: no validation document has {words:,} words; lower choices, context_words or continuation_words"
        )
    return [_item(passages[d], p, config, random_source) | {"document": d} for d, p in chosen]


def _passages(text: str, config: Cloze) -> list[tuple[str, str]]:
    words = WORD.findall(text)
    length = config.context_words + config.continuation_words
    cuts = range(0, len(words) - length + 1, length)
    joined = (("".join(words[i : i + config.context_words]), i + config.context_words) for i in cuts)
    return [(context, "".join(words[i : i + config.continuation_words])) for context, i in joined]


def _has_choices(passages: list[tuple[str, str]], p: int, config: Cloze) -> bool:
    return len(_distractors(passages, p)) >= config.choices - 1


def _distractors(passages: list[tuple[str, str]], p: int) -> list[str]:
    """Every other continuation of the document, once each, except those that also follow the same context elsewhere."""
    context = passages[p][0].strip()
    true = {continuation.strip() for other, continuation in passages if other.strip() == context}
    wrong = {continuation.strip(): continuation for _, continuation in passages}
    return [continuation for stripped, continuation in wrong.items() if stripped not in true]


def _item(passages: list[tuple[str, str]], p: int, config: Cloze, random_source: random.Random) -> dict[str, Any]:
    context, gold = passages[p]
    choices = random_source.sample(_distractors(passages, p), config.choices - 1)
    position = random_source.randrange(config.choices)
    return {"context": context, "choices": [*choices[:position], gold, *choices[position:]], "gold": position}


def _json_line(item: dict[str, Any]) -> str:
    return json.dumps(item, sort_keys=True) + "\n"


def _task_yaml(name: str) -> str:
    """YAML of the task; it names fields instead of templates, as text may hold braces. Paths are relative to it."""
    return f"""\
task: {json.dumps(name)}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {json.dumps(name + ".jsonl")}
validation_split: validation
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
