import os
import sysconfig
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from minitron_cli.data import standard_library
from minitron_cli.data.sources import DataConfig, HubDataset, PythonHelp, PythonStdlib, Source, TextFiles, as_stored
from minitron_cli.errors import DataError


def test_the_kind_chooses_the_source():
    read = TypeAdapter(Source).validate_python
    assert read({"kind": "files", "paths": ["a.txt"]}) == TextFiles(paths=("a.txt",))
    assert read({"kind": "hub", "name": "me/it"}) == HubDataset(name="me/it")
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'files', 'hub', 'input_ids'"):
        read({"kind": "file", "paths": ["a.txt"]})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        read({"kind": "hub", "name": "me/it", "paths": ["a.txt"]})


def test_weights_are_given_to_every_source_or_to_none():
    both = TextFiles(paths=("a",), weight=1), TextFiles(paths=("b",))
    with pytest.raises(ValidationError, match="sources: some have a weight and others do not; give a weight"):
        DataConfig(sources=both)
    with pytest.raises(ValidationError, match="validation: some have a weight"):
        DataConfig(sources=both[:1], validation=both)


def test_a_config_survives_a_round_trip_through_json():
    config = DataConfig(sources=(PythonStdlib(weight=0.5), HubDataset(name="me/it", weight=2)), sequence_length=64)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_a_seed_is_refused_by_the_name_of_the_option_that_has_one() -> None:
    text = {"sources": [{"kind": "python_help"}], "seed": 7}
    with pytest.raises(ValidationError, match=r"remove data\.seed, and set --seed, or .* distill\.seed"):
        DataConfig.model_validate(text)
    assert DataConfig.model_validate(as_stored(text)) == DataConfig(sources=(PythonHelp(),))


def listed_by_walking(root: Path) -> set[Path]:
    """The library's files by rules of exclusion, where the code has a list of modules."""
    found = set()
    for directory, subdirectories, names in os.walk(root):
        generated = {name for name in subdirectories if name.startswith("config-")}
        subdirectories[:] = set(subdirectories) - generated - {"site-packages", "test", "tests", "idle_test"}
        found |= {Path(directory, name) for name in names if name.endswith(".py")}
    no_modules = {"__hello__.py", "__phello__", "sitecustomize.py", "usercustomize.py"}  # hello: a test's frozen module
    return {
        path
        for path in found
        if not no_modules & set(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    }


def test_the_standard_library_is_its_own_modules_without_tests_in_one_split_each():
    train, validation = standard_library.source_files("train"), standard_library.source_files("validation")
    root = Path(sysconfig.get_path("stdlib"))
    assert {*train, *validation} == listed_by_walking(root)
    assert not {*train} & {*validation}
    assert 0.015 < len(validation) / (len(train) + len(validation)) < 0.06
    assert train == sorted(train)
    assert train == standard_library.source_files("train")


def test_neither_tests_nor_other_packages_nor_build_leftovers_belong_to_the_library(tmp_path):
    library = ["ast.py", "email/mime/text.py", "json/decoder.py"]  # all in the train split
    others = [
        "site-packages/ast.py",
        "_sysconfigdata_x.py",
        "test/a.py",
        "asyncio/tests/a.py",
        "idlelib/idle_test/a.py",
    ]
    for name in library + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    assert standard_library.source_files("train", tmp_path) == [tmp_path / name for name in library]
    with pytest.raises(DataError, match="holds no source of the standard library; name files of your own"):
        standard_library.source_files("validation", tmp_path)


def test_the_split_of_a_file_does_not_depend_on_where_the_library_lies(tmp_path):
    root = Path(sysconfig.get_path("stdlib"))
    for split in ("train", "validation"):
        names = [path.relative_to(root) for path in standard_library.source_files(split)][:20]
        for name in names:
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / name).write_text("other content")
        assert standard_library.source_files(split, tmp_path / split) == [tmp_path / split / name for name in names]


def test_the_standard_library_can_be_read():
    corpus = PythonStdlib(split="validation").open()
    paths = standard_library.source_files("validation")
    expected = [path.read_bytes().decode() for path in paths if path.stat().st_size]
    assert [document.content for document in corpus.documents] == expected


TOPICS = {
    "calls": "Calls\n*****\n\nA call calls,\n   as it says.\n\n   call ::= primary",
    "with": "With this:\n\n   with a:\n       b\n\n   A call calls, as\nit says.\n\n>>> A session.\n\nShared words.",
    "zones": "Shared   words.\n\nWords of its own.",
    "grammar": "a ::= b",
}


def test_prose_is_whole_sentences_each_of_them_once():
    assert standard_library.prose("validation", TOPICS) == {"calls": "A call calls, as it says.\n"}
    train = {"with": "With this:\nShared words.\n", "zones": "Words of its own.\n"}
    assert standard_library.prose("train", TOPICS) == train


def test_pythons_help_is_prose_in_two_splits_without_a_common_paragraph():
    train, validation = ([d.content for d in PythonHelp(split=s).open().documents] for s in ("train", "validation"))
    lines = [{line for text in texts for line in text.splitlines()} for texts in (train, validation)]
    assert not lines[0] & lines[1]
    assert sum(map(len, train)) > 150_000
    assert sum(map(len, validation)) > 20_000
    assert sum(len(line.split()) for line in lines[0]) / len(lines[0]) > 20


def test_a_python_without_help_is_named(monkeypatch):
    monkeypatch.setattr(standard_library, "TOPICS", "pydoc_data.no_topics")
    with pytest.raises(DataError, match="this Python has no pydoc_data"):
        PythonHelp().open()
