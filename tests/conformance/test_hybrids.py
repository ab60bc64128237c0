"""What the tiny models of hybrids do not show: Granite 4 with experts, names in files, quotients, and refusals."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers.utils import logging

from minitron_cli.errors import CheckpointError, InputError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan
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
from tests.tiny import BASE, tiny_config, tiny_model
from tests.unit.importance.test_layer_major import check_scores

EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 40, "rms_norm_eps": 0.02}
PRUNINGS = [
    {"expert": 4},
    {"ffn": 16},
    {"head": 4, "kv_head": 1},
    {"hidden": 24},
    {"layer": 3},
    {"layer": 2, "hidden": 16, "ffn": 40, "head": 4, "expert": 3},
]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture
def tokens():
    return torch.randint(1, BASE["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))


@pytest.mark.conformance
class TestGraniteWithExperts:
    """Every other test of the family has its dense table."""

    @pytest.fixture(autouse=True)
    def _parts(self, monkeypatch):
        router = {"experts": "block_sparse_moe.experts", "router": "block_sparse_moe.router"}
        monkeypatch.setitem(ANATOMY, "granitemoehybrid", replace(ANATOMY["granitemoehybrid"], **router))

    @pytest.fixture(params=[False, True], ids=["untied", "tied"])
    def parent(self, request, tmp_path):
        model = tiny_model("granitemoehybrid", **EXPERTS, tie_word_embeddings=request.param)
        model.save_pretrained(tmp_path / "parent")
        return model, opened(tmp_path / "parent")

    def test_it_has_a_table_of_its_own(self, parent):
        assert shape_of(parent[0]).family != FAMILIES["granitemoehybrid"]
        check_counts(*parent)

    def test_a_child_computes_what_its_masked_parent_computes(self, parent, tokens, tmp_path, subtests):
        model, checkpoint = parent
        for i, sizes in enumerate(PRUNINGS):
            with subtests.test(pruning=sizes):
                survivors = random_survivors(model.config, i, **sizes)
                if "layer" in sizes:
                    survivors = replace(survivors, layer=[0, 3] if sizes["layer"] == 2 else [0, 1, 3])
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


@pytest.mark.parametrize("model_type", sorted(name for name, family in FAMILIES.items() if family.quotients))
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

    def test_layers_with_experts_are_refused(self):
        config = tiny_config("nemotron_h", layers_block_type=["linear_attention", "moe", "full_attention", "mlp"])
        with pytest.raises(CheckpointError, match="layers of this nemotron_h model hold experts"):
            family_of(config)

    def test_one_layer_of_each_kind_stays(self, parent):
        shape = shape_of(parent[0])
        with pytest.raises(InputError, match=r"no mlp layer would be left.*3 kinds of layers"):
            plan_of(parent[0], Survivors(layer=[0, 2, 3]))
        assert refusal(shape, shape.resize(layer=3)) is None
        assert "would be left" in refusal(shape, shape.resize(layer=2))

    def test_it_is_opened_as_a_source(self, parent):
        assert open_source_model(parent[1].path).shape.parameters() == sum(p.numel() for p in parent[0].parameters())
