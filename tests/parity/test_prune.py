"""A child's weights against plain numpy indexing, tensor by tensor, and the memory that pruning takes."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.families.qwen3 import QWEN3
from minitron_cli.model.shape import Shape
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from tests.conformance.masked import random_survivors
from tests.tiny import tiny_model

HEADS = np.arange(64).reshape(8, 8)  # row h: the positions of query head h
GROUPS = np.arange(16).reshape(2, 8)
STATUS = Path("/proc/self/status")


def by_hand(tensors, pruning):
    """The child's tensors by parameter name: rows and columns to keep, layers renumbered."""
    everything = slice(None)
    child = {}
    for name, array in tensors.items():
        kind = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        layer = int(name.split(".")[2]) if ".layers." in name else None
        if layer is not None and layer not in pruning.layer:
            continue
        heads = layer is not None and HEADS[pruning.head[layer]].ravel()
        groups = layer is not None and GROUPS[pruning.kv_head[layer]].ravel()
        ffn = layer is not None and pruning.ffn[layer]
        out = {"q_proj": heads, "k_proj": groups, "v_proj": groups, "gate_proj": ffn, "up_proj": ffn}
        out |= dict.fromkeys(("embed_tokens", "lm_head", "q_norm", "k_norm"), everything)
        rows = out.get(kind, pruning.hidden)
        columns = {"o_proj": heads, "down_proj": ffn}.get(kind, pruning.hidden)
        array = array[rows] if array.ndim == 1 else array[rows][:, columns]
        child[name if layer is None else name.replace(f".{layer}.", f".{pruning.layer.index(layer)}.")] = array
    return child


@pytest.mark.parametrize(
    ("family", "seed"), [(LLAMA, 0), (LLAMA, 1), (QWEN3, 2)], ids=["llama", "llama again", "qwen3"]
)
def test_every_weight_is_where_indexing_puts_it(family, seed, tmp_path):
    model = tiny_model(family.model_type, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "parent")
    pruning = random_survivors(model.config, seed, layer=3, hidden=19, ffn=11, head=3, kv_head=1)
    kept = {axis: torch.tensor(getattr(pruning, axis)) for axis in ("layer", "hidden", "ffn", "head", "kv_head")}
    plan = PrunePlan(Shape.of(family, model.config), kept)
    (tmp_path / "child").mkdir()
    write_child(Checkpoint.open(tmp_path / "parent"), plan, tmp_path / "child")
    found = load_file(tmp_path / "child" / "model.safetensors")
    wanted = by_hand({n: t.numpy() for n, t in load_file(tmp_path / "parent" / "model.safetensors").items()}, pruning)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def wide_checkpoint(path, layers=1):
    """Matrices of 32 MiB, which are read in several blocks; written without holding more than one layer."""
    sizes = {"vocab": 64, "hidden": 1024, "layer": layers, "head": 16, "kv_head": 4, "head_dim": 512, "ffn": 4096}
    fields = {field: sizes[axis] for axis, field in LLAMA.sizes.items()}
    config = {"model_type": "llama", "tie_word_embeddings": True} | fields
    shape = Shape.of(LLAMA, type("Config", (), fields | {"tie_word_embeddings": True}))
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    weight_map, draw = {}, torch.Generator().manual_seed(0)
    for part in ["layers.{i}." for i in range(layers)] + [""]:
        prefix = part.format(i=len(set(weight_map.values())))
        names = [n for n in shape.tensors() if (prefix and prefix in n) or (not prefix and ".layers." not in n)]
        file = f"part-{len(set(weight_map.values()))}.safetensors"
        save_file({n: torch.rand(shape.tensors()[n], generator=draw) for n in names}, path / file)
        weight_map |= dict.fromkeys(names, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return Checkpoint.open(path), shape


@pytest.mark.slow
def test_blocks_of_which_nothing_survives(tmp_path):
    """The last groups only: the first block of q_proj is dropped whole."""
    checkpoint, shape = wide_checkpoint(tmp_path / "parent")
    plan = PrunePlan(
        shape, {"head": torch.tensor([[13, 15]]), "kv_head": torch.tensor([[3]]), "ffn": torch.tensor([[4095]])}
    )
    (tmp_path / "child").mkdir()
    write_child(checkpoint, plan, tmp_path / "child")
    found = load_file(tmp_path / "child" / "model.safetensors")
    layer = "model.layers.0."
    q = checkpoint.read(layer + "self_attn.q_proj.weight")
    assert q.nbytes == 32 << 20
    assert torch.equal(found[layer + "self_attn.q_proj.weight"], q.view(16, 512, 1024)[[13, 15]].reshape(1024, 1024))
    o = checkpoint.read(layer + "self_attn.o_proj.weight")
    assert torch.equal(found[layer + "self_attn.o_proj.weight"], o.view(1024, 16, 512)[:, [13, 15]].reshape(1024, 1024))
    assert torch.equal(found[layer + "mlp.up_proj.weight"], checkpoint.read(layer + "mlp.up_proj.weight")[-1:])


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="macOS does not tell anonymous memory apart")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """A checkpoint of 690 MB is pruned in pieces of a megabyte, a few of them at a time."""
    checkpoint, shape = wide_checkpoint(tmp_path / "parent", layers=5)
    assert checkpoint.size_bytes > 600e6
    plan = PrunePlan(shape, {"hidden": torch.arange(0, 1024, 2), "ffn": torch.arange(0, 4096, 2).repeat(5, 1)})
    (tmp_path / "child").mkdir()
    before, done, peak = anonymous_bytes(), threading.Event(), [0]

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_child(checkpoint, plan, tmp_path / "child")
    done.set()
    watcher.join()
    assert 0 < peak[0] - before < 24 << 20


def anonymous_bytes():
    """Memory that is the process's own: mapped files do not count."""
    status = STATUS.read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
