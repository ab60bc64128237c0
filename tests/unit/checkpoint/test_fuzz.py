"""Random damage to headers, indexes, configs and manifests: what is left is sound, or refused with our error."""

import json
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from minitron_cli import strict_json
from minitron_cli.artifacts import manifest
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import read_header, read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import CheckpointError, MinitronError
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from tests.damage import ODD_VALUES, damaged
from tests.quick import each_family
from tests.tiny import tiny_model, write_tiny

QUICK = settings(deadline=None, derandomize=True, max_examples=80)


def refusal_of(call, *arguments) -> str | None:
    """What our error says, or None if there is none. Any other error is the test's failure."""
    try:
        call(*arguments)
    except MinitronError as refusal:
        return str(refusal)
    return None


def test_a_damaged_header_is_refused_or_read_as_safetensors_reads_it(tmp_path):
    draw, path = random.Random(1), tmp_path / "file.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16), "d": torch.tensor(3)}
    write_safetensors(path, tensors)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, payload = content[8 : 8 + length], content[8 + length :]
    accepted = 0
    for round_ in range(1500):
        if round_ % 4:
            blob = damaged(header, draw)
            path.write_bytes(struct.pack("<Q", len(blob)) + blob + payload)
        else:
            path.write_bytes(damaged(content, draw))
        if refusal := refusal_of(read_header, path):
            assert "\n" not in refusal
            continue
        found, accepted = read_safetensors(path), accepted + 1
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == found.keys()
            for name, tensor in found.items():
                assert same_bytes(file.get_tensor(name), tensor)
    assert 20 < accepted < 700  # the mutator is neither too kind nor too rough


def same_bytes(a, b):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    write_safetensors(path, {"a": torch.zeros(3), "b": torch.zeros(2, 2)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@QUICK
@given(entries=st.dictionaries(st.text(max_size=5), json_values, max_size=4), size=st.integers(0, 64))
def test_any_json_as_a_header(entries, size, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    blob = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + bytes(size))
    try:
        read_safetensors(path)
    except CheckpointError:
        return
    with safe_open(path, "pt") as file:
        list(file.keys())


json_bytes = st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode())


@pytest.mark.slow
@settings(QUICK, max_examples=20)
@given(content=json_bytes)
def test_any_bytes_as_json(content):
    check_json(content)


@pytest.mark.slow
@QUICK
@given(content=json_bytes)
def test_any_more_bytes_as_json(content):
    check_json(content)


def check_json(content):
    try:
        value = strict_json.parse(content, "here")
    except CheckpointError:
        return
    assert strict_json.parse(json.dumps(value, allow_nan=False).encode(), "there") == value


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    tiny_model("llama", num_hidden_layers=1).save_pretrained(path, max_shard_size="30KB")
    return path


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_any_weight_map(sharded, data):
    index = sharded / "model.safetensors.index.json"
    good = index.read_text()
    weight_map = dict(json.loads(good)["weight_map"])
    names = st.sampled_from([*weight_map, "x"])
    files = st.sampled_from(sorted(set(weight_map.values()))) | st.text(max_size=12) | json_values
    weight_map |= data.draw(st.dictionaries(names, files, min_size=1, max_size=2))
    for name in data.draw(st.lists(names, max_size=2)):
        weight_map.pop(name, None)
    try:
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if refusal := refusal_of(Checkpoint.open, sharded):
            assert refusal.isprintable()
        else:
            found = {n: info.file.name for n, info in Checkpoint.open(sharded).tensors.items()}
            assert found | weight_map == found  # a shard may hold tensors that the map leaves out
    finally:
        index.write_text(good)


def check_against(raw, checkpoint):
    config = hf.config_from_dict(raw, "config.json")
    Shape.of(family_of(config), config).check(checkpoint.shapes)


@pytest.mark.slow
@each_family(["llama", "qwen2", "qwen3"])
def test_a_damaged_config_is_refused_or_has_a_shape(model_type, tmp_path):
    draw = random.Random(2)
    checkpoint = Checkpoint.open(write_tiny(tmp_path, model_type, num_hidden_layers=1))
    good, refused = dict(checkpoint.config), 0
    for _ in range(500):
        raw = json.loads(json.dumps(good))
        for _ in range(draw.randint(1, 2)):
            field = draw.choice([*good, "per_layer_config", "quantization_config", "auto_map"])
            if draw.random() < 0.2:
                raw.pop(field, None)
            else:
                raw[field] = draw.choice(ODD_VALUES)
        if refusal := refusal_of(check_against, raw, checkpoint):
            refused += 1
            assert refusal.isprintable()
            assert len(refusal) <= 300
    assert 100 < refused < 480


def test_a_damaged_manifest_is_refused_or_read(tmp_path):
    draw = random.Random(3)
    good = manifest.Manifest(
        schema_version=manifest.SCHEMA_VERSION,
        stage="prune",
        stage_version=1,
        label="a",
        key="0" * 64,
        config={"x": [1, {"y": None}]},
        inputs={"parent": "f" * 64},
        files={"model.safetensors": ("e" * 64, 100)},
    )
    content = json.dumps(good.model_dump(mode="json"), indent=1).encode()
    for _ in range(500):
        (tmp_path / "manifest.json").write_bytes(damaged(content, draw))
        assert (refusal_of(manifest.read, tmp_path) or "").isprintable()
