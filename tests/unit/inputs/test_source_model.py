"""Models that stages read: which one a name means, what is held in memory, and what cannot be held."""

import json
import math

import pytest
import torch
import transformers

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.cli.exit_codes import explain
from minitron_cli.dry_run import shape_of
from minitron_cli.errors import CheckpointError
from minitron_cli.inputs.source_model import open_source_model, published_shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from tests.tiny import tiny_model, write_tiny

IDS = torch.arange(12).reshape(2, 6)


def test_a_directory_goes_before_an_alias(tmp_path, monkeypatch):
    write_tiny(tmp_path / "llama-3.2-1b", num_hidden_layers=1)
    assert published_shape("llama-3.2-1b") is not None
    monkeypatch.chdir(tmp_path)
    assert published_shape("llama-3.2-1b") is None
    shape, checkpoint = shape_of("llama-3.2-1b")
    assert checkpoint is not None
    assert shape.sizes["vocab"] == 64
    assert open_source_model("llama-3.2-1b").shape == shape


@pytest.mark.parametrize(
    ("stored", "asked", "device", "has_bf16", "expected"),
    [
        (torch.bfloat16, "auto", "cpu", False, "float32"),
        (torch.bfloat16, "auto", "cpu", True, "auto"),
        (torch.bfloat16, "auto", "cuda", False, "auto"),
        (torch.bfloat16, "bfloat16", "cpu", False, "bfloat16"),
        (torch.float16, "auto", "cpu", True, "float32"),
        (torch.float32, "auto", "cpu", False, "auto"),
        (torch.float64, "auto", "cpu", False, "auto"),
    ],
)
def test_a_model_runs_in_fp32_where_the_cpu_emulates_what_it_is_stored_in(
    tmp_path, monkeypatch, stored, asked, device, has_bf16, expected
):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model = tiny_model("llama", num_hidden_layers=1).to(stored)
    model.save_pretrained(tmp_path / "model")
    context = Context(Workspace(tmp_path / "runs"), device=device, dtype=asked)
    assert open_source_model(tmp_path / "model").dtype_in(context) == expected


@pytest.mark.parametrize("name", ["model.gguf", "sub/model.gguf"])
def test_a_file_is_never_taken_for_a_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf is GGUF, the format of llama\.cpp: give the original"):
        open_source_model(name)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("can't start new thread"),
        OSError("Too many open files (os error 24)"),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_while_a_model_loads_is_not_the_models_fault(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    path = write_tiny(tmp_path, num_hidden_layers=1)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as caught:
        hf.load_model(path)
    assert explain(caught.value).exit_code == 3


@pytest.mark.parametrize("fields", [{"return_dict": False}, {"output_attentions": True, "output_hidden_states": True}])
def test_a_config_does_not_choose_what_a_forward_pass_returns(fields, tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    wanted = hf.load_model(path)(IDS).logits
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))
    output = hf.load_model(path)(IDS)
    assert torch.equal(output.logits, wanted)
    assert not output.hidden_states


@pytest.mark.parametrize("model_type", ["bamba", "nemotron_h"])
def test_infinity_where_there_is_no_limit_is_read_and_written_as_json(model_type, tmp_path):
    path = write_tiny(tmp_path, model_type)
    config = json.loads((path / "config.json").read_text())
    limits = config["time_step_limit"]
    assert limits == [0.0, {"__float__": "Infinity"}]  # as transformers 5 writes it
    (path / "config.json").write_text(json.dumps(config | {"time_step_limit": [0.0, math.inf]}))  # as published
    source = open_source_model(path)
    assert source.config.time_step_limit[1] == math.inf
    assert child_config(source.checkpoint.config, PrunePlan(source.shape, {}))["time_step_limit"] == limits
    (path / "config.json").write_text(json.dumps(config | {"time_step_limit": [0.0, math.nan]}))
    with pytest.raises(CheckpointError, match=r"'time_step_limit\.1' is NaN or infinite; fix the field"):
        open_source_model(path)


def test_infinity_in_a_published_config_does_not_hide_that_the_family_is_unknown(tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=1)
    text = (path / "config.json").read_text()
    unknown = text.replace('"model_type": "llama"', '"model_type": "rwkv", "time_step_limit": [0.0, Infinity]')
    (path / "config.json").write_text(unknown)
    with pytest.raises(CheckpointError, match="'rwkv' has no family table"):
        open_source_model(path)
    (path / "config.json").write_text(text.replace("{", '{"a": {"b": [1, -Infinity]},', 1))
    with pytest.raises(CheckpointError, match=r"config\.json: 'a\.b\.1' is NaN or infinite; fix the field"):
        open_source_model(path)
