"""Attention through latents (DeepSeek V2 and V3), and routers that choose groups of experts first."""

from dataclasses import replace

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.iterative_pruning import shapes_between
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import make_plan
from minitron_cli.scores.metric import Activation, Flap, Magnitude
from minitron_cli.search import space
from tests.by_table import opened
from tests.conformance.masked import Survivors, masked, random_survivors
from tests.conformance.test_families import (
    Preferring,
    assert_same,
    check_child,
    check_counts,
    check_streamed,
    logits_of,
    plan_of,
    reload,
    shape_of,
    write,
)
from tests.quick import case_of
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, score, split

BOTH = pytest.mark.parametrize(
    "model_type", [case_of(name) for name in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")]
)
GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}
GROUPS = ([0, 2, 5, 7], [1, 3, 4, 6], [2, 3, 6, 7], [0, 1, 4, 5])  # two of each group in every layer


def saved(path, model_type, **options):
    model = tiny_model(model_type, **options)
    model.save_pretrained(path)
    return model, opened(path)


@BOTH
def test_a_model_without_query_latents(model_type, tokens, tmp_path):
    """As DeepSeek V2 Lite is."""
    model, checkpoint = saved(tmp_path / "parent", model_type, q_lora_rank=None)
    assert "q_rank" not in shape_of(model).sizes
    check_counts(model, checkpoint)
    pruning = random_survivors(model.config, 1, hidden=16, head=4, kv_rank=12, ffn=16, expert=4)
    check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
    check_streamed(checkpoint, plan_of(model, pruning), tmp_path / "streamed")


@BOTH
def test_groups_of_experts_keep_as_many_each(model_type, tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type, **GROUPED)
    pruning = Survivors(expert=[list(kept) for kept in GROUPS])
    child, _ = check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
    assert child.config.n_group == 2
    ungrouped = Survivors(expert=[[0, 1, 2, 7]] * 4)  # three of one group, which the child takes for two
    parent, plan = masked(model, ungrouped), replace(plan_of(model, pruning), kept=kept_experts(ungrouped))
    other = reload(write(checkpoint, plan, tmp_path / "other"))
    wanted = logits_of(parent, tokens)
    assert (logits_of(other, tokens) - wanted).norm() > 1e-3 * wanted.norm()


def kept_experts(pruning):
    return {"expert": torch.tensor(pruning.expert)}


@pytest.mark.parametrize(
    ("model_type", "count", "least"), [("deepseek_v3", 2, 4), ("glm4_moe", 2, 4), ("deepseek_v2", 2, 4)]
)
def test_a_router_needs_experts_in_the_groups_that_it_chooses(model_type, count, least):
    """Two rate a group of V3; and of the one group that it chooses, a token takes two."""
    parent = shape_of(tiny_model(model_type, **GROUPED))
    assert parent.sizes["expert_group"] == 2
    with pytest.raises(InputError, match=f"expert={count}: the router chooses 1 of 2 groups .*keep at least {least}"):
        make_plan(parent, parent.resize(expert=count), Preferring(Survivors(), parent.sizes), Ranking())
    assert refusal(parent, parent.resize(expert=least)) is None
    assert space.choices(parent, "expert") == (2, 4, 6, 8)


def test_a_router_that_chooses_among_all_experts_has_no_groups():
    parent = shape_of(tiny_model("deepseek_v2", n_group=3, topk_group=1, topk_method="greedy"))
    assert refusal(parent, parent.resize(expert=5)) is None


@BOTH
def test_ranks_between_rounds_can_be_built(model_type):
    parent = shape_of(tiny_model(model_type))
    shapes = shapes_between(parent, parent.resize(kv_rank=6, q_rank=10, ffn=16), 4)
    assert [refusal(parent, shape) for shape in shapes] == [None] * 4
    assert [shape.sizes["shared_ffn"] for shape in shapes] == [2 * shape.sizes["ffn"] for shape in shapes]


@BOTH
def test_the_cache_holds_latents(model_type):
    """As many numbers as transformers keeps."""
    model = tiny_model(model_type)
    with torch.no_grad():
        cache = model(torch.ones(2, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape_of(model).kv_cache_bytes(2, 7, dtype_bytes=1) == held


@BOTH
def test_scores_of_a_latent_are_those_of_what_its_reader_reads(model_type):
    """sqrt of the sum over samples of (mean |x|)^2, after the norm; of weights, those around the channel."""
    model, batch = tiny_model(model_type), samples(4)
    for axis, norm, reader in (("q_rank", "q_a_layernorm", "q_b_proj"), ("kv_rank", "kv_a_layernorm", "kv_b_proj")):
        seen = {}

        def hook(i, seen=seen):
            return lambda _, args, output: seen.update({i: output})

        attentions = [layer.self_attn for layer in model.model.layers]
        hooks = [a.get_submodule(norm).register_forward_hook(hook(i)) for i, a in enumerate(attentions)]
        with torch.no_grad():
            model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
        for one in hooks:
            one.remove()
        scores = score(model, split(batch, [3, 1]))
        wanted = torch.stack([seen[i].abs().mean(1).norm(dim=0) for i in range(4)])
        torch.testing.assert_close(scores.select(axis, Activation()), wanted)
        weights = magnitude(hf.stored_tensors(model).__getitem__, shape_of(model)).select(axis, Magnitude())
        maker = attentions[1].get_submodule("q_a_proj" if axis == "q_rank" else "kv_a_proj_with_mqa").weight
        read = attentions[1].get_submodule(reader).weight
        both = torch.cat([maker[: read.shape[1]].T, read])
        torch.testing.assert_close(weights[1], both.norm(dim=0))
        with pytest.raises(InputError, match=f"flap does not score {axis}"):
            scores.select(axis, Flap())


@BOTH
def test_the_rotated_part_of_the_keys_stays_behind_the_latent(model_type, tokens, tmp_path):
    """What the masked equality could not see if it looked in the wrong place: the last channels of a latent go."""
    model, checkpoint = saved(tmp_path / "parent", model_type)
    pruning = Survivors(kv_rank=[list(range(10))] * 4)
    child, _ = check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
    whole = model.model.layers[0].self_attn.kv_a_proj_with_mqa.weight
    assert torch.equal(child.model.layers[0].self_attn.kv_a_proj_with_mqa.weight[10:], whole[16:])
    with pytest.raises(AssertionError):
        assert_same(logits_of(child, tokens), logits_of(model, tokens))
