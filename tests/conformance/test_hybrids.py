"""What the tiny models of hybrids do not show: experts, names in files, patterns, quotients, and refusals."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING

from minitron_cli.errors import CheckpointError, InputError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan, make_plan
from tests.anatomy import ANATOMY
from tests.by_table import opened
from tests.conformance.masked import Survivors, random_survivors
from tests.conformance.test_families import (
    assert_same,
    check_child,
    check_counts,
    check_streamed,
    edit_config,
    logits_of,
    plan_of,
    reload,
    shape_of,
    write,
)
from tests.conformance.test_repair import HIDDEN, random_basis, turned
from tests.conformance.test_state_spaces import STATE_SPACES
from tests.tiny import tiny_config, tiny_model
from tests.unit.importance.test_layer_major import check_scores

GRANITE = {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 40, "rms_norm_eps": 0.02}
NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "intermediate_size": 40,
    "routed_scaling_factor": 1.5,
    "layer_norm_epsilon": 0.02,
}
JAMBA = {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2, "rms_norm_eps": 0.02}
WIDTHS = [{"expert": 4}, {"ffn": 16}, {"head": 4, "kv_head": 1}, {"hidden": 24}]
ALL = {"hidden": 16, "ffn": 40, "head": 4, "expert": 3}
DEPTHS = {
    "granitemoehybrid": [[0, 1, 3], [0, 3]],
    "jamba": [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]],
    "nemotron_h": [[0, 2, 3, 4], [0, 1, 2, 4]],
}
"""Layers that stay."""


def survivors_of(config):
    """What remains, by axis and of all together."""
    fewer, fewest = DEPTHS[config.model_type]
    found = [random_survivors(config, i, **sizes) for i, sizes in enumerate([*WIDTHS, ALL])]
    return [*found[:-1], Survivors(layer=fewer), replace(found[-1], layer=fewest)]


@pytest.mark.conformance
class TestWithExperts:
    """Hybrids whose tiny models, which every other test has, are without experts, or have fewer kinds of layers."""

    @pytest.fixture(autouse=True)
    def _parts(self, monkeypatch):
        router = {"experts": "block_sparse_moe.experts", "router": "block_sparse_moe.router"}
        monkeypatch.setitem(ANATOMY, "granitemoehybrid", replace(ANATOMY["granitemoehybrid"], **router))
        router = {"experts": "mixer.experts", "router": "mixer.gate"}
        monkeypatch.setitem(ANATOMY, "nemotron_h", replace(ANATOMY["nemotron_h"], **router))

    @pytest.fixture(
        params=[
            ("granitemoehybrid", {**GRANITE, "tie_word_embeddings": False}),
            ("granitemoehybrid", {**GRANITE, "tie_word_embeddings": True}),
            ("jamba", JAMBA),
            ("nemotron_h", NEMOTRON),
        ],
        ids=["granite untied", "granite tied", "jamba", "nemotron"],
    )
    def parent(self, request, tmp_path):
        model_type, options = request.param
        model = tiny_model(model_type, **options)
        model.save_pretrained(tmp_path / "parent")
        return model, opened(tmp_path / "parent")

    def test_every_tensor_is_counted(self, parent):
        assert "expert" in shape_of(parent[0]).sizes
        check_counts(*parent)

    def test_a_child_computes_what_its_masked_parent_computes(self, parent, tokens, tmp_path, subtests):
        model, checkpoint = parent
        for i, survivors in enumerate(survivors_of(model.config)):
            with subtests.test(pruning=survivors.sizes):
                check_child(model, checkpoint, survivors, tokens, tmp_path / f"{i}")
                check_streamed(checkpoint, plan_of(model, survivors), tmp_path / f"{i} again")

    def test_it_generates_the_same_with_and_without_cache(self, parent, tokens, tmp_path):
        model, checkpoint = parent
        survivors = random_survivors(model.config, 8, expert=3, ffn=16, head=4, hidden=16)
        child = reload(write(checkpoint, plan_of(model, survivors), tmp_path / "child"))
        same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "attention_mask": torch.ones_like(tokens)}
        cached = child.generate(tokens, use_cache=True, **same)
        assert torch.equal(cached, child.generate(tokens, use_cache=False, **same))

    def test_scores_of_one_layer_at_a_time_are_those_of_the_whole_model(self, parent, tmp_path):
        check_scores(parent[1].path, tmp_path / "scratch")

    def test_in_another_basis_it_is_the_parent(self, parent, tokens, tmp_path):
        model, checkpoint = parent
        if model.config.tie_word_embeddings:
            return  # of the weight of its last norm only the diagonal is kept
        plan = turned(PrunePlan(shape_of(model), {}), checkpoint, random_basis(HIDDEN))
        child = reload(write(checkpoint, plan, tmp_path / "child"))
        assert not torch.allclose(child.lm_head.weight, model.lm_head.weight, atol=0.1)
        assert_same(logits_of(child, tokens), logits_of(model, tokens))

    def test_widths_are_multiples_of_8(self, parent):
        shape = shape_of(parent[0])
        assert "keep a multiple of 8" in refusal(shape, shape.resize(ffn=20))


def test_kinds_keep_the_words_of_the_parents_config(tmp_path, tokens):
    """transformers 5 reads other words as it reads these; version 4 and vLLM know these alone."""
    model = tiny_model("granitemoehybrid", rms_norm_eps=0.02)
    model.save_pretrained(tmp_path / "parent")
    edit_config(tmp_path / "parent", layer_types=["mamba", "attention", "mamba", "attention"])
    check_child(model, opened(tmp_path / "parent"), Survivors(layer=[0, 1, 3]), tokens, tmp_path / "child")
    raw = json.loads((tmp_path / "child" / "config.json").read_text())
    assert raw["layer_types"] == ["mamba", "attention", "attention"]


class TestJamba:
    @pytest.fixture
    def parent(self):
        return shape_of(tiny_model("jamba", **JAMBA))

    def test_whole_periods_go(self, parent):
        """By the sum of their layers' scores; the layers that go are no part of two periods."""

        class Scores:
            def layers(self, metric):
                return torch.tensor([5.0, 5, 5, 1, 0, 3, 3, 3])

        plan = make_plan(parent, parent.resize(layer=4), Scores(), Ranking())
        assert plan.at("layer").tolist() == [0, 1, 2, 3]
        assert plan.child.family.layers == parent.family.layers[:4]
        reason = refusal(parent, parent.resize(layer=6))
        assert "layers that repeat every 4; drop a multiple of 4 of the 8 layers, or name drop_layers" in reason

    @pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7]], ids=str)
    def test_any_layers_that_leave_a_pattern_may_be_named(self, kept, parent):
        """The child's config states the pattern."""
        child = parent.of_layers(kept)
        plan = PrunePlan(parent, {"layer": torch.tensor(kept)})
        config = child_config(tiny_config("jamba", **JAMBA).to_dict(), plan)
        assert refusal(parent, child, kept) is None
        assert family_of(CONFIG_MAPPING["jamba"].from_dict(config)).layers == child.family.layers

    def test_other_layers_are_refused(self, parent):
        assert "which the kept layers do not follow" in refusal(parent, parent, [0, 2, 3, 4])

    def test_a_model_without_experts_has_one_kind_of_rule(self, tokens, tmp_path):
        model = tiny_model("jamba", num_experts=1, num_experts_per_tok=1, attn_layer_period=2)
        model.save_pretrained(tmp_path / "parent")
        checkpoint = opened(tmp_path / "parent")
        check_counts(model, checkpoint)
        sizes = {"ffn": 20, "hidden": 24, "head": 4}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ANATOMY, "jamba", replace(ANATOMY["jamba"], experts="", router="", mlp_follows=False))
            survivors = replace(random_survivors(model.config, 1, **sizes), layer=[0, 1, 2])
            check_child(model, checkpoint, survivors, tokens, tmp_path / "child")


@pytest.mark.parametrize("model_type", [name for name in STATE_SPACES if FAMILIES[name].quotients])
def test_a_config_states_the_quotient(model_type, tmp_path):
    """Of heads that go alone, of hidden alone, and of both; the parent's is 3."""
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "parent")
    checkpoint, parent = opened(tmp_path / "parent"), shape_of(model)
    for sizes, wanted in (({"mamba_head": 8}, 2), ({"hidden": 24}, 4), ({"mamba_head": 8, "hidden": 16}, 4)):
        plan = PrunePlan(parent, {axis: torch.arange(n) for axis, n in sizes.items() if axis == "hidden"})
        if heads := sizes.get("mamba_head"):
            kept = torch.tensor([g * 6 + i for g in range(2) for i in range(heads // 2)])
            plan = PrunePlan(parent, {**plan.kept, "mamba_head": kept.expand(4, -1)})
        child = reload(write(checkpoint, plan, tmp_path / f"child {sizes}"))
        assert child.config.mamba_expand == wanted
        assert refusal(parent, parent.resize(**sizes)) is None
    assert "keep a divisor" in refusal(parent, parent.resize(mamba_head=6))


def names_in(directory):
    """Names in a file of weights, with the numbers of layers left out."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {re.sub(r"[.]\d+[.]", ".", name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)


class TestNemotronH:
    @pytest.fixture
    def parent(self, tmp_path):
        model = tiny_model("nemotron_h", layer_norm_epsilon=0.02)
        model.save_pretrained(tmp_path / "parent")
        return model, opened(tmp_path / "parent")

    def test_a_child_has_the_names_of_published_files(self, parent, tmp_path):
        model, checkpoint = parent
        child = write(checkpoint, plan_of(model, Survivors(layer=[0, 1, 3])), tmp_path / "child")
        found, wanted = (names_in(directory) for directory in (child, checkpoint.path))
        assert found == wanted
        assert {name.partition(".")[0] for name in found} == {"backbone", "lm_head"}

    def test_a_config_that_spells_the_layers_as_letters(self, parent, tokens, tmp_path):
        model, checkpoint = parent
        edit_config(checkpoint.path, layers_block_type=None, hybrid_override_pattern="M-M*")
        spelled = opened(checkpoint.path)
        _, plan = check_child(model, spelled, Survivors(layer=[0, 1, 3]), tokens, tmp_path / "child")
        raw = json.loads((tmp_path / "child" / "config.json").read_text())
        assert raw["hybrid_override_pattern"] == "M-*"
        assert raw["layers_block_type"] == [kind for (kind,) in plan.child.family.layers]
        assert raw["num_hidden_layers"] == 3

    def test_experts_that_read_a_latent_are_refused(self):
        kinds = ["linear_attention", "moe", "full_attention", "mlp"]
        config = tiny_config("nemotron_h", layers_block_type=kinds, moe_latent_size=16)
        with pytest.raises(CheckpointError, match="experts of this nemotron_h model read a latent"):
            family_of(config)

    def test_one_layer_of_each_kind_stays(self, parent):
        shape = shape_of(parent[0])
        with pytest.raises(InputError, match=r"no mlp layer would be left.*3 kinds of layers"):
            plan_of(parent[0], Survivors(layer=[0, 2, 3]))
        assert refusal(shape, shape.resize(layer=3)) is None
        assert "would be left" in refusal(shape, shape.resize(layer=2))

    def test_it_is_opened_as_a_source(self, parent):
        assert open_source_model(parent[1].path).shape.parameters() == sum(p.numel() for p in parent[0].parameters())
