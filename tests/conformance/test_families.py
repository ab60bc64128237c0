"""Every registered family against transformers: a pruned child computes what its masked parent computes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_cli import io
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.writer import TensorSpec, write_checkpoint
from minitron_cli.errors import InputError
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from minitron_cli.model.taps import layer_module
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.prune.stream import prune_in_memory, write_child
from minitron_cli.search import space
from tests.anatomy import ANATOMY, anatomy
from tests.by_table import opened
from tests.conformance.masked import Survivors, masked, random_survivors
from tests.quick import APART, case_of, each_family, every_family, first_quick, quick_families, slow
from tests.tiny import FAMILY_OPTIONS, tiny_config, tiny_model

# transformers divides hidden by heads, and refuses a remainder
MULTIPLES = ("arcee", "cwm", "deepseek_v2", "gemma2", "gemma3_text", "jais2", "llama", "vaultgemma")
# They take heads of 128 or 256 unless told, fail on a null, or cannot be told
HEAD_SIZE_IS_STATED = {
    "cwm",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5",
    "ernie4_5_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe_lite",
    "gpt_neox",
    "gpt_oss",
    "hunyuan_v1_dense",
    "llama4_text",
    "mellum",
    "minimax_m2",
    "ministral",
    "ministral3",
    "qwen3",
    "nemotron_h",
    "qwen3_5_text",
    "qwen3_next",
    "seed_oss",
    "vaultgemma",
}
# Any layer may be of either kind: without the list, transformers takes one layer in four, in two or none to be full
ONLY_LISTED = {
    "cohere2",
    "cwm",
    "exaone4",
    "granitemoehybrid",
    "llama4_text",
    "mellum",
    "ministral",
    "olmo3",
    "qwen2_moe",
    "qwen3_5_text",
    "qwen3_next",
    "vaultgemma",
}
WITHOUT_PLAN = {
    "bamba",
    "falcon_h1",
    "gpt_oss",
    "granitemoe",
    "granitemoehybrid",
    "hunyuan_v1_dense",
    "jamba",
    "lfm2",
    "nemotron_h",
    "phimoe",
}
"""Families for which transformers has no plan to split matrices over devices, or one of experts alone."""
UNPLANNED = {
    "deepseek_v2": ("q_a_proj", "kv_a_proj"),
    "deepseek_v3": ("",),
    "glm4_moe_lite": ("q_proj", "q_a_proj", "kv_a_proj"),
}
"""Start of the names in attention for which transformers has no such plan; it copies latents."""
ONE_ROW = {"qwen2_moe", "qwen3_next"}
QUOTIENTS = {
    name: next(iter(family.quotients.values()))[0].replace(" ", " x ")
    for name, family in FAMILIES.items()
    if family.quotients
}
"""Family -> product whose quotient by hidden its config states."""
NORMED_OVER_HEADS = ("flex_olmo", "minimax_m2", "olmo2", "olmo3", "olmoe")
DIVIDED = (*MULTIPLES, *QUOTIENTS)
"""Families of whose hidden sizes transformers asks more than that they suit products of experts."""
MIXTURES = sorted(model_type for model_type, parts in ANATOMY.items() if parts.experts)
KINDS = sorted(name for name, family in FAMILIES.items() if len(set(family.of_model(tiny_config(name)).layers)) > 1)
"""Families whose tiny models have layers that hold different tensors."""
PATTERNED = sorted(model_type for model_type, parts in ANATOMY.items() if parts.pattern)

# Axis sizes of the children. 24 is a multiple of 6 and of 8, which Llama asks of hidden sizes; GPT-NeoX asks hidden
# and heads to shrink alike, Gemma's and SmolLM's depth to shrink by twos here, OLMo's heads not to shrink.
PRUNINGS = {
    "ffn": {"ffn": 20},
    "heads": {"head": 4},
    "groups": {"head": 4, "kv_head": 1},
    "hidden": {"hidden": 24},
    "depth": {"layer": 3},
    "all": {"layer": 3, "hidden": 24, "ffn": 20, "head": 6},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 47, "head": 4, "kv_head": 1},
}
BY_TWOS = {"depth": {"layer": 2}, "all": {"layer": 2, "hidden": 24, "ffn": 20, "head": 6}}
BY_EIGHTS = {
    "ffn": {"ffn": 16},
    "all": {"layer": 3, "hidden": 24, "ffn": 16, "head": 6},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 40, "head": 4, "kv_head": 1},
}
NO_HEADS = {
    "heads": {},
    "groups": {},
    "all": {"layer": 3, "hidden": 24, "ffn": 20},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 47},
}
BY_EIGHTS_NO_HEADS = {
    "ffn": {"ffn": 16},
    "all": {"layer": 3, "hidden": 24, "ffn": 16},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 40},
}
NO_HIDDEN = {
    "hidden": {},
    "all": {"layer": 3, "ffn": 20, "head": 6},
    "all and groups": {"layer": 2, "ffn": 47, "head": 4, "kv_head": 1},
}
LATENT = {
    "groups": {"q_rank": 15, "kv_rank": 10},
    "all": {"layer": 3, "hidden": 24, "ffn": 16, "head": 6, "q_rank": 20},
    "all and groups": {"layer": 2, "hidden": 16, "ffn": 40, "head": 4, "q_rank": 16, "kv_rank": 12, "expert": 4},
}
THREE_KINDS = {"all and groups": {"layer": 3, "hidden": 16, "ffn": 47, "head": 4, "kv_head": 1}}
OTHERWISE: dict[str, dict[str, dict[str, int]]] = {
    "deepseek_v2": BY_EIGHTS | LATENT,
    "deepseek_v3": BY_EIGHTS | LATENT,
    "ernie4_5_moe": BY_EIGHTS,
    "glm4_moe": BY_EIGHTS,
    "glm4_moe_lite": BY_EIGHTS | LATENT,
    "lfm2": NO_HIDDEN,
    "cohere2": BY_TWOS,
    "nemotron_h": THREE_KINDS,
    "gemma2": BY_TWOS,
    "gemma3_text": BY_TWOS,
    "smollm3": BY_TWOS,
    "jamba": BY_EIGHTS | {"depth": {"layer": 2}, "all": {"layer": 2, "hidden": 24, "ffn": 16, "head": 6}},
    "mixtral": BY_EIGHTS,
    "granitemoe": BY_EIGHTS,
    "gpt_oss": BY_EIGHTS | {"depth": {"layer": 2}, "all": {"layer": 2, "hidden": 24, "ffn": 16, "head": 6}},
    "qwen3_moe": BY_EIGHTS,
    "qwen3_next": BY_EIGHTS,
    "flex_olmo": NO_HEADS | BY_EIGHTS_NO_HEADS,
    "mellum": BY_EIGHTS,
    "qwen2_moe": BY_EIGHTS,
    "minimax_m2": NO_HEADS | BY_EIGHTS_NO_HEADS,
    "phimoe": BY_EIGHTS,
    "olmo2": NO_HEADS,
    "olmoe": NO_HEADS
    | BY_EIGHTS_NO_HEADS
    | {"hidden": {}, "all": {"layer": 3, "ffn": 16}, "all and groups": {"layer": 2, "ffn": 40}},
    "olmo3": NO_HEADS,
    "gpt_neox": {
        "heads": {"head": 4, "hidden": 16},
        "groups": {},
        "hidden": {"head": 6, "hidden": 24},
        "all and groups": {"layer": 2, "hidden": 16, "ffn": 47, "head": 4},
    },
}
# What each family cannot take, and words of the reason.
REFUSED: list[tuple[str, dict[str, int], str]] = [
    *((model_type, {"hidden": 21}, "where hidden is a multiple of head; change one") for model_type in MULTIPLES),
    *((model_type, {"head": 6}, "where hidden is a multiple of head; change one") for model_type in MULTIPLES),
    *(
        (name, {"hidden": 21}, f"hidden=21: .* has 96 = {product}.*keep a divisor")
        for name, product in QUOTIENTS.items()
    ),
    *(
        (name, {"mamba_head": 6}, f"hidden=32: .* has 48 = {product}")
        for name, product in QUOTIENTS.items()
        if "mamba_head" in FAMILIES[name].sizes
    ),
    *((model_type, {"layer": 3}, "repeat every 2.*drop a multiple of 2 of the 4 layers") for model_type in PATTERNED),
    *((name, {"head": 4}, "q_norm takes the mean over all heads.*keep head=8") for name in NORMED_OVER_HEADS),
    *((name, {"head": 4, "kv_head": 1}, "q_norm takes the mean") for name in NORMED_OVER_HEADS),
    ("olmoe", {"hidden": 16}, "hidden=16: q_norm over all heads has hidden as its length.*keep hidden=32"),
    ("deepseek_v2", {"kv_rank": 11}, "kv_rank=11: transformers computes a deepseek_v2 model with multiples of 2 only"),
    ("gpt_neox", {"head": 4}, "hidden / head, which must stay 4; prune both by the same factor"),
    ("gpt_neox", {"hidden": 16}, "hidden=16 with head=8.*prune both by the same factor"),
    ("gpt_neox", {"hidden": 28, "head": 6}, "must stay 4"),
    *(
        (model_type, {"ffn": 44}, "ffn=44: .* in groups.*; keep a multiple of 8")
        for model_type in MIXTURES
        if "ffn" not in FAMILIES[model_type].not_prunable and FAMILIES[model_type].width_multiple > 1
    ),
    *(
        (model_type, {axis: size}, f"{axis}={size}: .*; keep {axis}=.* and prune another axis")
        for model_type, family in FAMILIES.items()
        for axis, size in (("ffn", 16), ("hidden", 16))
        if axis in family.not_prunable
    ),
    *((model_type, {"layer": 1}, "layer=1: no .* layer would be left.*at least one of each") for model_type in KINDS),
    *(
        (name, {"hidden": 28}, "hidden=28: .* in groups.*; keep a multiple of 8")
        for name in MIXTURES
        if "hidden" not in FAMILIES[name].not_prunable and FAMILIES[name].width_multiple > 1 and name not in DIVIDED
    ),
    *((model_type, {"expert": 1}, "expert=1: every token uses 2 of them; keep at least 2") for model_type in MIXTURES),
]


def pruned_sizes(model_type: str, pruning: str) -> dict[str, int]:
    return OTHERWISE.get(model_type, {}).get(pruning, PRUNINGS[pruning])


def prunings_of(model_type: str) -> list[str]:
    return [pruning for pruning in PRUNINGS if pruned_sizes(model_type, pruning)]


TIED = (False, True)
each_tied = pytest.mark.parametrize("tied", first_quick(TIED), ids=["untied", "tied"])


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """(model_type, options) -> the model and the checkpoint that transformers wrote of it."""
    known = {}

    def get(model_type, **options):
        key = (model_type, *sorted(options.items()))
        if key not in known:
            path = tmp_path_factory.mktemp("parent")
            field = anatomy(model_type).epsilon
            epsilon = {field: 0.02} if field else {}  # large enough for a mistake in it to show
            model = tiny_model(model_type, **epsilon, **options)
            model.save_pretrained(path)
            known[key] = (model, opened(path))
        return known[key]

    return get


class Preferring:
    """Random scores under which exactly the given survivors rank first."""

    def __init__(self, pruning: Survivors, sizes, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.pruning, self.sizes = pruning, sizes

    def select(self, axis, metric):
        return self.prefer(getattr(self.pruning, axis), self.sizes[axis])

    def layers(self, metric):
        return self.prefer(self.pruning.layer, self.sizes["layer"])

    def prefer(self, kept, size):
        if isinstance(kept[0], list):
            return torch.stack([self.prefer(one, size) for one in kept])
        score = torch.rand(size, generator=self.generator)
        score[kept] += 10
        return score


def shape_of(model):
    return Shape.of(family_of(model.config), model.config)


def plan_of(model, pruning: Survivors, *, keeps_pattern: bool = True) -> PrunePlan:
    """Layers by name, because of a Gemma the ranking drops aligned pairs only."""
    parent = shape_of(model) if keeps_pattern else replace(shape_of(model), kinds=())
    dropped = set(range(parent.sizes["layer"])) - set(pruning.layer or range(parent.sizes["layer"]))
    scores = Preferring(pruning, parent.sizes)
    return make_plan(parent, parent.resize(**pruning.sizes), scores, Ranking(), tuple(sorted(dropped)))


def some_survivors(model, seed, pruning):
    """Random survivors, but of layers of different kinds some that keep the pattern and every kind."""
    config = model.config
    sizes = pruned_sizes(config.model_type, pruning)
    survivors = random_survivors(config, seed, **sizes)
    if "layer" not in sizes or not (anatomy(config.model_type).pattern or shape_of(model).family.layers):
        return survivors
    return replace(survivors, layer=[0, 3] if sizes["layer"] == 2 else [0, 1, 3])


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


def assert_equal(found, wanted, model_type):
    """Bit for bit, but where experts are multiplied by instructions that depend on a matrix's place in memory."""
    if model_type in MIXTURES:
        assert_same(found, wanted)
    else:
        assert torch.equal(found, wanted)


def check_child(model, checkpoint, pruning, tokens, directory, *, keeps_pattern=True):
    plan = plan_of(model, pruning, keeps_pattern=keeps_pattern)
    child = reload(write(checkpoint, plan, directory))
    assert_same(logits_of(child, tokens), logits_of(masked(model, pruning), tokens))
    assert unique_parameters(child) == plan.child.parameters()
    assert {name: tuple(t.shape) for name, t in stored(directory).items()} == plan.child.tensors()
    return child, plan


def unique_parameters(model):
    return sum(p.numel() for p in model.parameters())


def stored(directory):
    checkpoint = opened(directory)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def test_each_family_has_a_tiny_model():
    assert set(FAMILIES) == set(FAMILY_OPTIONS), "add the new family's options to tests/tiny.py: FAMILY_OPTIONS"


@each_family()
def test_nothing_in_a_tiny_parent_is_left_at_its_default(parents, model_type, tokens):
    for tied in TIED:
        model, _ = parents(model_type, tie_word_embeddings=tied)
        assert [name for name, p in model.named_parameters() if p.numel() > 1 and not p.std() > 0.1] == [], f"{tied=}"
        assert logits_of(model, tokens).std() > 1, f"{tied=}"


@every_family()
def test_every_tensor_of_a_parent_is_known_and_counted(parents, model_type, subtests):
    for tied in TIED:
        with subtests.test(tied=tied):
            check_counts(*parents(model_type, tie_word_embeddings=tied))


def check_counts(model, checkpoint):
    shape = shape_of(model)
    assert shape.tensors() == checkpoint.shapes
    shape.check(checkpoint.shapes)
    assert shape.parameters() == unique_parameters(model)
    both = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings = {id(p): p.numel() for module in both for p in module.parameters()}
    assert shape.parameters("non_embedding") == unique_parameters(model) - sum(embeddings.values())


@each_tied
@each_family()
def test_a_child_computes_what_its_masked_parent_computes(parents, model_type, tied, tokens, tmp_path, subtests):
    for pruning in prunings_of(model_type):
        with subtests.test(pruning=pruning):
            model, checkpoint = parents(model_type, tie_word_embeddings=tied)
            survivors = some_survivors(model, len(pruning), pruning)
            check_child(model, checkpoint, survivors, tokens, tmp_path / pruning)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(APART))
def test_all_axes_together_in_the_families_of_the_whole_matrix(parents, model_type, tokens, tmp_path):
    """What `make test` keeps of the test above; `make conformance` runs all of it."""
    model, checkpoint = parents(model_type)
    check_child(model, checkpoint, some_survivors(model, 5, "all and groups"), tokens, tmp_path / "child")


@pytest.mark.parametrize(("model_type", "sizes", "reason"), REFUSED)
def test_what_a_family_cannot_take_is_refused_with_the_reason(parents, model_type, sizes, reason):
    parent = shape_of(parents(model_type)[0])
    with pytest.raises(InputError, match=reason):
        make_plan(parent, parent.resize(**sizes), Preferring(Survivors(), parent.sizes), Ranking())
    with pytest.raises(InputError, match=reason):
        space.named(parent, sizes)
    assert space.grid(parent, {axis: (size,) for axis, size in sizes.items()}) == []


@pytest.mark.parametrize("groups", [1, 8], ids=["multi-query", "multi-head"])
@each_family(sorted(FAMILIES.keys() - {"gpt_neox", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", *NORMED_OVER_HEADS}))
def test_the_limits_of_grouped_attention(parents, model_type, groups, tokens, tmp_path):
    model, checkpoint = parents(model_type, num_key_value_heads=groups)
    sizes = {"head": 4} | ({"kv_head": 4} if groups == 8 else {})
    check_child(model, checkpoint, random_survivors(model.config, groups, **sizes), tokens, tmp_path / "child")


@each_family(
    sorted(name for name, family in FAMILIES.items() if "hidden" not in family.not_prunable and name != "gpt_neox")
)
def test_any_hidden_size_unless_the_family_says_otherwise(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    pruning = random_survivors(model.config, 3, hidden=21)
    if FAMILIES[model_type].width_multiple > 1 and model_type not in DIVIDED:
        plan = PrunePlan(shape_of(model), {"hidden": torch.tensor(pruning.hidden)})  # past our own refusal
        child = reload(write(checkpoint, plan, tmp_path / "child"))
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            logits_of(child, tokens)
        return
    if model_type not in DIVIDED:
        check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
        return
    plan = PrunePlan(shape_of(model), {"hidden": torch.tensor(pruning.hidden)})  # past our own refusal
    with pytest.raises(Exception, match=r"multiple|must divide|do not match|mismatched_sizes"):
        reload(write(checkpoint, plan, tmp_path / "child"))


@pytest.mark.slow
@each_family(sorted(t for t in FAMILIES.keys() - HEAD_SIZE_IS_STATED if "hidden" not in FAMILIES[t].not_prunable))
def test_heads_keep_their_size_when_the_config_does_not_state_it(model_type, tokens, tmp_path):
    model = tiny_model(model_type, head_dim=4)  # = hidden / heads, which transformers assumes
    model.save_pretrained(tmp_path / "parent")
    edit_config(tmp_path / "parent", head_dim=None)
    checkpoint = opened(tmp_path / "parent")
    assert "head_dim" not in checkpoint.config
    model = reload(tmp_path / "parent")
    heads = {} if model_type in NORMED_OVER_HEADS else {"head": 2, "kv_head": 1}
    hidden = {} if "hidden" in FAMILIES[model_type].not_prunable else {"hidden": 16}
    pruning = random_survivors(model.config, 3, **hidden, **heads)  # 16 / 2 = 8, or 16 / 8 = 2, would be wrong
    check_child(model, checkpoint, pruning, tokens, tmp_path / "child")
    assert json.loads((tmp_path / "child" / "config.json").read_text())["head_dim"] == 4


# The others' configs must mention them
@each_family(["granite", "llama", "phi3", "qwen2", "qwen3", "smollm3"])
def test_multi_head_configs_that_do_not_mention_groups(model_type, tokens, tmp_path):
    tiny_model(model_type, num_key_value_heads=8).save_pretrained(tmp_path / "parent")
    raw = json.loads((tmp_path / "parent" / "config.json").read_text()) | {"num_key_value_heads": None}
    (tmp_path / "parent" / "config.json").write_text(json.dumps(raw))
    model = reload(tmp_path / "parent")
    pruning = random_survivors(model.config, 2, head=4, kv_head=4)
    check_child(model, opened(tmp_path / "parent"), pruning, tokens, tmp_path / "child")


def edit_config(directory: Path, **changes):
    """Set fields of a config.json; None removes one."""
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


@each_family()
def test_pruning_nothing_is_the_parent_bit_for_bit(parents, model_type, tokens, tmp_path, subtests):
    for tied in TIED:
        with subtests.test(tied=tied):
            check_nothing_pruned(*parents(model_type, tie_word_embeddings=tied), tokens, tmp_path / f"{tied=}")


def check_nothing_pruned(model, checkpoint, tokens, directory):
    plan = plan_of(model, Survivors())
    assert not plan.kept
    write(checkpoint, plan, directory)
    found, wanted = stored(directory), stored(checkpoint.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert_equal(logits_of(reload(directory), tokens), logits_of(model, tokens), model.config.model_type)


@each_family()
def test_streamed_is_in_memory_bit_for_bit(parents, model_type, tmp_path, monkeypatch, subtests):
    # blocks of at most three rows of the widest matrix, so that every matrix is written in several pieces
    monkeypatch.setattr("minitron_cli.prune.stream.blocks.__defaults__", (3 * 64 * 4,))
    for tied, pruning in itertools.product(TIED, ["all", "all and groups"]):
        with subtests.test(tied=tied, pruning=pruning):
            model, checkpoint = parents(model_type, tie_word_embeddings=tied)
            plan = plan_of(model, some_survivors(model, 9, pruning))
            check_streamed(checkpoint, plan, tmp_path / f"{pruning}, {tied=}")


def check_streamed(checkpoint, plan, directory):
    streamed = stored(write(checkpoint, plan, directory))
    in_memory = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    assert streamed.keys() == in_memory.keys() == plan.child.tensors().keys()
    assert all(torch.equal(streamed[name], in_memory[name]) for name in streamed)


@every_family()
def test_a_loaded_models_state_is_pruned_like_its_checkpoint(parents, model_type):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, some_survivors(model, 9, "all"))
    from_disk = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    state = hf.stored_tensors(model, shape_of(model).tensors())
    live = prune_in_memory(plan, state, state.__getitem__)
    assert live.keys() == from_disk.keys()
    assert all(torch.equal(live[name], from_disk[name]) for name in live)


@each_family()
def test_shards_hold_what_one_file_holds(parents, model_type, tokens, tmp_path):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, some_survivors(model, 4, "all"))
    whole = write(checkpoint, plan, tmp_path / "whole")
    tensors = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_checkpoint(sharded, specs, lambda name: [tensors[name]], max_shard_bytes=12_000)
    (sharded / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 3
    assert not (sharded / "model.safetensors").exists()
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert_equal(logits_of(reload(sharded), tokens), logits_of(reload(whole), tokens), model_type)
    again = opened(sharded)
    assert all(torch.equal(again.read(name), tensors[name]) for name in tensors)


@each_family()
def test_a_sharded_parent_gives_the_same_child(parents, model_type, tmp_path):
    model, checkpoint = parents(model_type)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="16KB")
    shards = opened(tmp_path / "sharded")
    assert len({info.file for info in shards.tensors.values()}) > 3
    plan = plan_of(model, some_survivors(model, 4, "all"))
    found = stored(write(shards, plan, tmp_path / "from_shards"))
    wanted = stored(write(checkpoint, plan, tmp_path / "from_whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@each_tied
@each_family()
def test_a_child_generates_the_same_with_and_without_cache(parents, model_type, tied, tokens, tmp_path):
    model, checkpoint = parents(model_type, tie_word_embeddings=tied)
    plan = plan_of(model, some_survivors(model, 8, "all"))
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    same = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "attention_mask": torch.ones_like(tokens)}
    cached = child.generate(tokens, use_cache=True, **same)
    assert cached.shape == (3, 17 + 12)
    assert torch.equal(cached, child.generate(tokens, use_cache=False, **same))


@pytest.mark.parametrize("kept", first_quick([[0, 2, 3], [2, 3], [0, 1, 2], [1, 3], [3]], 2), ids=str)
@each_family()
def test_dropping_layers_keeps_each_layers_kind(parents, model_type, kept, tokens, tmp_path):
    (model, checkpoint), directory = parents(model_type), tmp_path / "child"
    held = shape_of(model).family.layers
    if {held[i] for i in kept if held} != set(held):
        with pytest.raises(InputError, match=r"no \w+( \w+)* layer would be left.*keep at least one of each"):
            plan_of(model, Survivors(layer=kept))
        return
    if FAMILIES[model_type].is_periodic and kept == [0, 2, 3]:
        with pytest.raises(InputError, match=r"as a repeating pattern, which the kept layers do not follow"):
            plan_of(model, Survivors(layer=kept))
        return
    pattern = getattr(model.config, anatomy(model_type).pattern or "none", [])
    keeps_pattern = [pattern[i] for i in kept if pattern] == pattern[: len(kept)]
    if not keeps_pattern:  # transformers reads the list all the same, so the user may ask for it
        with pytest.raises(
            InputError,
            match=r"kinds that repeat every 2.*drop whole periods, such as layers 0 to 1.*--serving-lint warn",
        ):
            plan_of(model, Survivors(layer=kept))
    check_child(model, checkpoint, Survivors(layer=kept), tokens, directory, keeps_pattern=keeps_pattern)
    config = AutoConfig.from_pretrained(directory)
    assert config.num_hidden_layers == len(kept)
    raw = json.loads((directory / "config.json").read_text())
    assert [name for name, value in raw.items() if isinstance(value, list) and len(value) == 4] == []
    kinds = getattr(model.config, "layer_types", None)
    assert getattr(config, "layer_types", None) == (kinds and [kinds[i] for i in kept])
    assert getattr(config, "sliding_window", None) == getattr(model.config, "sliding_window", None)
    # a reader without the lists derives each layer's kind from the mark or the pattern
    if kinds and keeps_pattern and "layer_types" in checkpoint.config and model_type not in ONLY_LISTED:
        edit_config(directory, layer_types=None, no_rope_layers=None)
        assert AutoConfig.from_pretrained(directory).layer_types == [kinds[i] for i in kept]


def test_a_gemma_loses_the_least_important_pair_of_layers(parents, tokens, tmp_path):
    class Scores:
        def layers(self, metric):
            return torch.tensor([9.0, 1.0, 2.0, 3.0])  # layer 1 is the least, layers 2 and 3 are the least pair

    model, checkpoint = parents("gemma2")
    parent = shape_of(model)
    plan = make_plan(parent, parent.resize(layer=2), Scores(), Ranking())
    assert plan.at("layer").tolist() == [0, 1]
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    assert_same(logits_of(child, tokens), logits_of(masked(model, Survivors(layer=[0, 1])), tokens))


# Version 4 has no such model type, and without rotary parameters version 5 takes other scaled ones
UNKNOWN_TO_4 = {"cwm", "mellum", "ministral3"}


PARTLY_ROTATED = (
    "bamba",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_neox",
    "minimax_m2",
    "nemotron",
    "phi3",
    "qwen3_5_text",
    "qwen3_next",
)
SCALED_UNLESS_TOLD = {"apertus", "gpt_oss"}  # both versions scale its positions where no other scaling is given
LONG_ROPE_ONLY = {"phi3", "phimoe"}  # transformers gives them another scaling, tested below


def rope_of(model_type, rope_type):
    """Rotary parameters that are no family's default, and what a config of version 4 calls them."""
    scaling = {"rope_type": "linear", "factor": 2.0} if rope_type == "linear" else {"rope_type": "default"}
    part = {} if model_type not in PARTLY_ROTATED else {"partial_rotary_factor": 0.5 if model_type == "bamba" else 0.25}
    new, old = scaling | {"rope_theta": 3e4} | part, {"rope_theta": 3e4} | part
    if model_type == "gpt_neox":
        old = {"rotary_emb_base": 3e4, "rotary_pct": 0.25}
    if model_type == "olmo3":  # version 5 takes this base for windows where none is given
        new = {"full_attention": new, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}
    if model_type == "gemma3_text":
        new = {"full_attention": new, "sliding_attention": {"rope_type": "default", "rope_theta": 700.0}}
        old |= {"rope_local_base_freq": 700.0}
    if model_type == "olmo2" and rope_type == "linear":
        scaling = {"type": "linear", "factor": 2.0}
    return new, old | ({} if rope_type == "default" else {"rope_scaling": scaling})


@pytest.mark.parametrize(
    ("model_type", "rope_type"),
    [
        *quick_families((name, "linear") for name in sorted(FAMILIES.keys() - UNKNOWN_TO_4 - LONG_ROPE_ONLY)),
        *(slow(name, "default") for name in sorted(FAMILIES.keys() - APART)),
        *(case_of(name, "default") for name in sorted(APART - UNKNOWN_TO_4 - SCALED_UNLESS_TOLD)),
    ],
)
def test_the_rope_base_is_written_for_readers_of_either_version(model_type, rope_type, tokens, tmp_path):
    rope, old = rope_of(model_type, rope_type)
    epsilon = {"rms_norm_eps": 0.02} if model_type in ONE_ROW else {}  # for which rounding is smaller
    model = tiny_model(model_type, rope_parameters=rope, **epsilon)
    model.save_pretrained(tmp_path / "parent")
    check_old_rope(model, old, tokens, tmp_path)


def check_old_rope(model, old, tokens, tmp_path):
    """The child says `old` too, and to a writer that knows no other spelling it is still the same model."""
    model_type = model.config.model_type
    heads = {"head": 4} if model_type == "gpt_neox" else {}
    sizes = {"ffn": 16} if "hidden" in FAMILIES[model_type].not_prunable else {"hidden": 16} | heads
    pruning = random_survivors(model.config, 1, **sizes)
    check_child(model, opened(tmp_path / "parent"), pruning, tokens, tmp_path / "child")
    raw = json.loads((tmp_path / "child" / "config.json").read_text())
    names = {"rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct", "rope_local_base_freq"}
    assert {name: raw[name] for name in {*names, *old} & raw.keys()} == old
    before = logits_of(reload(tmp_path / "child"), tokens)
    edit_config(tmp_path / "child", rope_parameters=None, dtype=None)
    assert_equal(logits_of(reload(tmp_path / "child"), tokens), before, model_type)


class TestLongRope:
    """Phi 3's tables of factors, one for each pair of rotated features of a head."""

    @pytest.fixture
    def model(self, tmp_path):
        tables = {"short_factor": [1.1, 1.7], "long_factor": [2.0, 5.0]}
        options = {"rope_type": "longrope", "rope_theta": 3e4, **tables}
        model = tiny_model("phi3", head_dim=4, rope_parameters=options, original_max_position_embeddings=9)
        model.save_pretrained(tmp_path / "parent")
        return model

    def test_version_4_wants_these_three_fields(self, model, tokens, tmp_path):
        pruning = random_survivors(model.config, 1, hidden=16, head=4)
        check_child(model, opened(tmp_path / "parent"), pruning, tokens, tmp_path / "child")
        raw = json.loads((tmp_path / "child" / "config.json").read_text())
        tables = {"short_factor": [1.1, 1.7], "long_factor": [2.0, 5.0]}
        assert raw["rope_scaling"] == {"type": "longrope"} | tables
        assert raw["rope_theta"] == 3e4
        before = logits_of(reload(tmp_path / "child"), tokens)
        edit_config(tmp_path / "child", rope_parameters=None)
        assert torch.equal(logits_of(reload(tmp_path / "child"), tokens), before)

    @pytest.mark.parametrize("sizes", [{"hidden": 16}, {"head": 4}, {"hidden": 24, "head": 4}], ids=str)
    def test_the_tables_must_keep_their_length(self, model, sizes):
        parent = shape_of(model)
        with pytest.raises(InputError, match="hidden / head, which must stay 4; prune both by the same factor"):
            make_plan(parent, parent.resize(**sizes), Preferring(Survivors(), parent.sizes), Ranking())

    def test_transformers_says_so_too(self, model, tmp_path):
        plan = PrunePlan(shape_of(model), {"hidden": torch.arange(16)})
        with pytest.raises(Exception, match="short_factor field must have length 1"):
            reload(write(opened(tmp_path / "parent"), plan, tmp_path / "child"))


def test_scaled_positions_of_a_phimoe_do_not_depend_on_a_pruned_size(tokens, tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 3e4, "short_factor": [1.1] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    rope |= {"short_mscale": 1.2, "long_mscale": 1.3, "original_max_position_embeddings": 9}
    tiny_model("phimoe", rope_parameters=rope).save_pretrained(tmp_path / "parent")
    model = reload(tmp_path / "parent")
    pruning = random_survivors(model.config, 1, hidden=16, head=4)
    check_child(model, opened(tmp_path / "parent"), pruning, tokens, tmp_path / "child")
    raw = json.loads((tmp_path / "child" / "config.json").read_text())
    assert raw["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}


SIZED = ("layer", "hidden", "ffn", "head", "expert", "q_rank", "kv_rank")


@every_family()
def test_a_child_config_changes_sizes_and_nothing_else(parents, model_type):
    model, checkpoint = parents(model_type)
    plan = plan_of(model, some_survivors(model, 1, "all"))
    child = child_config(checkpoint.config, plan)
    family = FAMILIES[model_type]
    fields = {family.sizes[axis]: axis for axis in SIZED if axis in family.sizes}
    assert {name: child[name] for name in fields} == {name: plan.child.sizes[axis] for name, axis in fields.items()}
    lists = {"max_window_layers", *family.layer_lists}
    older = {
        "torch_dtype",
        "transformers_version",
        "head_dim",
        "num_key_value_heads",
        *rope_of(model_type, "")[1],
    }
    older |= {*family.config_aliases.keys(), *family.config_aliases.values(), *family.child_fields}
    older |= {name for rule in family.layer_kinds for name in rule.write(rule.read(model.config)) or ()}
    older |= family.quotients.keys()
    for name in (child.keys() | checkpoint.config.keys()) - fields.keys() - lists - older:
        assert child[name] == checkpoint.config[name], name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_child_has_its_parents_dtypes(dtype, tmp_path):
    model = tiny_model("llama").to(dtype)
    model.save_pretrained(tmp_path / "parent")
    directory = write(
        opened(tmp_path / "parent"),
        plan_of(model, random_survivors(model.config, 1, ffn=20)),
        tmp_path / "child",
    )
    assert {t.dtype for t in stored(directory).values()} == {dtype}
    assert reload(directory).dtype == dtype


@every_family(sorted(FAMILIES.keys() - WITHOUT_PLAN))
def test_layouts_agree_with_the_tensor_parallel_plan(model_type):
    """transformers says which matrices are split by rows and which by columns: those are the pruned axes."""
    family, config = FAMILIES[model_type], tiny_config(model_type)
    inner, checked = {"head", "kv_head", "ffn", "dense_ffn", "shared_ffn", "own_ffn"}, set()
    for pattern, style in config.base_model_tp_plan.items():
        name = f"{anatomy(model_type).decoder}.{pattern.replace('*', '{layer}')}.weight"
        is_joined = anatomy(model_type).experts and "expert" in name
        if style.startswith(("colwise", "rowwise")) and not is_joined and ".linear_attn." not in name:
            layout = parse(family.tensors[name])
            split, whole = (0, 1) if style.startswith("colwise") else (1, 0)
            assert layout.axes(split) & inner
            assert layout.axes(whole) in ({"hidden"}, {"q_rank"}, {"kv_rank"})
            checked.add(name)
    of_layers = (t for t in family.tensors if "{layer}" in t and ".linear_attn." not in t)  # those are not split
    matrices = {t for t in of_layers if len(parse(family.tensors[t]).dims) == 2}
    unplanned = tuple(f"{layer_module(family)}.self_attn.{name}" for name in UNPLANNED.get(model_type, ()))
    wanted = {t for t in matrices if "expert" not in family.tensors[t] and "expert" not in t}
    assert checked == {t for t in wanted if not t.startswith(unplanned)}


@each_family()
def test_links_name_every_reader_of_a_norm(parents, model_type, tmp_path):
    """Scaling a norm's gain up and its readers' columns down leaves the logits alone; so no reader is left out."""
    model, checkpoint = parents(model_type, tie_word_embeddings=False)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    templates = {name: FAMILIES[model_type].match(name).template for name in tensors}
    offset = anatomy(model_type).norm_offset
    for norm, readers in FAMILIES[model_type].links.items():
        for name, template in templates.items():
            if template == norm:
                tensors[name] = (tensors[name] + offset) * 2 - offset
            elif template == norm.replace(".weight", ".bias"):
                tensors[name] *= 2
            elif template in readers:
                tensors[name] /= 2
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_checkpoint(tmp_path, specs, lambda name: [tensors[name]])
    io.write_new_json(tmp_path / "config.json", dict(checkpoint.config))
    tokens = torch.arange(1, 20)[None]
    assert_same(logits_of(reload(tmp_path), tokens), logits_of(model, tokens))


@every_family()
def test_a_table_says_what_its_norms_do(model_type):
    """A layer norm takes a constant away; and of a gain of zero nothing is left."""
    family, model = FAMILIES[model_type], tiny_model(model_type)
    norm = model.get_submodule(f"{anatomy(model_type).decoder}.{anatomy(model_type).final_norm}")
    noise = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        is_layer_norm = torch.allclose(norm(noise), norm(noise + 5), atol=1e-4)
        if not family.norms_without_weight:
            norm.weight.fill_(-family.norm_offset)
            if getattr(norm, "bias", None) is not None:
                norm.bias.zero_()
            assert not norm(noise).any()
    assert (family.norm == "layer") == is_layer_norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_a_correction_is_rounded_once(model_type, dtype, tmp_path):
    """In the checkpoint's dtype, from exact numbers: embeddings times sqrt(32 / 24), a tied head's norm by it."""
    model = tiny_model(model_type, tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path / "parent")
    pruning = random_survivors(model.config, 1, hidden=24)
    found = stored(write(opened(tmp_path / "parent"), plan_of(model, pruning), tmp_path / "child"))
    embedding, norm = model.model.embed_tokens.weight[:, pruning.hidden], model.model.norm.weight[pruning.hidden]
    root = (32 / 24) ** 0.5
    assert torch.equal(found["model.embed_tokens.weight"], (embedding.float() * root).to(dtype))
    wanted = ((norm.double() + 1) / root - 1).to(dtype)
    torch.testing.assert_close(found["model.norm.weight"], wanted, rtol=0, atol=2 * torch.finfo(dtype).eps)
