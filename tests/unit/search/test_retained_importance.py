"""The share of importance that survives, against sums over what a plan keeps."""

import math

import pytest
import torch
from transformers import LlamaConfig

from minitron_cli import progress
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import make_plan
from minitron_cli.scores.scores import Scores
from minitron_cli.search.feasible import Candidate
from minitron_cli.search.retained_importance import RetainedImportance


@pytest.fixture(scope="module")
def parent() -> Shape:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4
    )
    return Shape.of(family_of(config), config)


@pytest.fixture(scope="module")
def scores() -> Scores:
    draw = torch.Generator().manual_seed(0)
    sizes = {"hidden": (32,), "ffn": (4, 48), "head": (4, 8)}
    found = {f"{axis}.batch=l2.sequence=mean": torch.rand(size, generator=draw) for axis, size in sizes.items()}
    found["layer.block_importance"] = torch.rand(4, generator=draw)
    found["layer.perplexity"] = torch.tensor([3.0, -1.0, 1.0, 4.0])
    return Scores(found)


def by_plan(parent: Shape, child: Shape, scores: Scores, ranking: Ranking) -> float:
    """The same from the indices that a plan keeps."""
    plan, total = make_plan(parent, child, scores, ranking), 0.0
    for axis in plan.kept.keys() - {"kv_head"}:
        score = scores.layers(ranking.layers).clamp(min=0) if axis == "layer" else scores.select(axis, ranking.width)
        score, kept = torch.atleast_2d(score.double()), torch.atleast_2d(plan.kept[axis])
        total += math.log(float((score.gather(1, kept).sum(1) / score.sum(1)).mean()))
    return total


@pytest.mark.parametrize("ranking", [Ranking(), Ranking(layers="perplexity"), Ranking(invert=True)], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [{"hidden": 16}, {"ffn": 7}, {"layer": 3}, {"head": 4}, {"hidden": 24, "ffn": 30, "layer": 2, "head": 4}],
    ids=str,
)
def test_mass_is_what_the_plan_keeps(parent, scores, ranking, sizes):
    child = parent.resize(**sizes)
    assert RetainedImportance(parent, scores, ranking)(child) == pytest.approx(by_plan(parent, child, scores, ranking))


def test_layers_without_an_axis_do_not_count(parent, scores):
    """They score 0 there, and have nothing to retain or to lose."""
    some = dict(scores.by_name)
    for axis in ("ffn", "head"):
        name = f"{axis}.batch=l2.sequence=mean"
        some[name] = some[name].clone()
        some[name][[0, 2]] = 0
    half = {name: s[[1, 3]] if name.startswith(("ffn", "head")) else s for name, s in some.items()}
    for sizes in ({"ffn": 7}, {"head": 4}, {"kv_head": 2, "head": 4}):
        found, wanted = (RetainedImportance(parent, Scores(s), Ranking())(parent.resize(**sizes)) for s in (some, half))
        assert found == pytest.approx(wanted)


def test_groups_that_go_take_their_heads(parent, scores):
    child = parent.resize(kv_head=2, head=4)
    assert RetainedImportance(parent, scores, Ranking())(child) == pytest.approx(
        by_plan(parent, child, scores, Ranking())
    )


def test_the_parent_keeps_all(parent, scores):
    assert RetainedImportance(parent, scores, Ranking())(parent) == 0


def _candidates(parent, *sizes):
    return [Candidate((shape := parent.resize(**each)), shape.parameters(), None) for each in sizes]


def test_shapes_without_a_block_that_was_measured_are_left_out(parent, scores, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    measured = Scores({**scores.by_name, "layer.block_perplexity=2": torch.rand(3)})
    found = _candidates(parent, {"layer": 3}, {"layer": 2, "ffn": 7}, {"ffn": 30}, {"layer": 1})
    mass = RetainedImportance(parent, measured, Ranking(layers="block_perplexity"))
    assert {c.shape.sizes["layer"] for c in mass.order(found)} == {2, 4}
    assert said == ["leaving out 2 of 4 shapes: the scores hold no block_perplexity of 1, 3 layers"]
    only = _candidates(parent, {"layer": 3}, {"layer": 1})
    assert len(mass.order(only)) == 2, "none is left, so that pruning says what to measure"
    assert len(RetainedImportance(parent, measured, Ranking()).order(found)) == 4
