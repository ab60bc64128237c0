"""Calibration killed at random moments: what is run again gives the same bytes, however the model is held."""

from dataclasses import replace

import pytest

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.importance import collect, layer_major
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.stages import importance
from tests.faults.harness import Range, problems, random_kills, table
from tests.unit.stages.place import data, write_place


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    write_place(root)
    return root


def saving_always(collector):
    """The collector, saving its state after every batch or layer."""

    def run(*arguments):
        *others, calibration, options = arguments
        return collector(*others, replace(calibration, save_every_s=0), options)

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["resident", "layer_major"])
def test_kills_in_every_part_of_a_pass(source, place, monkeypatch, mode):
    """State is saved after every batch and every layer, so that most kills find some."""
    for module, name in ((collect, "collect"), (layer_major, "collect_by_layer")):
        monkeypatch.setattr(importance, name, saving_always(getattr(module, name)))
    parent = open_source_model(source / "model")
    config = ImportanceConfig(samples=12, batch_size=2, mode=mode, activation_budget=2000, blocks=(2,))

    def stage(root):
        workspace = Workspace(root / "run")
        with workspace.lock():
            importance.run(Context(workspace), parent, data(source), config)

    done = random_kills(Range(stage, place), 16, inside_a_write=3)
    print("\n" + table(f"importance, {mode}", done))
    assert not problems(done)
