"""The prune stage: what it makes is checked before it is kept."""

import hashlib

import pytest
import torch

from minitron_cli import io
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.errors import RunFailed
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune import export_check
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.prune import PruneResult
from minitron_cli.stages import importance, prune
from tests.unit.stages.place import context, data, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("prune")
    write_place(root)
    return root


@pytest.fixture
def cut(place, tmp_path):
    """`cut()`: the artifact."""
    parent, small = open_source_model(place / "model"), ImportanceConfig(samples=4, batch_size=4, layer_removal=False)

    def run():
        scores = importance.run(context(tmp_path), parent, data(place), small)
        return prune.run(context(tmp_path), parent, PruneConfig(shape={"ffn": 32, "layer": 3}), scores=scores)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("available", "compared"), [(10**12, "whole"), (0, "sampled")])
def test_what_was_checked_is_on_record_and_the_machine_is_not_in_the_identity(cut, monkeypatch, available, compared):
    monkeypatch.setattr("minitron_cli.memory.available_bytes", lambda device: available)
    made = cut()
    assert made.result(PruneResult).checks == (*export_check.CHECKS, "live")
    assert made.run.export_check.compared == compared
    assert made.run.export_check.seconds > 0
    assert "compared" not in str(made.result(PruneResult))


@pytest.mark.slow
def test_its_files_are_hashed_once_and_truly(cut, monkeypatch):
    hashed, original = [], io.file_record
    monkeypatch.setattr(io, "file_record", lambda path: hashed.append(path.name) or original(path))
    made = cut()
    assert hashed.count("model.safetensors") == 1
    for name, record in made.manifest.files.items():
        content = (made.path / name).read_bytes()
        assert record == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_child_that_fails_is_not_kept(cut, tmp_path, monkeypatch):
    def spoilt(checkpoint, plan, directory, **options):
        write_child(checkpoint, plan, directory, **options)
        with open(directory / "model.safetensors", "r+b") as file:
            file.seek(-4, 2)
            file.write(b"\x00\x00\xc0\x7f")  # NaN

    write_child = prune.stream.write_child
    with monkeypatch.context() as patch:
        patch.setattr(prune.stream, "write_child", spoilt)
        with pytest.raises(
            RunFailed, match=r"failed its 'finite' check and was not kept: model\.norm\.weight holds NaN"
        ) as e:
            cut()
    assert e.value.exit_code == 1
    workspace = Workspace(tmp_path)
    assert workspace.artifacts("prune") == []
    assert workspace.current("prune") is None
    assert not list(tmp_path.rglob("model.safetensors"))
    assert cut().result(PruneResult).checks
