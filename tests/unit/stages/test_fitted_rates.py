"""Learning rates that stages fit to the size of their model."""

import math

import pytest

from minitron_cli.distill import short_runs
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.stages import correct, distill
from tests.unit.stages.place import context, data, write_place

SHORT = {"steps": 2, "batch_size": 2, "micro_batch_size": 2, "eval_blocks": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root)
    return open_source_model(root / "model")


@pytest.mark.parametrize(("size", "peak"), [(-1, 4.2e-6), (0, 1e-4)])
def test_distill_takes_the_rate_of_its_student(tmp_path, parent, monkeypatch, size, peak):
    limit = parent.shape.parameters() + size
    monkeypatch.setattr(short_runs, "RATES", ((limit, 1e-4), (math.inf, 1e-6)))
    found = distill.run(context(tmp_path), parent, parent.path, data(parent.path.parent), DistillConfig(**SHORT))
    assert found.manifest.config["learning_rate"] == peak


def test_correct_takes_the_rate_of_its_model(tmp_path, parent, monkeypatch):
    monkeypatch.setattr(short_runs, "RATES", ((math.inf, 5e-6),))
    found = correct.run(context(tmp_path), parent, data(parent.path.parent), CorrectConfig(**SHORT))
    assert found.manifest.config["learning_rate"] == 5e-6
