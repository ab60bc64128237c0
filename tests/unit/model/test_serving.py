"""The serving table against the published shapes, and against divisibility written out by hand."""

from dataclasses import replace

import pytest

from minitron_cli.inputs.source_model import published_shape
from minitron_cli.model import serving
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.family import Serving
from minitron_cli.model.shape import Shape
from minitron_cli.prune.limits import refusal
from tests.tiny import tiny_config

LLAMA = published_shape("llama-3.1-8b")


def levels(shape, **options):
    return {f.reader: f.level for f in serving.findings(shape, **options)}


def pruned(parent, all_sizes):
    return [parent.resize(**sizes) for sizes in all_sizes]


NEAR = {
    "llama-3.1-8b": [{"ffn": 9210}, {"hidden": 3000, "head": 24}, {"head": 24, "kv_head": 6}, {"ffn": 14330}],
    "qwen3-8b": [{"ffn": 12281, "hidden": 4001}, {"head": 20, "kv_head": 5}, {"head": 12, "kv_head": 3, "ffn": 40}],
    "qwen3-30b-a3b": [{"ffn": 760}, {"hidden": 2040, "ffn": 8}],
    "pythia-1.4b": [{"ffn": 8190}, {"hidden": 1000}],
    "gemma-2-2b": [{"hidden": 2000, "ffn": 9000}, {"head": 6, "kv_head": 3}],
    "phi-3-mini": [{"ffn": 8000}, {"hidden": 3000}, {"ffn": 100}],
    "mixtral-8x7b": [{"ffn": 14008}, {"hidden": 3992}, {"head": 20, "kv_head": 5}],
    "granite-4.0-h-micro": [{"mamba_head": 32}, {"hidden": 1024, "mamba_head": 32}, {"hidden": 1024}],
    "ernie-4.5-21b-a3b": [{"ffn": 1024}, {"head": 10, "kv_head": 2}],
    "deepseek-v2-lite": [{"layer": 20}],
    "deepseek-v3": [{"layer": 27}],
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_named_as_nearest_can_be_reached_and_has_no_such_trouble(name):
    parent = published_shape(name)
    for shape, finding in [(s, f) for s in pruned(parent, NEAR[name]) for f in serving.remarks(s, parent=parent)]:
        if finding.nearest:
            better = shape.resize(**finding.nearest)
            assert all(size <= parent.sizes[axis] for axis, size in better.sizes.items()), finding
            assert levels(better)[finding.reader] == "ok", finding
            if refusal(parent, shape) is None:
                assert refusal(parent, better) is None, finding


def row(shape, reader, parent=LLAMA, **options):
    return next(f for f in serving.findings(shape, parent=parent, **options) if f.reader == reader)


def of_type(model_type: str, **sizes: int) -> Shape:
    """Llama 3.1 8B's shape, served as another family is; an unknown type has no family table that says how."""
    known = FAMILIES.get(model_type)
    stand_in = replace(FAMILIES["llama"], model_type=model_type, serving=known.serving if known else Serving())
    return replace(LLAMA, family=stand_in).resize(**sizes)


def test_the_published_children_are_served_everywhere():
    for shape in (LLAMA, LLAMA.resize(hidden=3072, ffn=9216), LLAMA.resize(layer=16)):
        assert serving.remarks(shape) == []


def test_an_odd_width_names_the_nearest_that_fits():
    found = {f.reader: f for f in serving.remarks(LLAMA.resize(ffn=9210), parent=LLAMA)}
    assert found.keys() == {
        "tensor parallel",
        "GGUF Q4_0, Q8_0",
        "GGUF K-quants",
        *(b.name for b in serving.BLOCK_FORMATS[2:]),
    }
    assert found["GGUF K-quants"].nearest == {"ffn": 9216}  # 36 x 256
    assert found["GGUF Q4_0, Q8_0"].nearest == {"ffn": 9216}  # 288 x 32
    assert found["fp8"].nearest == {"ffn": 9216}  # 576 x 16; 9200 is farther
    assert found["tensor parallel"].nearest == {"ffn": 9208}  # 1151 x 8
    assert found["tensor parallel"].reason == "over 1 and 2 devices, not over 4 and 8 (ffn 9,210)"
    assert "ffn 9,210" in found["fp8"].reason
    assert found["fp8"].level == "fails"


def test_what_is_named_as_nearest_has_no_such_trouble():
    parent = published_shape("qwen3-8b")
    for size in range(8, 700, 9):
        shape = parent.resize(ffn=size, hidden=size + 1, head=24)
        for finding in serving.remarks(shape, parent=parent):
            if finding.nearest:
                assert levels(shape.resize(**finding.nearest))[finding.reader] == "ok", (size, finding)


@pytest.mark.parametrize("reader", ["GGUF K-quants", "GPTQ, AWQ (Marlin)", "2:4 sparsity"])
def test_where_the_parent_is_too_small_no_shape_is_named(reader):
    parent = LLAMA.resize(hidden=2048, ffn=60)
    found = row(parent.resize(ffn=40), reader, parent)
    assert (found.level != "ok", found.nearest) == (True, {})


def test_a_model_is_not_told_to_grow():
    """It is pruned, or left as it is."""
    found = row(LLAMA.resize(ffn=9215), "GGUF K-quants", None)
    assert found.nearest == {"ffn": 8960}  # 35 x 256; 36 x 256 is nearer, and more than there is
    assert row(LLAMA.resize(ffn=9215), "GGUF K-quants").nearest == {"ffn": 9216}
    assert row(of_type("qwen2", hidden=3072), "llama.cpp", None).nearest == {}  # heads x head_dim is 4096


def test_groups_are_copied_or_shared_out():
    few = published_shape("qwen3-8b").resize(head=24, kv_head=6)
    assert row(few, "tensor parallel", few).nearest == {"kv_head": 4, "head": 16}
    assert row(few, "tensor parallel", published_shape("qwen3-8b")).nearest == {"kv_head": 8}


def test_a_hidden_size_that_the_config_refuses():
    found = row(LLAMA.resize(hidden=3000, head=32), "transformers")
    assert (found.level, found.nearest) == ("fails", {"hidden": 3008})  # 94 x 32
    assert row(published_shape("qwen3-8b").resize(hidden=3000), "transformers").level == "ok"


def test_llama_is_told_hidden_sizes_that_its_heads_divide():
    nearest = row(LLAMA.resize(hidden=3000, head=24), "GGUF K-quants").nearest["hidden"]
    assert nearest == 3072  # 768, which 24 and 256 divide, times 4


@pytest.mark.parametrize(
    ("model_type", "vllm", "llama_cpp"),
    [
        ("llama", "ok", "ok"),
        ("qwen3", "ok", "ok"),
        ("qwen2", "fails", "fails"),
        ("olmo2", "slower", "fails"),
        ("nemotron", "ok", "fails"),
        ("smollm3", "slower", "ok"),
        ("granitemoehybrid", "fails", "fails"),
        ("falcon_h1", "ok", "ok"),
        ("gemma", "unknown", "ok"),
        ("cohere2", "unknown", "fails"),
        ("new_model", "unknown", "unknown"),
    ],
)
def test_readers_that_derive_the_size_of_a_head(model_type, vllm, llama_cpp):
    pruning = levels(of_type(model_type, hidden=3072))  # 32 heads of 128 are 4096
    assert (pruning["vLLM"], pruning["llama.cpp"]) == (vllm, llama_cpp)
    whole = levels(of_type(model_type, hidden=4096, ffn=9216))
    assert whole["vLLM"] in ("ok", "slower", "unknown")
    if llama_cpp == "fails":
        assert whole["llama.cpp"] == "ok"
        assert row(of_type(model_type, hidden=3072), "llama.cpp").nearest == {"hidden": 4096}


@pytest.mark.parametrize("model_type", ["cwm", "flex_olmo", "ministral", "vaultgemma"])
def test_a_family_that_llama_cpp_has_no_code_for(model_type):
    found = row(of_type(model_type), "llama.cpp")
    assert (found.level, found.reason, found.nearest) == ("fails", f"it has no code for {model_type}", {})
    assert "llama.cpp" in serving.fails_on(of_type(model_type))


@pytest.mark.parametrize(
    ("name", "sizes", "reason", "nearest"),
    [
        ("bamba-9b", {}, "it rotates other features", {}),
        ("bamba-9b", {"mamba_head": 64}, "; it takes mamba_head x mamba_dim to be 2 x hidden for bamba", {}),
        ("granite-4.0-h-micro", {"mamba_head": 32}, "and 2,048 is not 4,096", {"mamba_head": 64}),
        (
            "granite-4.0-h-micro",
            {"mamba_head": 32, "hidden": 1024},
            "hidden / heads",
            {"hidden": 2048, "mamba_head": 64},
        ),
        ("granite-4.0-h-micro", {"mamba_head": 32, "hidden": 1024, "head": 16, "kv_head": 4}, "", {}),
        ("ernie-4.5-21b-a3b", {"ffn": 1024}, "shared_ffn x kv_head to be dense_ffn", {"ffn": 1536}),
        ("ernie-4.5-21b-a3b", {"expert": 32}, "", {}),
        ("nemotron-h-8b", {"mamba_dim": 60, "mamba_head": 120}, "a multiple of 64 for", {"mamba_head": 128}),
        ("nemotron-h-8b", {"mamba_head": 120}, "", {}),
        ("deepseek-v2-lite", {"layer": 20}, "layer 27 or layer 48 and vocab 128,256", {"layer": 26}),
        ("deepseek-v2-lite", {"layer": 26}, "", {}),
        ("deepseek-v2-lite", {"expert_group": 8}, "it takes expert_group to be 1 for deepseek_v2, and 8 is not 1", {}),
        ("deepseek-v3", {"layer": 27}, "to have queries without a latent, and this is one", {"layer": 28}),
        ("deepseek-v3", {"layer": 48}, "", {}),
    ],
)
def test_sizes_that_llama_cpp_takes_for_granted(name, sizes, reason, nearest):
    parent = published_shape(name)
    found = row(parent.resize(**sizes), "llama.cpp", parent)
    assert (found.level, found.nearest) == ("fails" if reason else "ok", nearest)
    assert reason in found.reason


@pytest.mark.parametrize(("model_type", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_gemmas_of_27b_keep_their_layers_and_the_scale_of_attention(model_type, layers):
    parent = of_type(model_type, layer=layers, hidden=4608)
    assert row(parent, "llama.cpp", parent).level == "ok"
    fewer = row(parent.resize(layer=24), "llama.cpp", parent)
    assert (fewer.level, fewer.nearest) == ("fails", {"layer": layers})
    narrower = row(parent.resize(hidden=4096), "llama.cpp", parent)
    assert (narrower.level, narrower.nearest) == ("fails", {"hidden": 4608})  # 4608 / 32 = 144
    assert row(parent.resize(hidden=3456, head=24), "llama.cpp", parent).level == "ok"
    smaller = of_type(model_type, layer=26)
    assert row(smaller.resize(layer=24), "llama.cpp", smaller).level == "ok"


def test_a_llama_4_keeps_its_128_experts_and_the_kinds_of_its_layers():
    config = tiny_config("llama4_text", num_local_experts=128, num_hidden_layers=8, no_rope_layer_interval=4)
    parent = Shape.of(family_of(config), config)
    fewer = row(parent.resize(expert=64), "llama.cpp", parent)
    assert (fewer.level, fewer.nearest) == ("fails", {"expert": 128})
    assert row(parent, "llama.cpp", parent).level == "ok"
    assert row(parent.of_layers([0, 1, 2, 3]), "llama.cpp layers", parent).level == "ok"
    assert row(parent.of_layers([0, 1, 3, 4]), "llama.cpp layers", parent).level == "fails"


def test_a_vllm_that_fails_is_served_through_transformers():
    assert "--model-impl transformers" in row(of_type("qwen2", hidden=3072), "vLLM").reason


@pytest.mark.parametrize(
    ("head", "kv_head", "level", "reason"),
    [
        (32, 8, "ok", "over 1, 2, 4 and 8 devices"),
        (32, 2, "ok", "over 1, 2, 4 and 8 devices"),  # more devices than groups: groups are copied
        (28, 4, "slower", "over 1, 2 and 4 devices, not over 8 (head 28)"),
        (24, 6, "slower", "over 1 and 2 devices, not over 4 and 8 (kv_head 6)"),
        (15, 5, "fails", "over 1 devices, not over 2, 4 and 8 (head 15, kv_head 5)"),
    ],
)
def test_tensor_parallel_sizes_that_work(head, kv_head, level, reason):
    found = row(LLAMA.resize(head=head, kv_head=kv_head), "tensor parallel")
    assert (found.level, found.reason) == (level, reason)


def test_layers_that_llama_cpp_will_take_for_others():
    sliding, full = "sliding_attention", "full_attention"
    gemma = of_type("gemma2", layer=4)
    assert row(gemma, "llama.cpp layers", layer_types=[sliding, full] * 2).level == "ok"
    assert row(gemma, "llama.cpp layers", layer_types=[sliding, sliding, full, full]).level == "fails"
    assert "llama.cpp layers" not in levels(gemma)
    exaone = of_type("exaone4", layer=4)
    assert row(exaone, "llama.cpp layers", layer_types=[sliding, full] * 2).level == "fails"
    assert "llama.cpp layers" not in levels(exaone, layer_types=[full] * 4)
    assert "llama.cpp layers" not in levels(of_type("exaone4", layer=64), layer_types=[sliding, full] * 32)
    assert "llama.cpp layers" not in levels(LLAMA, layer_types=[full] * 4)


def test_vocabulary_and_heads():
    assert row(LLAMA.resize(vocab=50257), "vocabulary").reason == "50,257 is padded to 50,304, a multiple of 64"
    assert row(LLAMA.resize(head_dim=100), "attention kernels").level == "slower"
    assert row(LLAMA.resize(head_dim=512), "attention kernels").level == "slower"


def test_a_version_4_that_derives_the_size_of_a_head_has_a_row_of_its_own():
    assert "transformers 4" not in levels(of_type("llama", hidden=3072))
    assert levels(of_type("jamba", hidden=3072))["transformers 4"] == "fails"
    assert levels(of_type("jamba", hidden=4096))["transformers 4"] == "ok"
    assert "version 5 reads" in row(of_type("jamba", hidden=4096), "transformers").reason
