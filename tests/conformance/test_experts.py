"""Families with experts: whole experts and the neurons inside them are pruned as a masked parent computes."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import AutoConfig

from minitron_cli.checkpoint import hf
from minitron_cli.distill import sharding
from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.runtime_tensors import disk_tensors
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.iterative_pruning import shapes_between
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.search import space
from tests.anatomy import anatomy
from tests.by_table import opened
from tests.conformance.masked import masked, random_survivors
from tests.conformance.test_families import (
    TIED,
    assert_equal,
    assert_same,
    check_child,
    edit_config,
    logits_of,
    plan_of,
    reload,
    shape_of,
    stored,
    write,
)
from tests.quick import EVERY_MIXTURE, MIXTURES, each_family
from tests.tiny import tiny_config, tiny_model

PRUNINGS = {
    "experts": {"expert": 4},
    "as few as a token uses": {"expert": 2},
    "experts and neurons": {"expert": 3, "ffn": 24},
    "experts and layers": {"expert": 4, "layer": 3},
    "everything": {"layer": 3, "hidden": 24, "ffn": 16, "head": 2, "kv_head": 1, "expert": 4},
}


def pruned_sizes(model_type, pruning):
    """Without the axes that a family keeps."""
    return {axis: size for axis, size in PRUNINGS[pruning].items() if axis not in FAMILIES[model_type].not_prunable}


def some_survivors(model, seed, sizes):
    """Random survivors, but of layers whose kinds repeat the first two."""
    found = random_survivors(model.config, seed, **sizes)
    return replace(found, layer=[0, 3]) if "layer" in sizes and anatomy(model.config.model_type).pattern else found


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """(model_type, options) -> the model and the checkpoint that transformers wrote of it."""
    known = {}

    def get(model_type, **options):
        key = (model_type, *sorted(options.items()))
        if key not in known:
            path = tmp_path_factory.mktemp("parent")
            model = tiny_model(model_type, rms_norm_eps=0.02, **options)
            model.save_pretrained(path)
            known[key] = (model, opened(path))
        return known[key]

    return get


@each_family(MIXTURES)
def test_a_child_computes_what_its_masked_parent_computes(parents, model_type, tokens, tmp_path, subtests):
    for tied, pruning in product(TIED, PRUNINGS):
        with subtests.test(tied=tied, pruning=pruning):
            model, checkpoint = parents(model_type, tie_word_embeddings=tied)
            survivors = some_survivors(model, len(pruning), pruned_sizes(model_type, pruning))
            check_child(model, checkpoint, survivors, tokens, tmp_path / f"{pruning}, {tied=}")


@pytest.mark.slow
@pytest.mark.parametrize("is_normed", [False, True])
def test_a_router_that_does_not_norm_its_weights(parents, is_normed, tokens, tmp_path):
    model, checkpoint = parents("qwen3_moe", norm_topk_prob=is_normed)
    check_child(model, checkpoint, random_survivors(model.config, 3, expert=3), tokens, tmp_path / "child")


@EVERY_MIXTURE
def test_a_child_in_memory_is_the_child_on_disk(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, some_survivors(model, 1, pruned_sizes(model_type, "everything")))
    tensors = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    child = hf.model_of(child_config(checkpoint.config, plan), tensors)
    on_disk = write(checkpoint, plan, tmp_path / "child")
    assert_equal(logits_of(child, tokens), logits_of(reload(on_disk), tokens), model_type)
    (tmp_path / "saved").mkdir()
    family = family_of(child.config)
    live = (part for name, tensor in sharding.parameters(child) for part in disk_tensors(family, name, tensor))
    hf.save_like(opened(on_disk), tmp_path / "saved", live)
    found, wanted = stored(tmp_path / "saved"), stored(on_disk)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@EVERY_MIXTURE
def test_a_child_generates_the_same_with_and_without_cache(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    pruning = some_survivors(model, 8, pruned_sizes(model_type, "everything"))
    child = reload(write(checkpoint, plan_of(model, pruning), tmp_path / "child"))
    same = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "attention_mask": torch.ones_like(tokens)}
    cached = child.generate(tokens, use_cache=True, **same)
    assert torch.equal(cached, child.generate(tokens, use_cache=False, **same))


@EVERY_MIXTURE
def test_two_prunings_are_one_pruning(parents, model_type, tokens, tmp_path):
    """Also of experts and of layers that the first pruning has renumbered."""
    model, checkpoint = parents(model_type)
    first = plan_of(model, random_survivors(model.config, 1, expert=4, ffn=40, layer=3))
    between = reload(write(checkpoint, first, tmp_path / "between"))
    pruning = random_survivors(between.config, 2, expert=3, ffn=16, layer=2)
    both = first.then(plan_of(between, pruning))
    child = reload(write(checkpoint, both, tmp_path / "child"))
    assert_same(logits_of(child, tokens), logits_of(masked(between, pruning), tokens))


@EVERY_MIXTURE
def test_the_number_of_experts_is_written_for_readers_of_either_version(parents, model_type, tokens, tmp_path):
    """Version 4 of transformers reads `num_experts` of Qwen 3, version 5 writes `num_local_experts`."""
    model, checkpoint = parents(model_type)
    plan = plan_of(model, random_survivors(model.config, 1, expert=4))
    directory = write(checkpoint, plan, tmp_path / "child")
    before = logits_of(reload(directory), tokens)
    raw = json.loads((directory / "config.json").read_text())
    both = ["num_experts", "num_local_experts"]
    names = {"mellum": both, "qwen3_moe": both}.get(model_type, [FAMILIES[model_type].sizes["expert"]])
    assert [raw[name] for name in names] == [4] * len(names)
    for name in names[1:]:
        edit_config(directory, **{name: None})
        assert torch.equal(logits_of(reload(directory), tokens), before)


def test_a_parent_with_the_older_name(parents, tokens, tmp_path):
    """Qwen's own checkpoints say `num_experts`."""
    model, _ = parents("qwen3_moe")
    model.save_pretrained(tmp_path / "parent")
    edit_config(tmp_path / "parent", num_local_experts=None, num_experts=6)
    older = opened(tmp_path / "parent")
    pruning = random_survivors(model.config, 1, expert=4)
    check_child(model, older, pruning, tokens, tmp_path / "child")
    assert AutoConfig.from_pretrained(tmp_path / "child").num_experts == 4


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("cohere", "use_qk_norm", True),
    ],
)
def test_models_that_a_table_does_not_describe_are_refused(model_type, field, value):
    config = tiny_config(model_type, **{field: value})
    with pytest.raises(CheckpointError, match=f"'{field}' is .*, which the table of {model_type} does not describe"):
        family_of(config)


@pytest.mark.parametrize("count", [0, 7, None, "2"])
def test_a_token_uses_as_many_experts_as_there_are_or_fewer(count):
    config = tiny_config("mixtral")
    object.__setattr__(config, "num_experts_per_tok", count)
    with pytest.raises(CheckpointError, match=r"'num_experts_per_tok' is .*: it must be within 1 to 6"):
        shape_of(type("Model", (), {"config": config}))


def test_choices_are_enough_for_a_token_and_wide_enough_for_groups(parents):
    parent = shape_of(parents("mixtral")[0])
    assert space.choices(parent, "expert") == (2, 3, 4, 5, 6)
    assert space.choices(parent.resize(expert=128), "expert") == tuple(range(8, 129, 8))
    assert [s.sizes["expert"] for s in space.grid(parent, {"expert": (1, 2)})] == [2]
    assert [s.sizes["ffn"] for s in space.grid(parent, {"ffn": (20, 24)})] == [24]


def test_the_shapes_between_rounds_can_be_built(parents):
    parent = shape_of(parents("mixtral")[0])
    child = parent.resize(ffn=16, hidden=16, expert=2, layer=3)
    shapes = shapes_between(parent, child, 3)
    assert [refusal(parent, shape) for shape in shapes] == [None] * 3
    assert [shape.sizes["expert"] for shape in shapes] == [5, 4, 2]
    assert [shape.sizes["ffn"] for shape in shapes] == [40, 32, 16]


@EVERY_MIXTURE
def test_experts_inside_a_plan(parents, model_type):
    model, _ = parents(model_type)
    ffn = torch.arange(4 * 6 * 5).reshape(4, 6, 5) % 48
    plan = PrunePlan(shape_of(model), {"expert": torch.tensor([[1, 3], [0, 5], [2, 3], [4, 5]]), "ffn": ffn})
    assert plan.child.sizes["expert"] == 2
    assert torch.equal(plan.at("ffn", 2, 3), ffn[2, 3])
    template = next(t for t in plan.parent.templates if "{expert}" in t)
    assert plan.child_name(template.format(layer=1, expert=5)) == template.format(layer=1, expert=1)
    assert plan.child_name(template.format(layer=1, expert=1)) is None
    router = next(t for t in plan.parent.templates if parse(FAMILIES[model_type].tensors[t]).axes(0) == {"expert"})
    assert plan.indices(router.format(layer=3))[0].tolist() == [4, 5]
