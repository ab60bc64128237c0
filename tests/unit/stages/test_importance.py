"""The importance stage: the same scores however the model is held, and whatever kills it."""

import pytest
import torch

from minitron_cli.errors import InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.stages import importance
from minitron_cli.stages.parent import open_parent
from minitron_cli.trim.scores import Scores
from tests.unit.stages.place import context, data, write_place

CONFIG = ImportanceConfig(samples=6, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("importance")
    write_place(root)
    return root


def run(place, workspace, **changes):
    config = CONFIG.model_copy(update=changes)
    artifact = importance.run(context(workspace), open_parent(place / "model"), data(place), config)
    return artifact, Scores.load(artifact.path).by_name


def test_a_model_held_layer_by_layer_has_the_same_scores(place, tmp_path):
    _, whole = run(place, tmp_path, mode="resident", blocks=(2,))
    artifact, by_layer = run(place, tmp_path, mode="layer_major", blocks=(2,))
    assert whole.keys() == by_layer.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(by_layer[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    assert not [path.name for path in artifact.path.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("available", "mode"), [(10**9, "resident"), (1000, "layer_major")])
def test_memory_decides_how_it_is_held(place, tmp_path, monkeypatch, available, mode):
    calls = []
    monkeypatch.setattr("minitron_cli.importance.memory.available_bytes", lambda device: available)
    for name in ("collect", "collect_by_layer"):
        original = getattr(importance, name)
        monkeypatch.setattr(importance, name, lambda *a, f=original, n=name, **k: (calls.append(n), f(*a, **k))[1])
    run(place, tmp_path, activation_budget=1_000_000)
    assert calls == [{"resident": "collect", "layer_major": "collect_by_layer"}[mode]]


def test_a_block_that_is_the_whole_model_is_refused_first(place, tmp_path):
    with pytest.raises(InputError, match="4 layers cannot be removed from 4"):
        run(place, tmp_path, blocks=(4,))
    assert not (tmp_path / "importance").exists()
