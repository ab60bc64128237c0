"""Families whose layers hold different tensors: an axis is pruned where it is, and layers by their kind."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import CONFIG_MAPPING

from minitron_cli.checkpoint import document_masks
from minitron_cli.errors import InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.rescore import rescore
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.layer_kinds import apportioned
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import make_plan
from minitron_cli.scores.metric import Activation, Flap
from minitron_cli.search import space
from tests.by_table import opened
from tests.conformance.masked import Survivors, random_survivors
from tests.conformance.test_families import (
    Preferring,
    check_child,
    check_counts,
    check_streamed,
    plan_of,
    reload,
    shape_of,
    unique_parameters,
    write,
)
from tests.quick import case_of
from tests.tiny import tiny_config, tiny_model
from tests.unit.distill.small import TinyBlocks
from tests.unit.importance.calibration import samples, score, split

A, B = ("attention",), ("conv",)

MIXED = {
    "qwen3_moe": {"mlp_only_layers": [1]},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3_next": {"mlp_only_layers": [1, 3]},
    "mellum": {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
    "glm4_moe": {},
    "llama4_text": {},
}
"""Options with which layers of a family differ, where they are alike in its tiny model."""

EVERY_MIXED = pytest.mark.parametrize("model_type", [case_of(name) for name in sorted(MIXED)])


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Model type -> a model whose layers differ, and its checkpoint."""
    known = {}

    def get(model_type):
        if model_type not in known:
            path = tmp_path_factory.mktemp("parent")
            model = tiny_model(model_type, rms_norm_eps=0.02, **MIXED.get(model_type, {}))
            model.save_pretrained(path)
            known[model_type] = (model, opened(path))
        return known[model_type]

    return get


@EVERY_MIXED
def test_every_tensor_is_counted(parents, model_type):
    model, checkpoint = parents(model_type)
    assert len(set(shape_of(model).family.layers)) == 2
    check_counts(model, checkpoint)


@EVERY_MIXED
def test_a_child_computes_what_its_masked_parent_computes(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    pruning = random_survivors(model.config, 1, expert=4, ffn=16, hidden=24, head=4)
    check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
    check_streamed(checkpoint, plan_of(model, pruning), tmp_path / "streamed")


@pytest.mark.parametrize("kept", [[0, 1], [1, 2, 3], [0, 3]], ids=str)
@EVERY_MIXED
def test_kinds_go_with_their_layers(parents, model_type, kept, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    kinds = shape_of(model).family.layers
    if len({kinds[i] for i in kept}) < 2:
        with pytest.raises(
            InputError, match=r"no (\w+ )?(dense|sparse) layer would be left.*keep at least one of each"
        ):
            plan_of(model, Survivors(layer=kept))
        return
    child, plan = check_child(model, checkpoint, Survivors(layer=kept), tokens, tmp_path / "child")
    assert shape_of(child).family.layers == plan.child.family.layers == tuple(kinds[i] for i in kept)


@pytest.mark.parametrize("invert", [False, True])
def test_of_layers_whose_kinds_a_config_can_state_the_best_are_kept(invert):
    """An interval between layers with experts: the best of each kind may be at unequal distances."""
    parent = Shape.of(FAMILIES["ernie4_5_moe"], config := tiny_config("ernie4_5_moe", num_hidden_layers=8))
    ranking = Ranking(invert=invert)
    for count, seed in itertools.product(range(2, 8), range(9)):
        score_L = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        child = parent.resize(layer=count)
        plan = make_plan(parent, child, SimpleNamespace(layers=lambda _, score_L=score_L: score_L), ranking)
        kept = plan.at("layer").tolist()
        written = CONFIG_MAPPING["ernie4_5_moe"](**child_config(config.to_dict(), plan))
        assert parent.family.of_model(written).layers == tuple(parent.family.layers[i] for i in kept)
        assert Counter(plan.child.family.layers) == Counter(child.family.layers)
        best = (max, min)[invert](
            score_L[list(some)].sum()
            for some in itertools.combinations(range(8), count)
            if tuple(parent.family.layers[i] for i in some) == child.family.layers
        )
        assert (score_L[kept].sum() <= best + 1e-9) if invert else (score_L[kept].sum() >= best - 1e-9)


@EVERY_MIXED
def test_the_search_counts_the_layers_that_the_ranking_will_keep(parents, model_type, tmp_path):
    """Of each kind a number that follows from the depth alone, whatever the scores are."""
    model, checkpoint = parents(model_type)
    parent = shape_of(model)
    for count in (2, 3):
        counted = space.named(parent, {"layer": count, "ffn": 16})
        for kept in ([0, 1, 2, 3][:count], [3, 2, 1, 0][:count]):
            preferred = Preferring(Survivors(layer=kept, ffn=[0], shared_ffn=[0]), parent.sizes)
            plan = make_plan(parent, counted, preferred, Ranking())
            assert plan.child.parameters() == counted.parameters()
            assert plan.child.flops_per_token(9) == counted.flops_per_token(9)
            assert plan.child == counted
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    assert unique_parameters(child) == counted.parameters()


def test_every_kind_keeps_its_share_of_any_number_of_layers():
    """Never fewer of one kind in a deeper model, one of each at least, and the parent's own number at the end."""
    layers = (A, B, B, B) * 4
    counts = [apportioned(layers, n).count(A) for n in range(2, 17)]
    assert counts == sorted(counts)
    assert (counts[0], counts[6], counts[-1]) == (1, 2, 4)
    assert apportioned(layers, 16) == layers
    dense_first = (("dense",),) * 3 + (("sparse",),) * 58
    assert [apportioned(dense_first, n).count(("dense",)) for n in (60, 45, 20, 2)] == [3, 2, 1, 1]


@pytest.mark.parametrize("model_type", ["qwen3_moe", "glm4_moe", "lfm2"])
def test_layers_without_an_axis_score_zero_there_and_the_others_as_they_do_alone(model_type, tmp_path):
    """In one pass and layer by layer; the neurons of a dense layer are no neurons of experts."""
    model = tiny_model(model_type, **MIXED.get(model_type, {}))
    family, axis = shape_of(model).family, "head" if model_type == "lfm2" else "expert"
    has_axis = [kinds != (("conv",) if model_type == "lfm2" else ("dense",)) for kinds in family.layers]
    scores = score(model, split(samples(4), [2, 2]), blocks=(2,))
    for metric in (Activation(), Flap()) if axis == "head" else (Activation(),):
        by_layer = scores.select(axis, metric)
        assert len(by_layer) == 4
        assert [bool(row.any()) for row in by_layer] == has_axis


@pytest.mark.parametrize("model_type", ["qwen3_moe", "lfm2"])
def test_a_block_of_layers_leaves_every_kind_its_share(model_type):
    """Of `conv, attention, conv, attention` two layers in a row are one of each; the only dense layer may not go."""
    parent = shape_of(tiny_model(model_type, **MIXED.get(model_type, {})))

    class Costs:
        def layers(self, metric):
            return torch.tensor([3.0, 1.0, 2.0])  # of the blocks from layer 0, 1 and 2

    plan = make_plan(parent, parent.resize(layer=2), Costs(), Ranking(layers="block_perplexity"))
    assert plan.at("layer").tolist() == ([0, 3] if model_type == "lfm2" else [0, 1])
    parent = shape_of(tiny_model("qwen3_moe", num_hidden_layers=6, mlp_only_layers=[2]))
    with pytest.raises(InputError, match="no contiguous block of 4 layers leaves every kind of layer its share"):
        make_plan(parent, parent.resize(layer=2), Costs(), Ranking(layers="block_perplexity"))


@pytest.mark.parametrize(
    ("model_type", "kept"), [("deepseek_v3", [0, 2, 3]), ("lfm2", [1, 2, 3]), ("qwen3_moe", [1, 2, 3])]
)
def test_what_a_round_leaves_is_scored_as_the_model_that_it_is(parents, model_type, kept, tokens, tmp_path):
    """Where the kinds of the layers have moved: the first of the child may be of another kind than the parent's."""
    model, checkpoint = parents(model_type)
    child, plan = check_child(model, checkpoint, Survivors(layer=kept), tokens, tmp_path / "child")
    assert plan.child.family.layers != plan.parent.family.layers[: len(kept)]
    document_masks.keep_documents_apart(child)
    config, blocks = ImportanceConfig(samples=4, layer_removal=False), TinyBlocks(4)
    found = rescore(SimpleNamespace(model=lambda _: child, ranking=Ranking()), plan, blocks, config)
    expected = score(child, Calibration.of(config, blocks).batches, layer_removal=False)
    for axis in {"expert", "head", "ffn"} & plan.child.sizes.keys():
        assert torch.equal(found.select(axis, Activation()), expected.select(axis, Activation())), axis
        assert found.select(axis, Activation()).flatten(1).any(1).sum() >= 2, axis
