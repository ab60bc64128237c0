import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.family import Family
from minitron_cli.model.shape import Shape
from tests.quick import CARRYING, MIXTURES, each_family, without
from tests.tiny import tiny_config, tiny_model

MIB = 2**20


def published(alias: str) -> Shape:
    fields = dict(aliases()[alias].config)
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    return Shape.of(family_of(config), config)


def tiny_shape(model_type="llama", **options) -> Shape:
    config = tiny_config(model_type, **options)
    return Shape.of(family_of(config), config)


def test_llama_3_1_8b_and_its_minitrons_have_the_published_sizes():
    """Llama 3.1 report and Sreenivas et al. 2024 (4.5B, 3.7B without embeddings)."""
    parent = published("llama-3.1-8b")
    width = parent.resize(hidden=3072, ffn=9216)
    depth = parent.resize(layer=16)
    assert [s.parameters() for s in (parent, width, depth)] == [8_030_261_248, 4_512_746_496, 4_540_469_248]
    counts = [s.parameters("non_embedding") for s in (parent, width, depth)]
    assert counts == [6_979_588_096, 3_724_741_632, 3_489_796_096]
    assert parent.resize(hidden=3072, ffn=9216 + 256).parameters() != width.parameters()


@pytest.mark.parametrize(
    ("alias", "parameters"),
    [
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-1b", 999_885_952),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_248_023_552),
        ("mistral-nemo-12b", 12_247_782_400),
        ("olmo-2-7b", 7_298_617_344),
        ("olmo-3-7b", 7_298_011_136),
        ("phi-3-mini", 3_821_079_552),
        ("phi-4", 14_659_507_200),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-6.9b", 6_857_302_016),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("smollm3-3b", 3_075_098_624),
    ],
)
def test_aliases_have_the_parameters_of_their_model_cards(alias, parameters):
    """As the hub shows them, read from the safetensors headers."""
    assert published(alias).parameters() == parameters


@pytest.mark.parametrize(("alias", "total", "others"), [("minitron-8b", 8.3, 6.2), ("minitron-4b", 4.2, 2.6)])
def test_the_first_minitrons_have_the_published_sizes(alias, total, others):
    """In billions, with and without embeddings (Muralidharan et al. 2024)."""
    shape = published(alias)
    assert [round(shape.parameters(count) / 1e9, 1) for count in ("total", "non_embedding")] == [total, others]


@pytest.mark.parametrize(("model", "others"), [("pythia-1.4b", 1_208_602_624), ("pythia-6.9b", 6_444_163_072)])
def test_pythias_without_embeddings(model, others):
    """As Biderman et al. 2023 count them."""
    assert published(model).parameters("non_embedding") == others


@pytest.mark.parametrize(("layers", "mib"), [(36, 126_214.6), (22, 78_054.4)])
def test_qwen3_8b_memory_is_weights_plus_cache(layers, mib):
    """2 params + 2 L batch length kv_heads head_dim 2 bytes, at batch 96 and length 8192 (Model Optimizer's guide)."""
    shape = published("qwen3-8b").resize(layer=layers)
    cache = 2 * layers * 96 * 8192 * 8 * 128 * 2
    assert shape.kv_cache_bytes(96, 8192) == cache
    assert round((2 * shape.parameters() + shape.kv_cache_bytes(96, 8192)) / MIB, 1) == mib


def test_the_cache_grows_with_what_it_holds():
    shape = tiny_shape()
    one = shape.kv_cache_bytes(1, 1)
    assert one == 2 * 4 * 2 * 8 * 2
    assert shape.kv_cache_bytes(3, 5, dtype_bytes=1) == 15 * one // 2
    assert shape.resize(kv_head=1).kv_cache_bytes(1, 1) == one // 2
    assert shape.resize(head=2).kv_cache_bytes(1, 1) == one


SCANS = CARRYING - {"lfm2"}
"""Families in which torch counts products of states too, whose number depends on how a scan is computed."""


@each_family(without(*SCANS))
def test_flops_are_those_that_torch_counts(model_type, subtests):
    for tied in (False, True):
        with subtests.test(tied=tied):
            check_flops(tiny_model(model_type, tie_word_embeddings=tied))


def check_flops(model):
    model.set_attn_implementation("eager")  # every product is seen, and no causal half is left out
    model.set_experts_implementation("eager")
    length = 11
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(1, 1 + length)[None], use_cache=False)
    shape = Shape.of(family_of(model.config), model.config)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv1d)]
    beyond = sum(2 * conv.padding[0] * conv.weight.numel() for conv in convolutions)  # what is cut off again
    if model.config.model_type == "llama4_text":  # transformers multiplies zeros where a token is not routed
        shape = replace(shape, active={})
    assert shape.flops_per_token(context=length) * length + beyond == counter.get_total_flops()


ANY_SIZE = {n for n, f in FAMILIES.items() if not f.layer_kinds or n in MIXTURES} - CARRYING


@each_family(sorted(ANY_SIZE))
def test_any_size_counts_what_transformers_builds(model_type):
    shape = tiny_shape(model_type)
    prunings = [{"layer": 2}, {"ffn": 7}, {"hidden": 24}, {"head": 4, "kv_head": 1}, {"vocab": 65, "head_dim": 6}]
    if model_type == "gpt_neox":  # the size of a head is hidden / head
        prunings = [*prunings[:2], {"hidden": 24, "head": 6}, {"vocab": 65}]
    if "hidden" in shape.family.not_prunable:  # it is heads times their size
        prunings = [*prunings[:2], {"vocab": 65}]
    for sizes in prunings:
        resized = shape.resize(**sizes)
        options = {shape.family.sizes[axis]: size for axis, size in sizes.items()}
        lists = dict.fromkeys(("layer_types", *shape.family.layer_lists))
        config = tiny_config(model_type).to_dict() | options | lists | {"max_window_layers": 0}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type].from_dict(config))
        assert resized.parameters() == sum(p.numel() for p in model.parameters())
        copies = shape.family.tied if model.config.tie_word_embeddings else ()
        stored = {n: tuple(t.shape) for n, t in hf.stored_tensors(model, resized.tensors()).items() if n not in copies}
        assert resized.tensors() == stored


@pytest.mark.parametrize(
    ("alias", "billions", "active"),
    [
        ("apertus-8b", 8.05, None),
        ("bamba-9b", 9.78, None),
        ("gpt-oss-20b", 20.91, 3.61),
        ("gpt-oss-120b", 116.83, 5.13),
        ("olmo-7b", 6.89, None),
        ("olmoe-1b-7b", 6.92, 1.18),
        ("phi-3.5-moe", 41.87, 6.51),
    ],
)
def test_newer_aliases_have_the_sizes_of_their_cards(alias, billions, active):
    """In billions. gpt-oss (card, table 1) counts as active what is not the token embedding, and so do we here."""
    shape = published(alias)
    assert round(shape.parameters() / 1e9, 2) == billions
    if active:
        embedding = shape.sizes["vocab"] * shape.sizes["hidden"]
        assert round((shape.parameters("active") - embedding) / 1e9, 2) == active


@pytest.mark.parametrize(("alias", "billions"), [("deepseek-v2-lite", 15.7), ("deepseek-v3", 671.0)])
def test_models_with_latents_have_the_sizes_of_their_cards(alias, billions):
    """Of V3 without the block for multi-token prediction; a token of either leaves 576 numbers a layer in the cache."""
    shape = published(alias)
    assert round(shape.parameters() / 1e9, 1) == billions
    assert shape.kv_cache_bytes(1, 1, dtype_bytes=1) == 576 * shape.sizes["layer"]


def test_mixtures_have_their_published_sizes():
    """Mixtral 8x7B: 47B, of which a token uses 13B. Qwen3-30B-A3B: 30.5B and 3.3B, 29.9B without embeddings."""
    shape = published("mixtral-8x7b")
    assert (shape.parameters(), shape.parameters("active")) == (46_702_792_704, 12_879_925_248)
    shape = published("qwen3-30b-a3b")
    assert f"{shape.parameters() / 1e9:.1f} {shape.parameters('non_embedding') / 1e9:.1f}" == "30.5 29.9"
    assert 3.25e9 < shape.parameters("active") < 3.4e9
    assert str(shape) == "layer=48,hidden=2048,head=32,kv_head=4,expert=128,ffn=768"


def test_experts_live_in_names_and_only_some_are_active():
    family = Family(
        "mixture",
        {
            "embed.weight": "vocab hidden",
            "layers.{layer}.gate.weight": "expert hidden",
            "layers.{layer}.experts.{expert}.up.weight": "ffn hidden",
        },
        {"vocab": "v", "hidden": "h", "layer": "l", "expert": "e", "ffn": "f", "head_dim": "d"},
        active={"expert": "a"},
    )
    config = type("Config", (), {"v": 10, "h": 4, "l": 2, "e": 3, "f": 5, "d": 1, "a": 1})
    shape = Shape.of(family, config)
    assert [n for n in shape.tensors() if "layers.1.experts" in n] == [
        f"layers.1.experts.{e}.up.weight" for e in range(3)
    ]
    assert shape.parameters() == 40 + 2 * (3 * 4 + 3 * 5 * 4)
    assert shape.parameters("active") == 40 + 2 * (3 * 4 + 1 * 5 * 4), "the router scores every expert"
    assert shape.parameters() == sum(math.prod(s) for s in shape.tensors().values())


def test_a_shape_reads_like_the_command_line():
    assert str(tiny_shape()) == "layer=4,hidden=32,head=8,kv_head=2,ffn=48"


def test_resizing_an_axis_that_is_not_there():
    with pytest.raises(KeyError, match="expert"):
        tiny_shape().resize(expert=2)


def test_resizing_leaves_the_original_alone():
    shape = tiny_shape()
    assert shape.resize(ffn=1).sizes["ffn"] == 1
    assert shape.sizes["ffn"] == 48


class TestCheck:
    """What a checkpoint must hold."""

    def test_its_own_tensors_pass(self):
        shape = tiny_shape()
        shape.check(shape.tensors())

    def test_an_unknown_tensor(self):
        shape = tiny_shape()
        with pytest.raises(CheckpointError, match=r"unexpected tensor 'model\.extra'"):
            shape.check(shape.tensors() | {"model.extra": (3,)})

    def test_a_known_tensor_that_the_config_does_not_have(self):
        shape = tiny_shape(attention_bias=False)
        with pytest.raises(CheckpointError, match=r"unexpected tensor '.*q_proj\.bias'.*fix config\.json"):
            shape.check(shape.tensors() | {"model.layers.0.self_attn.q_proj.bias": (64,)})

    def test_a_layer_beyond_the_last(self):
        shape = tiny_shape()
        with pytest.raises(CheckpointError, match="unexpected tensor"):
            shape.check(shape.tensors() | {"model.layers.4.input_layernorm.weight": (32,)})

    @pytest.mark.parametrize("number", ["00", "٣", "-1", "1 ", "9" * 5000])
    def test_odd_layer_numbers(self, number):
        shape = tiny_shape()
        with pytest.raises(CheckpointError) as caught:
            shape.check(shape.tensors() | {f"model.layers.{number}.input_layernorm.weight": (32,)})
        assert len(str(caught.value)) <= 300

    def test_another_shape(self):
        shape = tiny_shape()
        with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' has shape \(31,\) where .* \(32,\)"):
            shape.check(shape.tensors() | {"model.norm.weight": (31,)})

    def test_missing_tensors(self):
        shape = tiny_shape()
        tensors = {n: s for n, s in shape.tensors().items() if "layers.2" not in n}
        with pytest.raises(
            CheckpointError, match=r"missing tensors model\.layers\.2.* and 13 more: .*download it again"
        ):
            shape.check(tensors)

    def test_an_untied_head_that_is_missing(self):
        shape = tiny_shape(tie_word_embeddings=False)
        with pytest.raises(CheckpointError, match=r"missing tensors lm_head\.weight"):
            shape.check({n: s for n, s in shape.tensors().items() if n != "lm_head.weight"})

    def test_a_tied_head_may_be_stored_as_well(self):
        shape = tiny_shape(tie_word_embeddings=True)
        shape.check(shape.tensors() | {"lm_head.weight": (64, 32)})

    def test_a_tied_head_of_another_shape(self):
        shape = tiny_shape(tie_word_embeddings=True)
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' has shape \(65, 32\)"):
            shape.check(shape.tensors() | {"lm_head.weight": (65, 32)})


@pytest.mark.parametrize("model_type", sorted(name for name, family in FAMILIES.items() if family.tied))
def test_untied_it_is_the_shape_of_the_untied_config(model_type):
    tied, untied = (tiny_shape(model_type, tie_word_embeddings=is_tied) for is_tied in (True, False))
    assert tied.untied().tensors() == untied.tensors()
    assert list(tied.untied().tensors()) == list(untied.tensors())
    assert tied.untied().parameters() == tied.parameters() + math.prod(tied.sizes[axis] for axis in ("vocab", "hidden"))
