"""What a fingerprint of tasks changes with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from minitron_cli import canonical_json, io
from minitron_cli.evaluate.task_files import fingerprint

TASK = {
    "task": "quiz",
    "include": "../shared/base.yaml",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": ["../items.jsonl", "../more/*.jsonl"], "test": "hf://x/y.jsonl"}},
}
FILES = {
    "tasks/quiz.yaml": yaml.safe_dump(TASK),
    "tasks/own.jsonl": "own",
    "shared/base.yaml": "include: [deeper.yaml]\nprocess_docs: !function code.utils.shuffled\n",
    "shared/deeper.yaml": "doc_to_text: question\n",
    "shared/code/utils.py": "def shuffled(docs): return docs\n",
    "items.jsonl": "items",
    "more/a.jsonl": "a",
    "linked/test-0.parquet": "linked",
    "unrelated/other.jsonl": "other",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "place" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "place/tasks/linked").symlink_to("../linked")
    (tmp_path / "place/tasks/again").symlink_to(".")
    return tmp_path / "place"


@pytest.mark.parametrize("name", FILES)
def test_every_file_counts_that_the_tasks_read_wherever_it_is(place: Path, name: str) -> None:
    before = fingerprint(place / "tasks")
    assert fingerprint(place / "tasks") == before
    (place / name).write_text(FILES[name] + " ")
    assert (fingerprint(place / "tasks") == before) is name.startswith("unrelated")


def test_the_place_of_everything_does_not_count(place: Path, monkeypatch: Any) -> None:
    before = fingerprint(place / "tasks")
    moved = shutil.copytree(place, place.parent / "elsewhere", symlinks=True)
    monkeypatch.chdir(moved)
    assert fingerprint(Path("tasks")) == fingerprint(moved / "tasks") == before


def test_of_files_inside_it_is_what_it_was(tmp_path: Path) -> None:
    """Keys of evaluations whose tasks name nothing outside stay."""
    (tmp_path / "inner").mkdir()
    names = ("quiz.yaml", "inner/items.jsonl", "utils.py")
    for name in names:
        (tmp_path / name).write_text(f"process_docs: !function utils.{name}\n")
    expected = canonical_json.digest({name: io.file_record(tmp_path / name).sha256 for name in names})
    assert fingerprint(tmp_path) == expected


def test_a_yaml_that_cannot_be_read_counts_as_it_is(tmp_path: Path) -> None:
    for content in ("include: absent.yaml", "include: quiz.yaml", "[", "dataset_kwargs: 1"):
        (tmp_path / "quiz.yaml").write_text(content)
        assert len(fingerprint(tmp_path)) == 64
