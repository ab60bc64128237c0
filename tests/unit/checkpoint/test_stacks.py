"""Tensors that are stored as one and named one by one."""

import json

import torch
from safetensors.torch import load_file, save_file

from minitron_cli.checkpoint.reader import INDEX, Checkpoint
from minitron_cli.checkpoint.writer import TensorSpec, size_on_disk, write_checkpoint
from minitron_cli.stacked_names import stacks, stored_shapes

PARTS = {f"w[{i}]": torch.arange(6.0).reshape(2, 3) + 10 * i for i in range(12)}
TENSORS = {"a": torch.ones(2), **PARTS, "scalar": torch.tensor(3.0)}
SPECS = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


def test_entries_are_in_the_order_of_their_numbers():
    assert stacks(["w[10]", "a", "w[2]"]) == {"w": ["w[2]", "w[10]"], "a": ["a"]}
    assert stored_shapes({"w[0]": (2, 3), "w[1]": (2, 3), "b": (4,)}) == {"w": (2, 2, 3), "b": (4,)}


def test_a_stack_is_one_tensor_on_disk_in_any_order_of_writing(tmp_path):
    specs = {name: SPECS[name] for name in sorted(SPECS, reverse=True)}  # "w[9]" before "w[10]"
    write_checkpoint(tmp_path, specs, lambda name: [TENSORS[name]])
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {"a", "w", "scalar"}
    assert torch.equal(found["w"], torch.stack(list(PARTS.values())))
    assert (tmp_path / "model.safetensors").stat().st_size == size_on_disk(specs)


def test_a_stack_is_never_divided_among_shards(tmp_path):
    write_checkpoint(tmp_path, SPECS, lambda name: [TENSORS[name]], max_shard_bytes=100)
    files = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert files.keys() == {"a", "w", "scalar"}
    assert load_file(tmp_path / files["w"])["w"].shape == (12, 2, 3)


def test_entries_are_read_where_they_lie(tmp_path):
    save_file({"w": torch.stack(list(PARTS.values())), "a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path).named(PARTS)
    assert checkpoint.tensors.keys() == {*PARTS, "a"}
    assert all(torch.equal(checkpoint.read(name), part) for name, part in PARTS.items())
    assert torch.equal(checkpoint.read_rows("w[3]", 1, 2), PARTS["w[3]"][1:])
