"""Pruning in rounds: what is left is scored again, and the child is the parent's own weights."""

import itertools

import pytest
import torch
from pydantic import ValidationError

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.sources import DataConfig, TextFiles
from minitron_cli.errors import DataError, InputError
from minitron_cli.importance import rescore
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model, published_shape
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.shape import Shape
from minitron_cli.prune import iterative_pruning
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.results.prune import PruneResult
from minitron_cli.scores.scores import Scores
from minitron_cli.search import space
from minitron_cli.stages import importance, prune
from tests.tiny import tiny_config
from tests.unit.stages.place import context, data, write_place

SHAPE = {"layer": 3, "hidden": 16, "head": 4, "ffn": 20}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("rounds")
    write_place(root)
    return root


@pytest.fixture
def pruned(place, tmp_path, monkeypatch):
    """`pruned(2)` in two rounds: the artifact, the scores of the parent, and the samples and scores of later rounds."""
    parent, rescored = open_source_model(place / "model"), []
    config = ImportanceConfig(samples=6, batch_size=4, layer_removal=False)
    first = importance.run(context(tmp_path), parent, data(place), config)

    def collect(model, family, calibration, options):
        scores = original(model, family, calibration, options)
        rescored.append((sum(len(b.sample_ids) for b in calibration.batches), scores))
        return scores

    original = rescore.collect
    monkeypatch.setattr(rescore, "collect", collect)

    def run(count, *, with_text=True):
        rescored.clear()
        made = PruneConfig(shape=SHAPE, rounds=count, repair="none")
        return (
            prune.run(context(tmp_path), parent, made, scores=first, data=data(place) if with_text else None),
            Scores.load(first.path),
            rescored,
        )

    return run


@pytest.mark.slow
def test_one_round_scores_nothing_again(pruned):
    artifact, _, rescored = pruned(1)
    assert rescored == []
    assert artifact.result(PruneResult).rounds == ()


@pytest.mark.slow
def test_each_later_round_scores_what_is_left_on_the_same_samples(pruned):
    once = pruned(1)[0].read_json("plan.json")
    artifact, _, rescored = pruned(3)
    assert [samples for samples, _ in rescored] == [6, 6]
    assert [r.samples_scored for r in artifact.result(PruneResult).rounds] == [0, 6, 6]
    sizes = [r.sizes for r in artifact.result(PruneResult).rounds]
    assert [s["ffn"] for s in sizes] == [39, 30, 20]
    assert artifact.result(PruneResult).child.sizes == sizes[-1]
    assert rescored[0][1].activation("ffn").shape == (sizes[0]["layer"], 39)
    assert artifact.read_json("plan.json").keys() == once.keys()
    assert artifact.read_json("plan.json") != once


@pytest.mark.slow
def test_what_is_left_has_scores_of_its_own(pruned):
    _, scores, rescored = pruned(2)
    parent_scores, own = scores.activation("hidden"), rescored[0][1].activation("hidden")
    assert len(own) < len(parent_scores)
    assert not any(torch.isclose(value, parent_scores, rtol=1e-3).any() for value in own[:3])


def test_the_child_is_pruned_from_the_parent_and_loads(pruned, place):
    artifact, _, _ = pruned(3)
    kept = {axis: torch.tensor(indices) for axis, indices in artifact.read_json("plan.json").items()}
    parent = open_source_model(place / "model")
    expected = prune_in_memory(PrunePlan(parent.shape, kept), parent.checkpoint.tensors, parent.checkpoint.read)
    found = Checkpoint.open(artifact.path)
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.read(name), tensor) for name, tensor in expected.items())
    hf.load_model(artifact.path)


def test_two_plans_in_a_row_are_one(place):
    parent = open_source_model(place / "model")
    layers, ffn = parent.shape.sizes["layer"], parent.shape.sizes["ffn"]
    generator = torch.Generator().manual_seed(0)

    def some(rows, size, count):
        return torch.stack([torch.randperm(size, generator=generator)[:count].sort().values for _ in range(rows)])

    first = PrunePlan(parent.shape, {"layer": torch.tensor([0, 2, 3]), "ffn": some(layers, ffn, 30)})
    second = PrunePlan(first.child, {"layer": torch.tensor([1, 2]), "ffn": some(3, 30, 7), "hidden": torch.arange(8)})
    read = parent.checkpoint.read
    between = prune_in_memory(first, parent.checkpoint.tensors, read)
    expected = prune_in_memory(second, between, between.__getitem__)
    found = prune_in_memory(first.then(second), parent.checkpoint.tensors, read)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("model_type", "sizes", "between"),
    [
        ("gemma2", {"layer": 2, "hidden": 16}, [(4, 32, 8), (4, 24, 8)]),  # by pairs of layers
        ("gpt_neox", {"hidden": 16, "head": 4, "layer": 2}, [(4, 28, 7), (3, 24, 6)]),  # hidden and heads alike
        ("llama", {"hidden": 16, "head": 4}, [(4, 32, 8), (4, 24, 8)]),  # hidden is a multiple of heads
    ],
)
def test_what_is_between_can_be_built(model_type, sizes, between):
    parent = Shape.of(FAMILIES[model_type], tiny_config(model_type))
    *found, last = iterative_pruning.shapes_between(parent, parent.resize(**sizes), 3)
    assert [(s.sizes["layer"], s.sizes["hidden"], s.sizes["head"]) for s in found] == between
    assert last == parent.resize(**sizes)
    for before, after in itertools.pairwise([parent, *found, last]):
        assert refusal(before, after) is None


INTERDEPENDENT = (
    ("qwen3", {"num_attention_heads": 32, "num_key_value_heads": 4}, {"head": 8, "kv_head": 1}),
    ("llama", {"num_attention_heads": 32, "hidden_size": 64}, {"head": 6, "hidden": 42, "layer": 1}),
    ("gpt_neox", {}, {"head": 3, "hidden": 12, "ffn": 5}),
    ("bamba", {}, {"mamba_head": 8, "hidden": 32}),
    ("bamba", {}, {"mamba_head": 4, "hidden": 16, "head": 4, "layer": 2}),
    ("nemotron_h", {}, {"mamba_head": 4, "head": 4, "kv_head": 1}),
    ("jamba", {"num_hidden_layers": 8}, {"layer": 4, "hidden": 16, "expert": 4}),
    ("ernie4_5_moe", {"num_hidden_layers": 12}, {"layer": 4, "expert": 2, "ffn": 16}),
    ("deepseek_v3", {"n_routed_experts": 12, "n_group": 4, "topk_group": 2}, {"expert": 8, "kv_rank": 6}),
)
"""Sizes that depend on each other: heads of groups, hidden of heads, quotients, groups of experts, kinds of layers."""


@pytest.mark.parametrize(("model_type", "options", "sizes"), INTERDEPENDENT)
def test_every_round_can_be_built(model_type, options, sizes):
    parent = Shape.of(FAMILIES[model_type], tiny_config(model_type, **options))
    check_rounds(parent, parent.resize(**sizes))


def check_rounds(parent, child):
    assert refusal(parent, child) is None
    for rounds in (2, 3, 4, 5, 8):
        shapes = iterative_pruning.shapes_between(parent, child, rounds)
        assert len(shapes) == rounds
        assert shapes[-1] == child
        for before, after in itertools.pairwise([parent, *shapes]):
            assert all(0 < size <= before.sizes[axis] for axis, size in after.sizes.items()), (rounds, str(after))
            assert refusal(before, after) is None, (rounds, str(after))


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["llama-3.1-8b", "bamba-9b", "nemotron-3-nano-30b-a3b", "qwen3-30b-a3b"])
def test_every_round_of_a_published_model_can_be_built(alias):
    parent = published_shape(alias)
    parts = {"hidden": (1, 3 / 4, 1 / 2), "head": (1, 1 / 2, 1 / 4), "kv_head": (1, 1 / 2), "mamba_head": (1, 1 / 2)}
    parts |= {"layer": (1, 3 / 4), "expert": (1, 1 / 2)}
    wanted = {
        axis: tuple(int(n * parent.sizes[axis]) for n in of) for axis, of in parts.items() if axis in parent.sizes
    }
    for child in space.grid(parent, wanted):
        check_rounds(parent, child)


def test_heads_and_hidden_shrink_in_turns_where_they_can():
    """Each round prunes, though neither the heads of a group nor hidden by heads comes out even."""
    parent = Shape.of(FAMILIES["qwen3"], tiny_config("qwen3", num_attention_heads=32, num_key_value_heads=4))
    shapes = iterative_pruning.shapes_between(parent, parent.resize(head=8, kv_head=1), 4)
    assert [(s.sizes["head"], s.sizes["kv_head"]) for s in shapes] == [(32, 4), (24, 3), (16, 2), (8, 1)]


def test_rounds_need_text(pruned):
    with pytest.raises(InputError, match="needs text to score on before each round"):
        pruned(2, with_text=False)


def test_layers_named_by_number_go_at_once():
    with pytest.raises(ValidationError, match="removed at once"):
        PruneConfig(drop_layers=(1,), rounds=2)


def test_rounds_need_as_much_text_as_the_scores_were_measured_on(place, tmp_path):
    parent = open_source_model(place / "model")
    first = importance.run(context(tmp_path), parent, data(place), ImportanceConfig(samples=6, layer_removal=False))
    (tmp_path / "short.txt").write_text("def f(x):\n    return x\n" * 4)
    text = DataConfig(sources=(TextFiles(paths=(str(tmp_path / "short.txt"),)),), sequence_length=16)
    made = PruneConfig(shape={"ffn": 24}, rounds=2, repair="none")
    with pytest.raises(DataError, match=r"importance\.samples is 6 and the data has \d blocks of 16 tokens: lower"):
        prune.run(context(tmp_path), parent, made, scores=first, data=text)
