"""Every registered family against transformers: a trimmed child computes what its masked parent computes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from minitron_cli import io
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.writer import TensorSpec, write_checkpoint
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from minitron_cli.trim.config import child_config
from minitron_cli.trim.plan import PrunePlan, make_plan
from minitron_cli.trim.spec import Ranking
from minitron_cli.trim.trim import cut_in_memory, write_child
from tests.conformance.masked import Cut, masked, random_cut
from tests.tiny import BASE, FAMILY_OPTIONS, tiny_model

# Axis sizes of the children. 24 is a multiple of 6 and of 8, which Llama asks of hidden sizes.
CUTS = {
    "ffn": {"ffn": 20},
    "heads": {"head": 4},
    "groups": {"head": 4, "kv_head": 1},
    "hidden": {"hidden": 24},
    "depth": {"layer": 3},
    "all": {"layer": 3, "hidden": 24, "ffn": 20, "head": 6},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 47, "head": 2, "kv_head": 1},
}
BOTH = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
EVERY_FAMILY = pytest.mark.parametrize("model_type", sorted(FAMILIES))


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """(model_type, options) -> the model and the checkpoint that transformers wrote of it."""
    known = {}

    def get(model_type, **options):
        key = (model_type, *sorted(options.items()))
        if key not in known:
            path = tmp_path_factory.mktemp("parent")
            model = tiny_model(model_type, rms_norm_eps=0.02, **options)  # large enough for a mistake in it to show
            model.save_pretrained(path)
            known[key] = (model, Checkpoint.open(path))
        return known[key]

    return get


@pytest.fixture(scope="module")
def tokens():
    """More tokens than a window holds, and more than there are samples."""
    return torch.randint(1, BASE["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))


class Preferring:
    """Random scores under which exactly the survivors of a cut rank first."""

    def __init__(self, cut: Cut, sizes, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.cut, self.sizes = cut, sizes

    def select(self, axis, metric):
        return self.prefer(getattr(self.cut, axis), self.sizes[axis])

    def layers(self, metric):
        return self.prefer(self.cut.layer, self.sizes["layer"])

    def prefer(self, kept, size):
        if isinstance(kept[0], list):
            return torch.stack([self.prefer(one, size) for one in kept])
        score = torch.rand(size, generator=self.generator)
        score[kept] += 10
        return score


def shape_of(model):
    return Shape.of(family_of(model.config), model.config)


def plan_of(model, cut: Cut) -> PrunePlan:
    parent = shape_of(model)
    return make_plan(parent, parent.resize(**cut.sizes), Preferring(cut, parent.sizes), Ranking())


def write(checkpoint, plan, directory):
    """A whole child, as the prune stage writes it."""
    directory.mkdir()
    write_child(checkpoint, plan, directory)
    io.write_new_json(directory / "config.json", child_config(checkpoint.config, plan))
    return directory


def reload(path):
    """Stock transformers, with every key accounted for."""
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens, use_cache=False).logits


def assert_same(found, wanted):
    """To 1e-5 of the logits' norm: other matrix sizes sum in another order, nothing else may differ."""
    assert wanted.std() > 1
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def check_cut(model, checkpoint, cut, tokens, directory):
    plan = plan_of(model, cut)
    child = reload(write(checkpoint, plan, directory))
    assert_same(logits_of(child, tokens), logits_of(masked(model, cut), tokens))
    assert unique_parameters(child) == plan.child.parameters()
    assert {name: tuple(t.shape) for name, t in stored(directory).items()} == plan.child.tensors()
    return child, plan


def unique_parameters(model):
    return sum(p.numel() for p in model.parameters())


def stored(directory):
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_each_family_has_a_tiny_model():
    assert set(FAMILIES) == set(FAMILY_OPTIONS), "add the new family's options to tests/tiny.py: FAMILY_OPTIONS"


@BOTH
@EVERY_FAMILY
def test_nothing_in_a_tiny_parent_is_left_at_its_default(parents, model_type, tied, tokens):
    model, _ = parents(model_type, tie_word_embeddings=tied)
    assert all(p.std() > 0.1 for p in model.parameters())
    assert logits_of(model, tokens).std() > 1


@BOTH
@EVERY_FAMILY
def test_every_tensor_of_a_parent_is_known_and_counted(parents, model_type, tied):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    shape = shape_of(model)
    assert shape.tensors() == checkpoint.shapes
    shape.check(checkpoint.shapes)
    assert shape.parameters() == unique_parameters(model)
    embeddings = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    assert shape.parameters("non_embedding") == unique_parameters(model) - sum(embeddings.values())


@pytest.mark.parametrize("cut", CUTS)
@BOTH
@EVERY_FAMILY
def test_a_child_computes_what_its_masked_parent_computes(parents, model_type, tied, cut, tokens, tmp_path):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    check_cut(model, checkpoint, random_cut(model.config, len(cut), **CUTS[cut]), tokens, tmp_path / "child")


@pytest.mark.parametrize("groups", [1, 8], ids=["multi-query", "multi-head"])
@EVERY_FAMILY
def test_the_limits_of_grouped_attention(parents, model_type, groups, tokens, tmp_path):
    model, checkpoint = parents(model_type, num_key_value_heads=groups)
    sizes = {"head": 4} | ({"kv_head": 4} if groups == 8 else {})
    check_cut(model, checkpoint, random_cut(model.config, groups, **sizes), tokens, tmp_path / "child")


@EVERY_FAMILY
def test_any_hidden_size_unless_the_family_says_otherwise(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    cut = random_cut(model.config, 3, hidden=21)
    if not FAMILIES[model_type].hidden_is_multiple_of_heads:
        check_cut(model, checkpoint, cut, tokens, tmp_path / "child")
        return
    with pytest.raises(Exception, match="multiple"):
        reload(write(checkpoint, plan_of(model, cut), tmp_path / "child"))


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"qwen3"}))  # Qwen 3's heads are 128 wide unless stated
def test_heads_keep_their_size_when_the_config_does_not_state_it(model_type, tokens, tmp_path):
    model = tiny_model(model_type, head_dim=4)  # = hidden / heads, which transformers assumes
    model.save_pretrained(tmp_path / "parent")
    edit_config(tmp_path / "parent", head_dim=None)
    checkpoint = Checkpoint.open(tmp_path / "parent")
    assert "head_dim" not in checkpoint.config
    model = reload(tmp_path / "parent")
    cut = random_cut(model.config, 3, hidden=16, head=2, kv_head=1)  # 16 / 2 = 8 would be wrong
    check_cut(model, checkpoint, cut, tokens, tmp_path / "child")
    assert json.loads((tmp_path / "child" / "config.json").read_text())["head_dim"] == 4


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"mistral"}))  # Mistral's config must mention them
def test_multi_head_configs_that_do_not_mention_groups(model_type, tokens, tmp_path):
    tiny_model(model_type, num_key_value_heads=8).save_pretrained(tmp_path / "parent")
    raw = json.loads((tmp_path / "parent" / "config.json").read_text()) | {"num_key_value_heads": None}
    (tmp_path / "parent" / "config.json").write_text(json.dumps(raw))
    model = reload(tmp_path / "parent")
    cut = random_cut(model.config, 2, head=4, kv_head=4)
    check_cut(model, Checkpoint.open(tmp_path / "parent"), cut, tokens, tmp_path / "child")


def edit_config(directory: Path, **changes):
    """Set fields of a config.json; None removes one."""
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


@BOTH
@EVERY_FAMILY
def test_cutting_nothing_is_the_parent_bit_for_bit(parents, model_type, tied, tokens, tmp_path):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    plan = plan_of(model, Cut())
    assert not plan.kept
    directory = write(checkpoint, plan, tmp_path / "child")
    found, wanted = stored(directory), stored(checkpoint.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(logits_of(reload(directory), tokens), logits_of(model, tokens))


@pytest.mark.parametrize("cut", ["all", "all and groups"])
@BOTH
@EVERY_FAMILY
def test_streamed_is_in_memory_bit_for_bit(parents, model_type, tied, cut, tmp_path, monkeypatch):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    plan = plan_of(model, random_cut(model.config, 9, **CUTS[cut]))
    # blocks of at most three rows of the widest matrix, so that every matrix is cut in several pieces
    monkeypatch.setattr("minitron_cli.trim.trim.blocks.__defaults__", (3 * 64 * 4,))
    directory = write(checkpoint, plan, tmp_path / "child")
    in_memory = cut_in_memory(plan, checkpoint.tensors, checkpoint.read)
    streamed = stored(directory)
    assert streamed.keys() == in_memory.keys() == plan.child.tensors().keys()
    assert all(torch.equal(streamed[name], in_memory[name]) for name in streamed)


@EVERY_FAMILY
def test_a_live_models_state_is_cut_like_its_checkpoint(parents, model_type):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, random_cut(model.config, 9, **CUTS["all"]))
    from_disk = cut_in_memory(plan, checkpoint.tensors, checkpoint.read)
    state = model.state_dict()
    live = cut_in_memory(plan, state, state.__getitem__)
    assert live.keys() == from_disk.keys()
    assert all(torch.equal(live[name], from_disk[name]) for name in live)


@EVERY_FAMILY
def test_shards_hold_what_one_file_holds(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, random_cut(model.config, 4, **CUTS["all"]))
    whole = write(checkpoint, plan, tmp_path / "whole")
    tensors = cut_in_memory(plan, checkpoint.tensors, checkpoint.read)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_checkpoint(sharded, specs, lambda name: [tensors[name]], max_shard_bytes=12_000)
    (sharded / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 3
    assert not (sharded / "model.safetensors").exists()
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert torch.equal(logits_of(reload(sharded), tokens), logits_of(reload(whole), tokens))
    again = Checkpoint.open(sharded)
    assert all(torch.equal(again.read(name), tensors[name]) for name in tensors)


@EVERY_FAMILY
def test_a_sharded_parent_gives_the_same_child(parents, model_type, tmp_path):
    model, checkpoint = parents(model_type)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="16KB")
    shards = Checkpoint.open(tmp_path / "sharded")
    assert len({info.file for info in shards.tensors.values()}) > 3
    plan = plan_of(model, random_cut(model.config, 4, **CUTS["all"]))
    found = stored(write(shards, plan, tmp_path / "from_shards"))
    wanted = stored(write(checkpoint, plan, tmp_path / "from_whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@BOTH
@EVERY_FAMILY
def test_a_child_generates_the_same_with_and_without_cache(parents, model_type, tied, tokens, tmp_path):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    cut = random_cut(model.config, 8, **CUTS["all"])
    child = reload(write(checkpoint, plan_of(model, cut), tmp_path / "child"))
    same = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "attention_mask": torch.ones_like(tokens)}
    cached = child.generate(tokens, use_cache=True, **same)
    assert cached.shape == (3, 17 + 12)
    assert torch.equal(cached, child.generate(tokens, use_cache=False, **same))


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2, 3], [1, 3], [3]], ids=str)
@EVERY_FAMILY
def test_a_depth_cut_keeps_each_layers_kind(parents, model_type, kept, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    check_cut(model, checkpoint, Cut(layer=kept), tokens, tmp_path / "child")
    config = AutoConfig.from_pretrained(tmp_path / "child")
    assert config.num_hidden_layers == len(kept)
    kinds = getattr(model.config, "layer_types", None)
    assert getattr(config, "layer_types", None) == (kinds and [kinds[i] for i in kept])
    assert getattr(config, "sliding_window", None) == getattr(model.config, "sliding_window", None)
    # a reader without `layer_types` derives each layer's kind from the mark
    if kinds and "layer_types" in checkpoint.config:
        edit_config(tmp_path / "child", layer_types=None)
        assert AutoConfig.from_pretrained(tmp_path / "child").layer_types == [kinds[i] for i in kept]


@pytest.mark.parametrize("rope_type", ["default", "linear"])
@EVERY_FAMILY
def test_the_rope_base_is_written_for_readers_of_either_version(model_type, rope_type, tokens, tmp_path):
    rope = {"rope_type": rope_type, "rope_theta": 3e4} | ({"factor": 2.0} if rope_type == "linear" else {})
    model = tiny_model(model_type, rope_parameters=rope)
    model.save_pretrained(tmp_path / "parent")
    cut = random_cut(model.config, 1, hidden=16)
    check_cut(model, Checkpoint.open(tmp_path / "parent"), cut, tokens, tmp_path / "child")
    raw = json.loads((tmp_path / "child" / "config.json").read_text())
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 3e4
    assert raw.get("rope_scaling") == (None if rope_type == "default" else {"rope_type": "linear", "factor": 2.0})
    # an older writer knows neither `rope_parameters` nor `dtype`: without them the child is still the same model
    before = logits_of(reload(tmp_path / "child"), tokens)
    edit_config(tmp_path / "child", rope_parameters=None, dtype=None)
    assert torch.equal(logits_of(reload(tmp_path / "child"), tokens), before)


@EVERY_FAMILY
def test_a_child_config_changes_sizes_and_nothing_else(parents, model_type):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, random_cut(model.config, 1, **CUTS["all"]))
    child = child_config(checkpoint.config, plan)
    sizes = {"num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 6}
    assert {name: child[name] for name in sizes} == sizes
    lists = {"layer_types", "max_window_layers"}
    spelled = {"rope_theta", "torch_dtype", "transformers_version", "head_dim", "num_key_value_heads"}
    for name in (child.keys() | checkpoint.config.keys()) - sizes.keys() - lists - spelled:
        assert child[name] == checkpoint.config[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_child_has_its_parents_dtypes(dtype, tmp_path):
    model = tiny_model("llama").to(dtype)
    model.save_pretrained(tmp_path / "parent")
    directory = write(
        Checkpoint.open(tmp_path / "parent"), plan_of(model, random_cut(model.config, 1, ffn=20)), tmp_path / "child"
    )
    assert {t.dtype for t in stored(directory).values()} == {dtype}
    assert reload(directory).dtype == dtype


@EVERY_FAMILY
def test_layouts_agree_with_the_tensor_parallel_plan(model_type):
    """transformers says which matrices are split by rows and which by columns: those are the pruned axes."""
    family, config = FAMILIES[model_type], tiny_model(model_type).config
    inner, checked = {"head", "kv_head", "ffn"}, 0
    for pattern, style in config.base_model_tp_plan.items():
        layout = parse(family.tensors[f"model.{pattern.replace('*', '{layer}')}.weight"]) if "proj" in pattern else None
        if layout and style.startswith(("colwise", "rowwise")):
            split, whole = (0, 1) if style.startswith("colwise") else (1, 0)
            assert layout.axes(split) & inner
            assert layout.axes(whole) == {"hidden"}
            checked += 1
    assert checked == 7


@EVERY_FAMILY
def test_links_name_every_reader_of_a_norm(parents, model_type):
    """Scaling a norm's weight up and its readers' columns down leaves the logits alone; so no reader is left out."""
    model, checkpoint = parents(model_type)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    before = logits_of(model, torch.arange(1, 20)[None])
    for norm, readers in FAMILIES[model_type].links.items():
        for layer in range(4 if "{layer}" in norm else 1):
            tensors[norm.format(layer=layer)] *= 2
            for reader in readers:
                tensors[reader.format(layer=layer)] /= 2
    other = tiny_model(model_type, rms_norm_eps=0.02)
    other.load_state_dict(tensors)
    assert_same(logits_of(other, torch.arange(1, 20)[None]), before)
