import json
import os
import random
import shutil

import pytest
import torch

from minitron_cli import io
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.artifact import Artifact, commit
from minitron_cli.artifacts.manifest import SCHEMA_VERSION, Manifest, key_of
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import ArtifactError
from minitron_cli.results.run_record import RunRecord

RECORD = RunRecord(
    seconds=1.5,
    seconds_in_all=1.5,
    minitron="0",
    python="3",
    torch="2",
    host="h",
    threads=1,
    cpu_capability="c",
    device="cpu",
    processes=1,
)


def unhashed(**fields):
    usual = {"schema_version": SCHEMA_VERSION, "stage": "prune", "stage_version": 1, "label": "a", "key": "f" * 64}
    empty = {"config": {"ffn": 3, "rate": 0.1}, "inputs": {"model": "0" * 64}, "files": {}}
    return Manifest(**usual | empty | fields)


def made(directory, name="a-ffffffff", **fields):
    temporary = io.temporary_dir(directory, name)
    write_safetensors(temporary / "model.safetensors", {"w": torch.arange(300.0)})
    io.write_new_json(temporary / "config.json", {"hidden_size": 3})
    return commit(temporary, directory / name, unhashed(**fields), RECORD)


@pytest.fixture
def artifact(tmp_path):
    return made(tmp_path)


def test_what_was_committed_is_read(artifact, tmp_path):
    again = Artifact.open(artifact.path, verify=True)
    assert again == artifact
    assert (again.stage, again.label, again.key) == ("prune", "a", "f" * 64)
    assert again.run == RECORD
    assert again.read_json("config.json") == {"hidden_size": 3}
    assert again.file("model.safetensors").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["a-ffffffff"]


def test_named_chat_templates_have_a_directory_of_their_own(tmp_path):
    temporary = io.temporary_dir(tmp_path, "a")
    for name in ("config.json", f"{manifests.CHAT_TEMPLATES}/tool_use.jinja"):
        io.make_dirs((temporary / name).parent)
        io.write_new(temporary / name, b"{}")
    artifact = commit(temporary, tmp_path / "a", unhashed(), RECORD)
    assert list(artifact.manifest.files) == [f"{manifests.CHAT_TEMPLATES}/tool_use.jinja", "config.json"]
    assert Artifact.open(artifact.path, verify=True) == artifact
    assert fingerprint.of_directory(artifact.path) == fingerprint.of_model(artifact.manifest)
    (artifact.path / manifests.CHAT_TEMPLATES / "other.jinja").write_text("")
    with pytest.raises(ArtifactError, match=r"additional_chat_templates/other.jinja does not belong there"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "..", "additional_chat_templates/../a", "additional_chat_templates/.."]
)
def test_a_manifest_names_no_file_elsewhere(name):
    with pytest.raises(ValueError, match="is not a plain file name"):
        unhashed(files={name: {"sha256": "0" * 64, "size_bytes": 1}})


def test_a_file_it_does_not_have(artifact):
    with pytest.raises(ArtifactError, match=r"has no scores\.json: run prune again with this version of minitron"):
        artifact.file("scores.json")


def test_identity_is_content(tmp_path, artifact):
    (tmp_path / "other").mkdir()
    same = made(tmp_path / "other", "another-name")
    assert same.fingerprint == artifact.fingerprint
    (same.path / "run.json").write_text("{}")
    assert Artifact.open(same.path, verify=True).fingerprint == artifact.fingerprint
    shutil.rmtree(same.path / "run.json", ignore_errors=True)


def test_a_missing_or_odd_run_file_is_no_damage(artifact):
    (artifact.path / "run.json").unlink()
    assert Artifact.open(artifact.path, verify=True).run is None


def damaged(artifact):
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(artifact.path, verify=True)
    message = str(caught.value).replace(str(artifact.path), "DIR")
    assert message.isprintable()
    assert len(message) < 200
    return message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_every_flipped_bit_is_found(artifact, name):
    """The manifest's own bits too: its config and inputs steer later stages."""
    path, draw = artifact.path / name, random.Random(name)
    content = path.read_bytes()
    for _ in range(100):
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        damaged(artifact)
    path.write_bytes(content)
    Artifact.open(artifact.path, verify=True)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("change", ["zero", "truncate", "append", "remove", "empty", "link", "directory"])
def test_every_other_damage_is_found(artifact, name, change):
    path = artifact.path / name
    content = path.read_bytes()
    path.unlink()
    if change == "link":
        (artifact.path.parent / "elsewhere").write_bytes(content[:-2])
        path.symlink_to(artifact.path.parent / "elsewhere")
    elif change == "directory":
        path.mkdir()
    elif change != "remove":
        half = len(content) // 2
        changed = {"zero": content[:half] + bytes(len(content) - half), "truncate": content[:-2], "empty": b""}
        path.write_bytes(changed.get(change, content + b"\n"))
    if (name, change) == ("manifest.json", "append"):
        Artifact.open(artifact.path, verify=True)  # says the same
    else:
        damaged(artifact)


@pytest.mark.parametrize("name", ["stranger.safetensors", ".hidden", "model-00001-of-00002.safetensors"])
def test_a_stranger_is_found(artifact, name):
    (artifact.path / name).write_text("")
    assert f"{name} does not belong there" in damaged(artifact)


def test_a_renamed_file_is_found(artifact):
    (artifact.path / "config.json").rename(artifact.path / "konfig.json")
    assert "config.json is missing" in damaged(artifact)


def test_a_large_file_is_read_again_only_after_it_was_touched(tmp_path, monkeypatch, hash_everything_once):
    artifact = made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(io, "file_record", lambda path: pytest.fail(f"read {path} again"))
        assert Artifact.open(artifact.path) == artifact, "hashed when it was committed"
    path = artifact.path / "model.safetensors"
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"model\.safetensors has changed since it was written"):
        Artifact.open(artifact.path)


def test_the_sentence_names_the_file_and_the_command(artifact):
    os.truncate(artifact.path / "model.safetensors", 100)
    assert damaged(artifact) == (
        "DIR: model.safetensors is not the file that was written; run `minitron prune` with the same settings to make "
        "it again (`minitron verify` lists them)"
    )


def test_the_first_commit_of_a_key_stands(tmp_path, artifact):
    before = (artifact.path / "run.json").stat().st_ino
    assert made(tmp_path) == artifact
    assert (artifact.path / "run.json").stat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["a-ffffffff"]


def test_what_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json does not exist: give a directory that a stage wrote"):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match=r"manifest\.json does not exist"):
        Artifact.open(tmp_path / "nowhere")


@pytest.mark.parametrize("schema", [SCHEMA_VERSION + 1, 10**30])
def test_a_newer_schema_asks_for_an_upgrade(artifact, schema):
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": schema, "new": 1}))
    assert "written by a newer minitron: upgrade minitron to read it" in damaged(artifact)


@pytest.mark.parametrize("content", ["[]", "{}", "", '{"schema_version": "1"}', '{"schema_version": null}', "\0"])
def test_a_manifest_that_is_none(artifact, content):
    (artifact.path / "manifest.json").write_text(content)
    damaged(artifact)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "", ".", "..", "a\0b", "a\nb", "run.json"])
def test_a_manifest_names_files_of_its_own_directory(artifact, tmp_path, name):
    """Even one that was sealed by somebody else."""
    (tmp_path / "outside").write_text("x")
    path = artifact.path / "manifest.json"
    path.unlink()
    record = io.FileRecord("0" * 64, 1)
    manifests.write(artifact.path, artifact.manifest.model_copy(update={"files": {name: record}}))
    damaged(artifact)


def test_a_key_is_a_function_of_intent():
    base = {"stage": "prune", "version": 1, "config": {"a": 1, "b": [2]}, "inputs": {"m": "x", "s": "y"}}
    key = key_of(**base)
    assert key == key_of("prune", 1, {"b": (2,), "a": 1}, {"s": "y", "m": "x"})
    others = [{"stage": "cut"}, {"version": 2}, {"config": {"a": 1, "b": [3]}}, {"inputs": {"m": "y", "s": "x"}}]
    assert len({key, *(key_of(**base | other) for other in others)}) == 5
