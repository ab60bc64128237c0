"""The export guard: it passes every family's child, and refuses one that was spoilt after it was written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli import io
from minitron_cli.artifacts.fingerprint import TOKENIZER_FILES
from minitron_cli.checkpoint import hf
from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.errors import RunFailed
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune import export_check, loaded_check
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from tests.by_table import opened
from tests.conformance.masked import random_survivors
from tests.quick import each_family, first_quick
from tests.tiny import tiny_model

CHILD_SIZES = {"layer": 3, "hidden": 24, "ffn": 20, "head": 6}
MODES = pytest.mark.parametrize("mode", ["whole", "sampled"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["the cat sat on a mat"] * 3, 260, path / "files")
    return path / "files"


@pytest.fixture(scope="module")
def children(tmp_path_factory, tokenizer):
    """(model_type, options) -> a parent, the plan of its child, and the child as the prune stage writes it."""
    known = {}

    def get(model_type, sizes=CHILD_SIZES, **options):
        key = (model_type, *sorted(sizes.items()), *sorted(options.items()))
        if key not in known:
            root = tmp_path_factory.mktemp("guard")
            model = tiny_model(model_type, **options)
            model.save_pretrained(root / "parent")
            hf.copy_files(tokenizer, root / "parent", TOKENIZER_FILES)
            family = family_of(model.config)
            stays = family.not_prunable
            pruning = random_survivors(model.config, 3, **{axis: n for axis, n in sizes.items() if axis not in stays})
            if family.layers:  # one of each kind
                pruning = replace(pruning, layer=[0, 1] if family.is_periodic else [0, 1, 3])
            axes = {*sizes, *(axis for axis, of in family.follows.items() if of in sizes)} - {*stays}
            kept = {axis: torch.tensor(getattr(pruning, axis)) for axis in axes}
            plan = PrunePlan(Shape.of(family_of(model.config), model.config), kept)
            source = opened(root / "parent")
            (root / "child").mkdir()
            write_child(source, plan, root / "child")
            io.write_new_json(root / "child" / "config.json", child_config(source.config, plan))
            hf.copy_files(source.path, root / "child", hf.side_files(source))
            known[key] = (source, plan, root / "child")
        return known[key]

    return get


@pytest.mark.parametrize("tied", first_quick([True, False]), ids=["tied", "untied"])
@each_family()
def test_every_familys_child_passes(children, model_type, tied, subtests):
    source, plan, child = children(model_type, tie_word_embeddings=tied)
    for mode in ("whole", "sampled"):
        with subtests.test(mode=mode):
            passed = export_check.check_child(export_check.WrittenChild(child, source, plan, mode))
            assert passed == [*export_check.CHECKS, "live"]


@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_16_bits_is_no_fault(children, dtype, mode, tmp_path):
    source, plan, child = children("llama")
    for name, path in (("parent", source.path), ("child", child)):
        shutil.copytree(path, tmp_path / name)
        edit_weights(tmp_path / name, lambda t: t.update({n: x.to(dtype) for n, x in t.items()}))
    export_check.check_child(export_check.WrittenChild(tmp_path / "child", opened(tmp_path / "parent"), plan, mode))


def edit_weights(directory: Path, edit) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes) -> None:
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def swap(tensors, one, other):
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def layer(i, name):
    return f"model.layers.{i}.{name}.weight"


def swapped_tensors(child):
    edit_weights(child, lambda t: swap(t, layer(2, "mlp.gate_proj"), layer(2, "mlp.up_proj")))


def swapped_layers(child):
    def edit(tensors):
        for name in [n for n in tensors if ".layers.0." in n]:
            swap(tensors, name, name.replace(".layers.0.", ".layers.2."))

    edit_weights(child, edit)


def another_number(child):
    edit_weights(child, lambda t: t[layer(2, "input_layernorm")].mul_(torch.linspace(1, 1.001, 24)))


def not_a_number(child):
    edit_weights(child, lambda t: t[layer(2, "mlp.down_proj")].__setitem__((3, 5), float("nan")))


def stale_index(child):
    index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (child / "model.safetensors.index.json").write_text(json.dumps(index))


def stale_shard(child):
    shutil.copy(child / "model.safetensors", child / "model-00001-of-00002.safetensors")


def truncated_shard(child):
    data = (child / "model.safetensors").read_bytes()
    (child / "model.safetensors").write_bytes(data[:-4])


def wrong_dtype(child):
    edit_weights(child, lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))


def wrong_rope(child):
    raw = json.loads((child / "config.json").read_text())
    edit_config(child, rope_parameters=raw["rope_parameters"] | {"rope_theta": 10000.0})


def no_old_rope(child):
    edit_config(child, rope_theta=None)


def no_head_dim(child):
    edit_config(child, head_dim=None)


def untied_head(child):
    edit_config(child, tie_word_embeddings=False)
    edit_weights(child, lambda t: t.update({"lm_head.weight": torch.randn(t["model.embed_tokens.weight"].shape)}))


def short_tokenizer(child):
    text = (child / "tokenizer.json").read_bytes()
    (child / "tokenizer.json").write_bytes(text[: len(text) // 2])


def no_tokenizer(child):
    (child / "tokenizer.json").unlink()


def leftover(child):
    (child / "pytorch_model.bin").write_bytes(b"")


SPOILT = {
    swapped_tensors: ("weights|live", {}),
    swapped_layers: ("weights", {}),
    another_number: ("weights", {}),
    not_a_number: ("finite", {}),
    stale_index: ("headers", {}),
    stale_shard: ("files", {}),
    truncated_shard: ("headers", {}),
    wrong_dtype: ("headers", {}),
    wrong_rope: ("config", {}),
    no_old_rope: ("config", {}),
    no_head_dim: ("config", {}),
    untied_head: ("headers", {"tie_word_embeddings": True}),
    short_tokenizer: ("copies", {}),
    no_tokenizer: ("files", {}),
    leftover: ("files", {}),
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_child_is_refused(children, spoil, tmp_path, subtests):
    check, options = SPOILT[spoil]
    source, plan, written = children("llama", **options)
    child = shutil.copytree(written, tmp_path / "child")
    spoil(child)
    for mode in ("whole", "sampled"):
        with (
            subtests.test(mode=mode),
            pytest.raises(RunFailed, match=f"failed its '({check})' check and was not kept"),
        ):
            export_check.check_child(export_check.WrittenChild(child, source, plan, mode))


@pytest.mark.parametrize(
    ("spoil", "mode", "what"),
    [
        (swapped_tensors, "whole", "gate_proj.weight is loaded with other numbers"),
        (swapped_tensors, "sampled", "gate_proj.weight is loaded with other numbers"),
        (swapped_layers, "whole", "is loaded with other numbers"),
        (swapped_layers, "sampled", "is loaded with other numbers"),
        (wrong_rope, "whole", "inv_freq is loaded with other numbers"),
        (wrong_rope, "sampled", "inv_freq is loaded with other numbers"),
        (no_head_dim, "whole", "does not load"),  # a sliver's config states every size again
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_the_loaded_model_tells_as_well(children, spoil, mode, what, tmp_path, monkeypatch):
    monkeypatch.setattr(export_check, "CHECKS", {})
    source, plan, written = children("llama")
    child = shutil.copytree(written, tmp_path / "child")
    spoil(child)
    with pytest.raises(RunFailed, match=what):
        export_check.check_child(export_check.WrittenChild(child, source, plan, mode))


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_a_sliver_stands_for_every_kind_of_layer(children, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(export_check, "CHECKS", {})
    source, plan, written = children("gemma2", {"hidden": 24, "ffn": 20})
    kinds = json.loads((written / "config.json").read_text())["layer_types"]
    last = max(i for i, name in enumerate(kinds) if name == kind)
    child = shutil.copytree(written, tmp_path / "child")
    edit_weights(child, lambda t: swap(t, layer(last, "mlp.gate_proj"), layer(last, "mlp.up_proj")))
    with pytest.raises(RunFailed, match=r"gate_proj.weight is loaded with other numbers"):
        export_check.check_child(export_check.WrittenChild(child, source, plan, "sampled"))


@pytest.mark.slow
def test_a_loaded_model_whose_logits_or_ties_or_cache_differ_is_refused(children, monkeypatch):
    source, plan, child = children("llama")
    written = export_check.WrittenChild(child, source, plan, "whole")
    monkeypatch.setattr(loaded_check, "_check_state", lambda *_: None)

    def refused(change, match):
        found, wanted = next(written.models())
        change(found)
        with pytest.raises(Exception, match=match):
            loaded_check.check_loaded(found, wanted, written.is_same)

    refused(
        lambda m: m.model.norm.weight.data.mul_(torch.linspace(1, 1.01, 24)), "the logits differ from the expected ones"
    )
    refused(lambda m: m.set_output_embeddings(m.get_input_embeddings()), "are tied after loading")

    def forgets_its_place(model):
        for block in model.model.layers:
            block.self_attn.layer_idx = 0

    refused(forgets_its_place, "with a cache, the logits differ")


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"stop_strings": ["a"]},
        {"repetition_penalty": 1.7},
    ],
    ids=str,
)
def test_what_a_model_generates_by_default_does_not_matter(children, options):
    """Its generation_config.json says how it is to be used, not what it computes."""
    source, plan, child = children("llama")
    found, wanted = next(export_check.WrittenChild(child, source, plan, "whole").models())
    found.generation_config.update(**options)
    before = found.generation_config
    loaded_check.check_loaded(found, wanted, torch.equal)
    assert found.generation_config is before


def test_memory_decides_what_is_compared(monkeypatch):
    monkeypatch.setattr("minitron_cli.memory.available_bytes", lambda device: 10_000)
    assert export_check.mode_for(2_000) == "whole"
    assert export_check.mode_for(4_000) == "sampled"
    monkeypatch.setattr("minitron_cli.memory.available_bytes", lambda device: 10**12)
    assert export_check.mode_for(export_check.WHOLE_BYTES) == "whole"
    assert export_check.mode_for(export_check.WHOLE_BYTES + 1) == "sampled"
