import errno
import itertools
import json
import os
import random
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from minitron_cli import io
from minitron_cli.checkpoint import safetensors_file
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.checkpoint.safetensors_file import DTYPES, read_header, read_safetensors
from minitron_cli.checkpoint.writer import TensorSpec, replace_safetensors, write_checkpoint, write_safetensors


def of_every_dtype():
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        values = torch.randint(0, 2 if dtype == torch.bool else 100, (3, 5), generator=draw)
        tensors[name] = values.to(torch.float32).to(dtype) if dtype.is_floating_point else values.to(dtype)
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "long": torch.arange(1000)}


def test_safetensors_reads_what_is_written(tmp_path):
    tensors = of_every_dtype()
    write_safetensors(tmp_path / "f", tensors)
    found, ours = load_file(tmp_path / "f"), read_safetensors(tmp_path / "f")
    assert found.keys() == ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for other in (found[name], ours[name]):
            assert other.dtype == tensor.dtype
            assert torch.equal(
                other.view(torch.uint8) if other.ndim else other, tensor.view(torch.uint8) if tensor.ndim else tensor
            )


def test_a_tensor_is_read_in_parts_that_every_system_accepts(tmp_path, monkeypatch):
    """macOS refuses to read 2 GiB or more at once."""
    read = os.preadv

    def refusing(fd, buffers, offset):
        if sum(map(len, buffers)) > 1000:
            raise OSError(errno.EINVAL, "Invalid argument")
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)
    monkeypatch.setattr(safetensors_file, "READ_BYTES", 1000)
    tensor = torch.arange(501)
    write_safetensors(tmp_path / "f", {"long": tensor})
    assert torch.equal(read_safetensors(tmp_path / "f")["long"], tensor)


def test_transformers_finds_the_format_it_asks_for(tmp_path):
    write_safetensors(tmp_path / "f", {"a": torch.zeros(1)})
    with safe_open(tmp_path / "f", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_payloads_are_aligned(tmp_path):
    for length in range(1, 12):
        write_safetensors(tmp_path / str(length), {"n" * length: torch.zeros(3)})
        (info,) = read_header(tmp_path / str(length)).values()
        assert info.start % 8 == 0


def test_bytes_do_not_depend_on_the_order_of_a_mapping(tmp_path):
    tensors = of_every_dtype()
    write_safetensors(tmp_path / "f", tensors)
    names = list(tensors)
    for i in range(5):
        random.Random(i).shuffle(names)
        write_safetensors(tmp_path / str(i), {name: tensors[name] for name in names})
        assert (tmp_path / str(i)).read_bytes() == (tmp_path / "f").read_bytes()


def test_views_are_written_as_they_look(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "t": base.T,
        "rows": base[::2],
        "one": base[1],
        "expanded": base[:1].expand(3, 6),
        "grad": base.clone().requires_grad_(),
    }
    write_safetensors(tmp_path / "f", views)
    found = read_safetensors(tmp_path / "f")
    assert all(torch.equal(found[name], view) for name, view in views.items())


def test_a_stream_may_come_in_any_pieces(tmp_path):
    tensor = torch.arange(60.0).reshape(10, 6)
    specs = {"w": TensorSpec((10, 6), torch.float32)}
    for i, pieces in enumerate([[10], [3, 7], [0, 1, 9, 0], [1] * 10]):
        (tmp_path / str(i)).mkdir()
        write_checkpoint(tmp_path / str(i), specs, lambda name, pieces=pieces: tensor.split(pieces))
        assert torch.equal(load_file(tmp_path / str(i) / "model.safetensors")["w"], tensor)


def test_blocks_are_let_go(tmp_path):
    alive = []

    def content(name):
        for _ in range(4):
            block = torch.zeros(2, 3)
            assert sum(one() is not None for one in alive) <= 1  # the one that was just written
            alive.append(weakref.ref(block))
            yield block
            del block

    write_checkpoint(tmp_path, {"w": TensorSpec((8, 3), torch.float32)}, content)
    assert len(alive) == 4


@pytest.mark.parametrize(
    ("blocks_of", "says"),
    [
        ([torch.zeros(2, 3)], "do not add up"),
        ([torch.zeros(9, 3)], "do not add up"),
        ([], "do not add up"),
        ([torch.zeros(8, 3, dtype=torch.float64)], "the header says"),
    ],
)
def test_what_contradicts_the_header_is_our_own_mistake(tmp_path, blocks_of, says):
    with pytest.raises(AssertionError, match=says):
        write_checkpoint(tmp_path, {"w": TensorSpec((8, 3), torch.float32)}, lambda name: blocks_of)


@pytest.mark.parametrize("limit", [1, 40, 41, 100, 120, 10**9])
def test_shards_are_as_large_as_they_may_be(tmp_path, limit):
    sizes = [10, 3, 7, 1, 10, 2, 2]
    tensors = {f"t{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_checkpoint(tmp_path, specs, lambda name: [tensors[name]], max_shard_bytes=limit)
    shards = sorted(tmp_path.glob("*.safetensors"))
    held = [[4 * len(t) for t in load_file(shard).values()] for shard in shards]
    assert all(sum(shard) <= limit or len(shard) == 1 for shard in held)
    assert all(sum(one) + other[0] > limit for one, other in itertools.pairwise(held))
    if len(shards) == 1:
        assert shards[0].name == "model.safetensors"
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * sum(sizes)}
    assert list(index["weight_map"]) == sorted(tensors)
    assert [s.name for s in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize("shape", [(10, 6), (1, 6), (7,), (), (0, 6), (6, 0), (4, 3, 2)])
def test_blocks_cover_a_tensor_in_order(tmp_path, shape, subtests):
    tensor = torch.rand(shape)
    write_safetensors(tmp_path / "model.safetensors", {"w": tensor})
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    for block_bytes in (1, 24, 25, 100, 10**6):
        with subtests.test(block_bytes=block_bytes):
            check_blocks(list(blocks(checkpoint, "w", block_bytes)), tensor, block_bytes)


def check_blocks(found, tensor, block_bytes):
    if tensor.ndim < 2:
        assert [start for start, _ in found] == [0]
        assert torch.equal(found[0][1], tensor)
        return
    row_bytes = 4 * tensor[:1].numel()
    assert all(block.nbytes <= max(block_bytes, row_bytes) for _, block in found)
    assert torch.equal(torch.cat([block for _, block in found]) if found else tensor[:0], tensor)
    assert [start for start, _ in found] == [sum(len(b) for _, b in found[:i]) for i in range(len(found))]


def test_a_file_that_cannot_be_replaced_stays_alone(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "state.safetensors"
    replace_safetensors(path, {"a": torch.zeros(2)})
    replace_safetensors(path, {"a": torch.ones(2)})
    for call in ("reserve", "write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(io.disk, call, full)
            with pytest.raises(OSError, match="full"):
                replace_safetensors(path, {"a": torch.zeros(2)})
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(read_safetensors(path)["a"], torch.ones(2))
