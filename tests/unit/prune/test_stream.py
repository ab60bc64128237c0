"""The streamed child, bit by bit, against numpy indexing: every dtype, block size, number of threads and shards."""

import json
import os
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minitron_cli import io, progress
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import CheckpointError, Interrupted
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.shape import Shape
from minitron_cli.prune import slicing, stream
from minitron_cli.prune.plan import HeadResidual, PrunePlan
from tests.quick import first_quick

SIZES = {"vocab": 29, "hidden": 15, "layer": 3, "head": 6, "kv_head": 3, "head_dim": 5, "ffn": 37}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64)


def parent(path, dtype=torch.bfloat16, **sizes):
    """Weights that are any bits of finite numbers, negative zeros and subnormal numbers among them."""
    fields = {LLAMA.sizes[axis]: size for axis, size in (SIZES | sizes).items()} | {"tie_word_embeddings": False}
    shape = Shape.of(LLAMA, type("Config", (), fields))
    draw = torch.Generator().manual_seed(len(sizes))

    def weight(size):
        bits = torch.randint(0, 256, (*size, dtype.itemsize), dtype=torch.uint8, generator=draw)
        numbers = bits.view(dtype).squeeze(-1)
        return torch.where(torch.isfinite(numbers.double()), numbers.double(), -0.0).to(dtype)

    path.mkdir()
    write_safetensors(path / "model.safetensors", {name: weight(size) for name, size in shape.tensors().items()})
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))
    return Checkpoint.open(path), shape


def random_plan(shape, draw, axes):
    def some(size, count):
        return sorted(draw.choice(size, count, replace=False).tolist())

    kept, layers = {}, shape.sizes["layer"]
    for axis in axes:
        count = int(draw.integers(1, shape.sizes[axis] + 1))
        rows = 1 if axis in ("hidden", "layer") else layers
        picked = torch.tensor([some(shape.sizes[axis], count) for _ in range(rows)])
        kept[axis] = picked[0] if axis in ("hidden", "layer") else picked
    return PrunePlan(shape, kept)


def indexed(checkpoint, plan):
    """The child's bits, by the plan's indices and nothing else."""
    child = {}
    for name in checkpoint.tensors:
        if (new := plan.child_name(name)) is not None:
            bits = checkpoint.read(name).unsqueeze(-1).view(torch.uint8).numpy()
            places = zip(plan.indices(name), bits.shape, strict=False)
            child[new] = bits[np.ix_(*(np.arange(n) if kept is None else kept.numpy() for kept, n in places))]
    return child


def written(checkpoint, plan, directory, **options):
    directory.mkdir()
    stream.write_child(checkpoint, plan, directory, **options)
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return {name: tensor.unsqueeze(-1).view(torch.uint8).numpy() for name, tensor in found.items()}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "block_bytes", first_quick([64, 1, 500, 1 << 20])
)  # less than a row, some rows, a whole tensor
@pytest.mark.parametrize("dtype", first_quick(DTYPES, 2), ids=str)
def test_every_bit_is_where_indexing_puts_it(tmp_path, monkeypatch, threads, dtype, block_bytes):
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    checkpoint, shape = parent(tmp_path / "parent", dtype)
    draw = np.random.default_rng(block_bytes)
    for i, axes in enumerate([("ffn",), ("hidden",), ("head",), ("hidden", "ffn", "layer"), ()]):
        plan = random_plan(shape, draw, axes)
        threads(1 + i % 3)
        wanted = indexed(checkpoint, plan)
        assert same(written(checkpoint, plan, tmp_path / str(i), max_shard_bytes=(1, 3000, 10**9)[i % 3]), wanted)
        in_memory = stream.prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
        assert same({n: t.unsqueeze(-1).view(torch.uint8).numpy() for n, t in in_memory.items()}, wanted)


@pytest.mark.parametrize("kept", [[0], [14], [3, 9], [0, 14], list(range(15))])
def test_a_single_column_and_the_corners(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 100)
    checkpoint, shape = parent(tmp_path / "parent")
    ffn = torch.tensor([[0], [36], [18]])  # a single row: of most blocks nothing survives
    plan = PrunePlan(shape, {"hidden": torch.tensor(kept), "ffn": ffn})
    assert same(written(checkpoint, plan, tmp_path / "child"), indexed(checkpoint, plan))


def test_three_dims_are_selected_alike():
    block = torch.randn(4, 5, 6)
    survivors = (torch.tensor([1, 3]), torch.tensor([0, 2, 4]), torch.tensor([5]))
    assert torch.equal(slicing.select(block, survivors), block[[1, 3]][:, [0, 2, 4]][:, :, [5]])


def test_threads_shards_and_blocks_do_not_show(tmp_path, monkeypatch, threads):
    """The same files, byte for byte."""
    checkpoint, shape = parent(tmp_path / "parent")
    plan, seen = random_plan(shape, np.random.default_rng(0), ("hidden", "ffn")), set()
    for i, (count, block_bytes) in enumerate([(1, 1 << 20), (3, 64), (2, 1000)]):
        threads(count)
        monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
        written(checkpoint, plan, tmp_path / str(i), max_shard_bytes=2000)
        seen.add(tuple((p.name, p.read_bytes()) for p in sorted((tmp_path / str(i)).iterdir())))
        assert torch.get_num_threads() == count  # as it was
    assert len(seen) == 1


def test_rows_that_go_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 10 * 15 * 2)  # ten rows of up_proj
    checkpoint, shape = parent(tmp_path / "parent")
    plan = PrunePlan(shape, {"ffn": torch.tensor([[3, 5, 31], [3, 5, 31], [3, 5, 31]])})
    read, original = [], Checkpoint.read_rows

    def noted(self, name, start, stop, *buffer):
        read.append((name, start, stop))
        return original(self, name, start, stop, *buffer)

    monkeypatch.setattr(Checkpoint, "read_rows", noted)
    written(checkpoint, plan, tmp_path / "child")
    name = "model.layers.1.mlp.up_proj.weight"
    assert sorted(r for r in read if r[0] == name) == [(name, 3, 6), (name, 31, 32)]


def test_what_a_worker_meets_is_what_is_raised(tmp_path, monkeypatch, threads):
    """The first error ends the others; no thread writes on, no file stays open, the torch threads are as before."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 64)
    threads(3)
    checkpoint, shape = parent(tmp_path / "parent")
    seen, before, original = [], set(os.listdir("/dev/fd")), Checkpoint.read_rows

    def failing(self, name, start, stop, *buffer):
        seen.append(name)
        if len(seen) == 20:
            raise CheckpointError("became shorter while it was read")
        return original(self, name, start, stop, *buffer)

    monkeypatch.setattr(Checkpoint, "read_rows", failing)
    (tmp_path / "child").mkdir()
    running = threading.active_count()
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        stream.write_child(checkpoint, PrunePlan(shape, {}), tmp_path / "child")
    assert 20 <= len(seen) < 40
    assert threading.active_count() == running
    assert torch.get_num_threads() == 3
    assert set(os.listdir("/dev/fd")) == before


def test_a_stop_ends_it_between_two_pieces(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 64)
    threads(2)
    checkpoint, shape = parent(tmp_path / "parent")
    writes = []

    class Counted(io.Disk):
        def write(self, fd, data, offset):
            writes.append(offset)
            if len(writes) == 10:
                progress.request_stop(15)
            return super().write(fd, data, offset)

    monkeypatch.setattr(io, "disk", Counted())
    (tmp_path / "child").mkdir()
    running = threading.active_count()
    with pytest.raises(Interrupted):
        stream.write_child(checkpoint, PrunePlan(shape, {}), tmp_path / "child")
    assert len(writes) < 40
    assert threading.active_count() == running


def test_progress_counts_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 64)
    checkpoint, shape = parent(tmp_path / "parent")
    plan, steps, totals = random_plan(shape, np.random.default_rng(1), ("ffn", "hidden")), [], []

    class Display:
        def start(self, title, total, unit):
            totals.append((title, total, unit))
            return lambda n=1, **figures: steps.append(n)

        def finish(self, step):
            pass

    progress.show_on(Display())
    written(checkpoint, plan, tmp_path / "child")
    assert totals == [("prune", plan.child.parameters() * 2, "bytes")]
    assert sum(steps) == totals[0][1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_numbers_are_numbers(dtype):
    """Though their sum is none."""
    for value in (torch.finfo(dtype).max, torch.finfo(dtype).min):
        slicing.check_finite("w", torch.full((1000,), value, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_that_is_none_is_found_anywhere(dtype):
    values = [float("nan")] if dtype == torch.float8_e4m3fn else [float("nan"), float("inf"), float("-inf")]
    for value in values:
        for place in (0, 1, 500, 998, 999):
            block = torch.ones(1000)
            block[place] = value
            with pytest.raises(CheckpointError, match="tensor 'w' holds NaN or infinity"):
                slicing.check_finite("w", block.to(dtype))
    block = torch.zeros(1000).to(dtype)
    if len(values) > 1:
        block[3], block[700] = float("inf"), float("-inf")  # which would add up to NaN
        with pytest.raises(CheckpointError):
            slicing.check_finite("w", block)


def test_numbers_that_are_too_large_once_they_are_merged_are_no_damage(tmp_path):
    """The export check refuses them; the parent is not to be downloaded again."""
    checkpoint, shape = parent(tmp_path / "parent", torch.float16)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for name in tensors:
        if "q_proj" in name:
            tensors[name] = torch.full((6, 5, 15), 6e4, dtype=torch.float16)
            tensors[name][1::2] *= -1  # every other head
            tensors[name] = tensors[name].flatten(0, 1)
    (tmp_path / "parent" / "model.safetensors").unlink()
    write_safetensors(tmp_path / "parent" / "model.safetensors", tensors)
    heads = torch.tensor([[0, 2, 4]] * 3)
    plan = PrunePlan(shape, {"head": heads}, HeadResidual(heads + 1, 1))
    child = written(Checkpoint.open(tmp_path / "parent"), plan, tmp_path / "child")
    assert torch.tensor(child["model.layers.0.self_attn.q_proj.weight"]).view(torch.float16).isinf().all()


def test_a_number_that_is_none_is_the_parents_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 100)  # three rows, of which the first goes
    checkpoint, shape = parent(tmp_path / "parent")
    name, plan = "model.layers.1.mlp.up_proj.weight", PrunePlan(shape, {"ffn": torch.tensor([[4, 5]] * 3)})
    info = checkpoint.tensors[name]
    with open(info.file, "r+b") as file:
        file.seek(info.start + 2 * (5 * 15 + 14))
        file.write(b"\xc0\x7f")  # NaN
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN or infinity: the checkpoint is damaged"):
        written(checkpoint, plan, tmp_path / "child")


def test_indices_are_no_weights():
    slicing.check_finite("w", torch.arange(5))
