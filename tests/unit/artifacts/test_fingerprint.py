import json
import os
import shutil
from pathlib import Path

import pytest

from minitron_cli import io
from minitron_cli.artifacts import file_hashes, fingerprint
from tests.tiny import write_tiny


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file_hashes._known.clear()


@pytest.fixture
def model(tmp_path):
    return write_tiny(tmp_path / "model", num_hidden_layers=1)


def test_content_counts_and_nothing_else(model, tmp_path):
    before = fingerprint.of_directory(model)
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "other name")
    os.utime(model / "model.safetensors", (0, 0))
    for name in ("README.md", ".hidden.json", "run.json", "manifest.json", "pytorch_model.bin"):
        (copy / name).write_text("x")
    assert fingerprint.of_directory(model) == fingerprint.of_directory(copy) == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "merges.txt", "new.safetensors"]
)
def test_any_change_of_content_shows(model, name):
    before = fingerprint.of_directory(model)
    content = (model / name).read_bytes() if (model / name).exists() else b"xy"
    (model / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint.of_directory(model) != before


def test_a_change_under_the_same_times_and_size_shows(model):
    """As rsync and checkouts make them."""
    path = model / "model.safetensors"
    before, times = fingerprint.of_directory(model), path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert fingerprint.of_directory(model) != before


def test_a_renamed_file_is_another_model(model):
    before = fingerprint.of_directory(model)
    (model / "generation_config.json").rename(model / "generation.json")
    assert fingerprint.of_directory(model) != before


@pytest.mark.parametrize("is_another_process", [False, True])
def test_files_are_hashed_once(model, monkeypatch, hash_everything_once, is_another_process):
    first = fingerprint.of_directory(model)
    if is_another_process:
        file_hashes._known.clear()
    monkeypatch.setattr(io, "file_record", lambda path: pytest.fail(f"hashed {path} again"))
    assert fingerprint.of_directory(model) == first


def test_a_file_that_was_just_written_is_not_trusted(model, monkeypatch, hash_everything_once):
    """A change within one tick of the clock leaves the times as they are."""
    monkeypatch.setattr(file_hashes, "TICK_NS", 10**12)
    monkeypatch.setattr(file_hashes, "COARSE_TICK_NS", 10**12)
    hashed, original = [], io.file_record
    monkeypatch.setattr(io, "file_record", lambda path: hashed.append(path.name) or original(path))
    assert fingerprint.of_directory(model) == fingerprint.of_directory(model)
    assert len(hashed) == 2 * len(set(hashed))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": NaN}', "\0", "another hash"])
def test_a_damaged_cache_costs_time_only(model, tmp_path, content, hash_everything_once):
    first = fingerprint.of_directory(model)
    file_hashes._known.clear()
    path = tmp_path / "cache" / "minitron" / "hashes.json"
    whole = json.loads(path.read_text())
    sha256 = next(iter(whole["hashes"].values()))
    path.write_text(path.read_text().replace(sha256, sha256[::-1]) if content == "another hash" else content)
    assert fingerprint.of_directory(model) == first
    assert json.loads(path.read_text()) == whole


def test_the_cache_is_bounded(tmp_path, monkeypatch, hash_everything_once):
    monkeypatch.setattr(file_hashes, "MAX_KNOWN", 3)
    for i in range(5):
        (tmp_path / str(i)).write_text("x")
        file_hashes.records([tmp_path / str(i)])
    assert len(json.loads((tmp_path / "cache" / "minitron" / "hashes.json").read_text())["hashes"]) == 3


def test_a_user_without_a_home_has_no_cache(model, monkeypatch, hash_everything_once):
    first = fingerprint.of_directory(model)
    monkeypatch.delenv("XDG_CACHE_HOME")

    def expanduser(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    file_hashes._known.clear()
    assert fingerprint.of_directory(model) == first


def test_a_cache_that_cannot_be_written_is_no_fault(model, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert fingerprint.of_directory(model) == fingerprint.of_directory(model)


def test_tokenizers_are_told_apart_by_their_own_files(model, tmp_path):
    (model / "tokenizer.json").write_text("{}")
    before = fingerprint.of_tokenizer(model)
    (model / "config.json").write_text("{}")
    assert fingerprint.of_tokenizer(model) == before
    (model / "tokenizer.json").write_text("{ }")
    assert fingerprint.of_tokenizer(model) != before
    assert fingerprint.of_tokenizer(Path(tmp_path)) not in (before, fingerprint.of_tokenizer(model))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"])
def test_every_file_that_tells_tokens_is_part_of_the_tokenizer(tmp_path, name):
    (tmp_path / name).write_text('{"HELLO": 300}')
    before = fingerprint.of_tokenizer(tmp_path)
    (tmp_path / name).write_text('{"HELLO": 301}')
    assert fingerprint.of_tokenizer(tmp_path) != before
