"""A mixture of experts through the stages: scored, searched, cut at once and in rounds, distilled, reported."""

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill.config import DistillConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.report.importance import _neurons_of_all_experts
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import SearchResult
from minitron_cli.scores.scores import Scores
from minitron_cli.search.config import SearchConfig
from minitron_cli.stages import distill, importance, prune, report, search
from tests.unit.stages.place import context, data, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    write_place(root, "qwen3_moe")
    return root


@pytest.fixture(scope="module")
def scores(place):
    config = ImportanceConfig(samples=6, batch_size=4, layer_removal=False)
    return importance.run(context(place / "run"), open_source_model(place / "model"), data(place), config)


def test_layer_major_scores_are_those_of_the_whole_model(place, scores, tmp_path):
    config = ImportanceConfig(samples=6, batch_size=4, layer_removal=False, mode="layer_major")
    found = importance.run(context(tmp_path), open_source_model(place / "model"), data(place), config)
    expected, found = Scores.load(scores.path), Scores.load(found.path)
    assert found.by_name.keys() == expected.by_name.keys()
    for name, tensor in expected.by_name.items():
        torch.testing.assert_close(found.by_name[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_cut_is_the_parents_weights(place, scores, rounds):
    parent = open_source_model(place / "model")
    config = PruneConfig(shape={"expert": 3, "ffn": 16, "layer": 3}, rounds=rounds, repair="none")
    artifact = prune.run(context(place / "run"), parent, config, scores=scores, data=data(place))
    assert {axis: artifact.result(PruneResult).child.sizes[axis] for axis in ("expert", "ffn", "layer")} == config.shape
    kept = {axis: torch.tensor(indices) for axis, indices in artifact.read_json("plan.json").items()}
    assert kept["expert"].shape == (4, 3)
    assert kept["ffn"].shape == (4, 6, 16)
    expected = prune_in_memory(PrunePlan(parent.shape, kept), parent.checkpoint.tensors, parent.checkpoint.read)
    found = Checkpoint.open(artifact.path)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_the_experts_that_add_most_survive(place, scores):
    config = PruneConfig(shape={"expert": 4})
    artifact = prune.run(context(place / "run"), open_source_model(place / "model"), config, scores=scores)
    norm_LE = Scores.load(scores.path).by_name["expert.output_norm"]
    best = [sorted(sorted(range(6), key=lambda e: (-row[e], e))[:4]) for row in norm_LE.tolist()]
    assert artifact.read_json("plan.json") == {"expert": best}


@pytest.mark.slow
def test_a_search_by_active_parameters_and_what_follows(place, scores):
    at, parent = context(place / "run"), open_source_model(place / "model")
    target = parent.shape.resize(expert=4, ffn=24).parameters("active")
    config = SearchConfig(
        budget=Budget(target=target, count="active", tolerance=0.005),
        space={"expert": (2, 4, 7 - 1), "ffn": (24, 48)},
        score_blocks=2,
        retrain=None,
    )
    found = search.run(at, parent, scores, data(place), config)
    (winner,) = found.result(SearchResult).winners.values()
    assert winner.sizes["ffn"] == 24, "the number of experts hardly matters to what is active"
    assert winner.feasible == 3
    child = prune.run(at, parent, PruneConfig(), scores=scores, search=found)
    training = DistillConfig(tokens=64, batch_size=2, eval_blocks=2)
    trained = distill.run(at, parent, child.path, data(place), training)
    hf.load_model(trained.path)
    before, after = Checkpoint.open(child.path), Checkpoint.open(trained.path)
    assert before.shapes == after.shapes
    changed = {name for name in before.tensors if not torch.equal(before.read(name), after.read(name))}
    assert any(".mlp.gate." in name for name in changed)
    assert any(".experts.1.down_proj" in name for name in changed)
    page = (report.run(at).path / "report.html").read_text()
    assert "experts" in page


def test_neurons_of_all_experts_side_by_side():
    kept = {"expert": np.array([[0, 2], [1, 2]]), "ffn": np.arange(2 * 3 * 2).reshape(2, 3, 2) % 4}
    sizes = {"layer": 2, "expert": 3, "ffn": 4}
    assert _neurons_of_all_experts(kept, sizes).tolist() == [[0, 1, 8, 9], [4, 5, 10, 11]]
    assert _neurons_of_all_experts({"expert": kept["expert"]}, sizes)[1].tolist() == list(range(4, 12))
