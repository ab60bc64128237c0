"""The importance stage: the same scores however the model is held, and whatever kills it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minitron_cli.errors import DataError, InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.processes import Processes
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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "layer_major"])
def test_two_processes_score_what_one_does(place, tmp_path, mode):
    script = Path(__file__).with_name("importance_under_torchrun.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(place), str(tmp_path / "two"), mode], check=True, env=environment, timeout=120)
    two = Scores.load(next((tmp_path / "two" / "importance").glob("*/scores.safetensors")).parent).by_name
    _, one = run(place, tmp_path / "one", samples=7, batch_size=2, mode=mode, blocks=(2,))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Of a variance near 0, and of a difference of perplexities, only the larger part is given to 1e-6.
        scale = tensor.double().abs().max()
        assert (two[name].double() - tensor.double()).abs().max() <= 1e-6 * scale, name
        assert torch.equal(two[name].argsort(stable=True), tensor.argsort(stable=True)), name
    assert not list((tmp_path / "two" / "importance").glob(".*"))


def test_fewer_samples_than_processes_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "join_processes", lambda device: (Processes(0, 7), device))
    with pytest.raises(DataError, match="6 samples are too few for 7 processes"):
        run(place, tmp_path)


def test_the_task_is_asked_without_each_block(place, tmp_path, monkeypatch):
    """By how much a stand-in for a task falls: here the first entry of the logits of a fixed text."""
    asked = []

    def run_tasks(model, tokenizer, tasks, *, batch_size):
        value = model(torch.arange(5)[None], use_cache=False).logits[0, 0, 0].item()
        asked.append(value)
        return {tasks[0].name: {"acc": {"value": value}}}

    monkeypatch.setattr("minitron_cli.evaluate.harness.run_tasks", run_tasks)
    _, scores = run(place, tmp_path, blocks=(2, 3), block_task="made_up:5", mode="resident")
    whole, *without = asked
    expected = whole - torch.tensor(without)
    torch.testing.assert_close(torch.cat([scores["layer.block_task=2"], scores["layer.block_task=3"]]), expected)
    assert len(set(asked)) == 1 + 3 + 2


def test_a_metric_that_the_task_lacks_is_an_error(place, tmp_path, monkeypatch):
    monkeypatch.setattr("minitron_cli.evaluate.harness.run_tasks", lambda *_, **__: {"t": {"acc_norm": {"value": 1.0}}})
    with pytest.raises(InputError, match=r"no 'acc': set importance.block_metric to one of acc_norm"):
        run(place, tmp_path, blocks=(2,), block_task="t", mode="resident")
