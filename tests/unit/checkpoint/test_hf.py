import json
import math
import socket
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from minitron_cli.artifacts import fingerprint
from minitron_cli.checkpoint import hf, model_names
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import CheckpointError, EnvironmentFault
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.shape import Shape
from tests.tiny import tiny_config, tiny_model, write_tiny


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked for an address"))


def test_a_directory_is_found_as_it_is(tmp_path, no_network):
    path = write_tiny(tmp_path / "a model, ünicode=1")
    source = model_names.resolve(str(path))
    assert (source.name, source.path) == (str(path), path)
    assert source.fingerprint() == fingerprint.of_directory(path)


@pytest.mark.parametrize(
    "name",
    [
        "foo bar/baz",
        "a\0/b",
        "x" * 300,
        "a/b/c",
        "/nope",
        "~/nope",
        "./nope",
        "a--b/c",
        "é/ü",
        "nope",
        "a/" + "b" * 200,
    ],
)
def test_what_is_neither_a_directory_nor_a_hub_id(name, no_network):
    with pytest.raises(
        CheckpointError,
        match=r"does not exist: give the directory of a checkpoint, a hub id or an alias such as .*llama-",
    ):
        model_names.resolve(name)


@pytest.mark.parametrize("offline", ["option", "environment"])
def test_an_absent_model_offline_is_said_at_once(offline, no_network, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline == "environment")
    started = time.monotonic()
    with pytest.raises(
        EnvironmentFault, match=r"no/such-model is not in the local cache and downloads are off: fetch it with"
    ):
        model_names.resolve("no/such-model", offline=offline == "option")
    assert time.monotonic() - started < 3


def uncapped(model):
    """The error of a kernel that leaves the cap out."""
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None


def uniform(model):
    """The error of a kernel that attends to the wrong tokens in one layer."""
    model.model.layers[0].self_attn.q_proj.weight.data.zero_()


@pytest.mark.parametrize(
    ("model_type", "options", "kernel", "spoil"),
    [
        ("gemma2", {}, "eager", uncapped),
        ("gemma3_text", {"attn_logit_softcapping": None}, "sdpa", uniform),
        ("gemma3_text", {"attn_logit_softcapping": 4.0}, "eager", uniform),
    ],
)
def test_a_model_that_caps_its_attention_runs_without_the_fused_kernel(model_type, options, kernel, spoil, tmp_path):
    """Kernels round differently: by less than a hundredth of what a wrong one would change."""
    wanted = tiny_model(model_type, **options)
    wanted.set_attn_implementation("eager")
    wanted.save_pretrained(tmp_path)
    tokens = torch.arange(1, 12)[None]
    config = json.loads((tmp_path / "config.json").read_text())
    with torch.no_grad():
        expected = wanted(tokens).logits
        spoil(wanted)
        effect = (wanted(tokens).logits - expected).abs().max()
    for model in (hf.load_model(tmp_path), hf.model_of(config, load_file(tmp_path / "model.safetensors"))):
        assert model.config._attn_implementation == kernel
        with torch.no_grad():
            difference = (model(tokens).logits - expected).abs().max()
        assert difference < min(1e-4, effect / 100)


def test_a_loaded_model_is_what_transformers_loads(tmp_path):
    wanted = tiny_model("qwen3")
    wanted.save_pretrained(tmp_path)
    model = hf.load_model(tmp_path)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))
    assert hf.load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_model_of_tensors_in_memory(tmp_path):
    wanted = tiny_model("mistral", tie_word_embeddings=True)
    wanted.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    model = hf.model_of(config, tensors)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))
    tensors.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"does not fit its config at model\.norm\.weight"):
        hf.model_of(config, tensors)


def test_a_new_model_is_a_function_of_its_seed(tmp_path):
    config = tiny_config("llama")
    before = torch.random.get_rng_state()
    one, same, other = (hf.new_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_trained_model_whose_published_config_has_an_infinity_is_written(tmp_path):
    like = write_tiny(tmp_path / "like", "bamba")
    config = json.loads((like / "config.json").read_text()) | {"time_step_limit": [0.0, math.inf]}
    (like / "config.json").write_text(json.dumps(config))
    checkpoint, out = Checkpoint.open(like), tmp_path / "out"
    out.mkdir()
    hf.save_like(checkpoint, out, hf.stored_tensors(hf.load_model(like), checkpoint.tensors).items())
    assert Checkpoint.open(out).config == checkpoint.config
    assert hf.load_config(out).time_step_limit[1] == math.inf


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_has_the_names_and_dtypes_of_its_reference(tied, tmp_path):
    like = tmp_path / "like"
    tiny_model("llama", tie_word_embeddings=tied).to(torch.bfloat16).save_pretrained(like)
    (like / "tokenizer.json").write_text("{}")
    model = hf.load_model(like, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    out = tmp_path / "out"
    out.mkdir()
    hf.save_like(Checkpoint.open(like), out, reversed(hf.stored_tensors(model).items()))
    before, after = load_file(like / "model.safetensors"), load_file(out / "model.safetensors")
    assert list(Checkpoint.open(out).tensors) == list(Checkpoint.open(like).tensors)
    for name in before:
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], before[name]) != (name == "model.norm.weight")
    assert (out / "config.json").read_bytes() == (like / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == b"{}"
    hf.load_model(out)


def test_a_model_without_a_checkpoint_is_written(tmp_path):
    model = tiny_model("llama")
    hf.write_model(model, Shape.of(LLAMA, model.config).tensors(), tmp_path)
    assert "transformers_version" not in json.loads((tmp_path / "config.json").read_text())
    again = hf.load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tekken.json", "chat_template.jinja", "generation_config.json"])
def test_a_child_keeps_the_files_beside_the_weights(tmp_path, name):
    """Mistral's own tokenizer is read by vLLM where transformers reads tokenizer.json."""
    model = write_tiny(tmp_path / "model")
    (model / name).write_text("{}")
    assert name in hf.side_files(Checkpoint.open(model))
    (tmp_path / "child").mkdir()
    hf.copy_files(model, tmp_path / "child", hf.side_files(Checkpoint.open(model)))
    assert (tmp_path / "child" / name).read_text() == "{}"
