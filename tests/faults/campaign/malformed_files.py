"""Malformed files beside a model: text, token ids, recipes, gates, tasks, and what earlier commands made."""

import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from minitron_cli.evaluate.cloze import write_task
from minitron_cli.evaluate.config import Cloze
from tests.damage import ODD_VALUES
from tests.faults.campaign.malformed import Case, Group, random_damage, texts, truncations
from tests.faults.campaign.malformed_models import IMPORTANCE, start
from tests.faults.campaign.programs import fork
from tests.faults.campaign.setting import MAKERS, RECIPE, Setting

SENTENCES = [f"the cat sat on mat {i} and the dog ran over hills while birds sing in tall trees" for i in range(80)]


def reading(data: str, *more: str) -> tuple[str, ...]:
    """The command that reads a data file."""
    return (*IMPORTANCE[:2], "--data", data, *more, *IMPORTANCE[4:])


def with_tables(setting: Setting) -> Path:
    """A directory with the same rows in every format."""
    root = shutil.copytree(start(setting), setting.place / "tables")
    table = pa.table({"text": SENTENCES})
    (root / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES))
    (root / "rows.json").write_text(json.dumps([{"text": text} for text in SENTENCES]))
    pyarrow.parquet.write_table(table, root / "rows.parquet")
    with pa.ipc.new_stream(root / "rows.arrow", table.schema) as stream:
        stream.write_table(table)
    ids = [[i % 290 for i in range(n, n + 40)] for n in range(80)]
    (root / "ids.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in ids))
    pyarrow.parquet.write_table(pa.table({"input_ids": ids}), root / "ids.parquet")
    return root


def json_rows(root: Path) -> Iterator[Case]:
    """Rows that are no rows, in a list and in lines."""
    for value in ODD_VALUES:
        row = {"text": value}
        for name, content in (("rows.jsonl", json.dumps(row)), ("rows.json", json.dumps([row]))):
            yield from texts(
                name, {f"text = {value!r}": content}, reading(name), must_refuse=not isinstance(value, str)
            )
        if not isinstance(value, dict):
            yield from texts("rows.jsonl", {f"the row {value!r}": json.dumps(value)}, reading("rows.jsonl"))
    deep = "[" * 10**5
    odd: dict[str, str | bytes] = {
        "nothing": "",
        "blank": "\n\n",
        "no JSON": "the cat",
        "half": '{"text": "a',
        "bytes": b"\xff\xfe",
    }
    odd |= {"deep": '{"text": ' + deep, "another column": '{"texts": "a"}', "zeros": bytes(100), "a list": "[[1]]"}
    for name in ("rows.jsonl", "rows.json"):
        yield from texts(name, odd, reading(name))
        yield from random_damage(name, 20, reading(name))


def tables(root: Path) -> Iterator[Case]:
    """Damaged tables, and tables of other columns and types."""
    for name in ("rows.parquet", "rows.arrow"):
        yield from random_damage(name, 50, reading(name))
        yield from truncations(name, 15, reading(name))
        yield from texts(name, {"nothing": "", "text": "the cat", "zeros": bytes(1000)}, reading(name))
    for kind, column in {"numbers": [1, 2], "lists": [["a"]], "nulls": [None], "binary": [b"\xff"], "none": []}.items():
        yield from texts("rows.parquet", {kind: _parquet(column)}, reading("rows.parquet"))


def _parquet(column: list[Any]) -> bytes:
    pyarrow.parquet.write_table(pa.table({"text": column}), stream := BytesIO())
    return stream.getvalue()


def token_ids(root: Path) -> Iterator[Case]:
    """Lists that hold no ids of the model."""
    for value in (
        *ODD_VALUES,
        [-1],
        [300],
        [2**31],
        [2**32],
        [2**64],
        [1.5],
        ["1"],
        [None],
        [[1]],
        [True],
        [1] * 3 + [-5],
    ):
        content = json.dumps({"input_ids": value})
        yield from texts("ids.jsonl", {f"input_ids = {value!r}"[:40]: content}, reading("ids:ids.jsonl"))
    for name in ("ids.jsonl", "ids.parquet"):
        yield from random_damage(name, 25, reading(f"ids:{name}"))
        yield from truncations(name, 5, reading(f"ids:{name}"))


DRY_RUN = ("run", "recipe.yaml", "--dry-run")
KEYS = {
    "importance": ("samples", "batch_size", "mode", "seed", "blocks"),
    "prune": ("shape", "drop_layers", "repair", "budget", "rounds", "axes"),
    "sparsify": ("pattern", "metric", "layer_amounts", "rounds", "round_tokens", "samples"),
    "distill": ("steps", "tokens", "batch_size", "losses", "learning_rate", "hidden", "export"),
    "evaluate": ("blocks", "tasks", "cloze", "gates", "suite", "include_path"),
    "data": ("sources", "sequence_length", "validation_fraction", "seed"),
}


def recipes(root: Path) -> Iterator[Case]:
    """Odd values of every kind of key, odd documents, and damaged text."""
    for section, keys in KEYS.items():
        for key in keys:
            for value in ODD_VALUES[::2]:
                words = (*DRY_RUN, f"{section}.{key}={json.dumps(value)}")
                yield Case(f"{section}.{key} = {value!r}", _nothing, words, must_refuse=False)
    odd = {
        "nothing": "",
        "a list": "- a",
        "a word": "a",
        "a tab": "\ta: b",
        "twice": RECIPE + "model: b\n",
        "zeros": "\0" * 9,
    }
    odd |= {
        "an anchor bomb": _bomb(),
        "deep": "[" * 10**4,
        "a tag": "model: !!python/name:os.system",
        "long": "a: b\n" * 10**5,
    }
    odd |= {
        section: RECIPE + f"{section}: 1\n" for section in ("search", "correct", "controls", "steps", "teacher", "x")
    }
    yield from texts("recipe.yaml", odd, DRY_RUN)
    yield from random_damage("recipe.yaml", 60, DRY_RUN)


def _nothing(root: Path) -> None:
    """The damage is in the command."""


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines)


NO_YAML: dict[str, str | bytes] = {
    "a list": "- a",
    "a word": "a",
    "a tab": "\ta: b",
    "zeros": bytes(9),
    "bytes": b"\xff",
}


def gates(root: Path) -> Iterator[Case]:
    """Files of gates, which are read before anything is measured."""
    words = (*MAKERS["eval"].words, "--gate", "gates.yaml")
    odd: dict[str, str | bytes] = {
        "a list": "- a",
        "a word": "a",
        "a tab": "\ta: b",
        "zeros": bytes(9),
        "bytes": b"\xff",
    }
    for key in ("maximum", "minimum", "against_parent", "against_baseline", "other"):
        odd |= {f"{key} = {value!r}": json.dumps({key: value}) for value in ODD_VALUES if value not in (None, {}, [])}
    yield from texts("gates.yaml", odd, words, must_refuse=False)


def with_task(setting: Setting) -> Path:
    """A directory with an lm-eval task of its own, after `distill`."""
    root = shutil.copytree(setting.beginnings["distill"], setting.place / "tasks")
    documents = [path.read_text() for path in sorted((root / "text").iterdir())]
    write_task(root / "tasks", documents, Cloze(items=4, context_words=6, continuation_words=3), name="own")
    return root


TASK = ("eval", "--no-perplexity", "--tasks", "own", "--include-path", "tasks")


def tasks(root: Path) -> Iterator[Case]:
    """Damaged task files and questions."""
    yield from random_damage("tasks/own.yaml", 40, TASK)
    yield from random_damage("tasks/own.jsonl", 15, TASK)
    odd: dict[str, str | bytes] = {
        "nothing": "",
        "a list": "- a",
        "a word": "a",
        "a tab": "\ta: b",
        "zeros": bytes(9),
        "bytes": b"\xff",
    }
    yield from texts("tasks/own.yaml", odd, TASK)


def after_prune(setting: Setting) -> Path:
    """A directory with everything up to a pruned model."""
    return setting.beginnings["prune"]


SCORES = ("prune", "--shape", "ffn=24", "--repair", "none")


def results(root: Path) -> Iterator[Case]:
    """Damaged files of earlier results, met by the verb that needs them and by `show`."""
    users = {"importance": (SCORES, ("show", "importance")), "prune": (MAKERS["distill"].words, ("show", "prune"))}
    for stage, commands in users.items():
        files = [path.relative_to(root) for path in sorted((root / "runs/model" / stage).glob("[!.]*/*"))]
        for file, words in product([file for file in files if "token" not in file.name], commands):
            yield from random_damage(str(file), 3, words)
            yield from texts(str(file), {"empty": "", "a list": "[]", "zeros": bytes(50)}, words, must_refuse=False)
    for words in (SCORES, ("show",), ("report",)):
        yield from random_damage("runs/model/settings.json", 6, words)
        yield from random_damage("runs/model/importance/current", 3, words)


def sparse(setting: Setting) -> Path:
    """A directory with everything up to a sparse model."""
    root = shutil.copytree(setting.beginnings["prune"], setting.place / "sparse")
    ended = fork(MAGNITUDE, root).wait()
    assert ended.code == 0, ended.err
    return shutil.copytree(next(root.glob("runs/model/sparsify/[!.]*/")), root / "masked") and root


MAGNITUDE = ("sparsify", "--metric", "magnitude")
FURTHER = ("sparsify", "masked", "--metric", "magnitude", "--pattern", "1:4", "--run", "further")


def masks(root: Path) -> Iterator[Case]:
    """Damaged masks, met by the verbs that continue them and show them."""
    for words in (FURTHER, ("inspect", "masked")):
        yield from random_damage("masked/sparsity.masks", 20, words)
        yield from truncations("masked/sparsity.masks", 5, words)


GROUPS = {
    "JSON rows": Group(with_tables, json_rows, (reading("rows.jsonl"), reading("rows.json"))),
    "Parquet and Arrow": Group(with_tables, tables, (reading("rows.parquet"), reading("rows.arrow"))),
    "token ids": Group(with_tables, token_ids, (reading("ids:ids.jsonl"), reading("ids:ids.parquet"))),
    "recipe": Group(start, recipes, (DRY_RUN,)),
    "gates": Group(with_task, gates, (MAKERS["eval"].words,)),
    "task": Group(with_task, tasks, (TASK,)),
    "masks": Group(sparse, masks, (FURTHER, ("inspect", "masked"))),
    "results": Group(after_prune, results, (MAKERS["distill"].words, SCORES, ("show",), ("report",))),
}
