"""A calibration that was interrupted, and of whose files one was damaged since, starts over and says so."""

import shutil
from pathlib import Path

import pytest

from minitron_cli import progress
from minitron_cli.errors import Interrupted
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.layerwise import layer_loop
from minitron_cli.layerwise.resume import SavedState
from minitron_cli.prune.config import PruneConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import importance, prune, sparsify
from tests.unit.stages.place import context, data, write_place

PASS = ImportanceConfig(samples=6, batch_size=2, mode="layer_major", activation_budget=2000)
SPARSE = SparsifyConfig(
    pattern="2:4", samples=6, batch_size=2, metric="sparsegpt", repair="least_squares", activation_budget=2000
)
REPAIRED = PruneConfig(shape={"hidden": 24, "ffn": 32}, repair="all", repair_samples=6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    return root


def run(stage: str, place: Path, root: Path):
    """Artifact of a stage, in the workspace `root`."""
    at, parent, text = context(root), open_source_model(place / "model"), data(place)
    if stage == "importance":
        return importance.run(at, parent, text, PASS)
    if stage == "sparsify":
        return sparsify.run(at, parent, SPARSE, text)
    scores = importance.run(at, parent, text, PASS.model_copy(update={"mode": "resident"}))
    return prune.run(at, parent, REPAIRED, scores=scores, data=text)


def content(artifact):
    """Bytes of every file but the record of the run."""
    return {path.name: path.read_bytes() for path in artifact.path.iterdir() if path.name != "run.json"}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "saves"), [("importance", 2), ("sparsify", 2), ("prune", 7)])
def test_damage_costs_time_and_changes_nothing(stage, saves, place, tmp_path, monkeypatch):
    """A file of each kind: saved states, hidden states between two layers, and what was made of earlier layers."""
    whole = content(run(stage, place, tmp_path / "whole"))
    save, done = layer_loop._save, 0

    def stopping(*arguments):
        nonlocal done
        save(*arguments)
        done += 1
        if done == saves:
            raise Interrupted("stopped")

    with monkeypatch.context() as stopped:
        stopped.setattr(SavedState, "is_due", lambda self: True)
        stopped.setattr(layer_loop, "_save", stopping)
        with pytest.raises(Interrupted):
            run(stage, place, tmp_path / "killed")
    said: list[str] = []
    monkeypatch.setattr(progress, "warn", said.append)
    kept = [path for path in (tmp_path / "killed").rglob("*.safetensors") if "scratch" in str(path.parent)]
    kinds = {(path.parent, path.name.split("-")[0]): path for path in kept}
    assert len(kinds) >= 2
    for number, path in enumerate(kinds.values()):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "killed", root)
        damaged = root / path.relative_to(tmp_path / "killed")
        content_of_it = damaged.read_bytes()
        damaged.write_bytes(content_of_it[:-1] + bytes([content_of_it[-1] ^ 64]))
        said.clear()
        assert content(run(stage, place, root)) == whole, path.name
        assert [line for line in said if "starts over" in line and path.name in line], path.name
    said.clear()
    assert content(run(stage, place, tmp_path / "killed")) == whole
    assert not [line for line in said if "starts over" in line]
