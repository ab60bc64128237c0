"""What the least important query heads that stay take from those that go, against the printed formula in a loop."""

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune import stream
from minitron_cli.prune.config import PruneConfig, Ranking
from minitron_cli.prune.plan import make_plan
from minitron_cli.prune.stream import prune_in_memory, write_child
from tests.tiny import tiny_model

HEAD_DIM, PER_GROUP = 8, 4


class Given:
    """Scores of heads, with ties."""

    def __init__(self, seed):
        self.scores = torch.randint(0, 5, (4, 8), generator=torch.Generator().manual_seed(seed)).float()

    def select(self, axis, metric):
        return self.scores if axis == "head" else torch.arange(4.0 * 48).reshape(4, 48)


def printed(query, scores, kept_groups, kept):
    """[kept heads of all groups] weights: head i + (head i - head 2K-i+1), places counted from 1, best first."""
    heads = []
    for group in kept_groups:
        own = list(range(group * PER_GROUP, (group + 1) * PER_GROUP))
        place = dict(enumerate(sorted(own, key=lambda h: (-scores[h], h)), start=1))
        new = {}
        for i in range(1, kept + 1):
            partner = 2 * kept - i + 1
            new[place[i]] = 2 * query[place[i]] - query[place[partner]] if partner <= PER_GROUP else query[place[i]]
        heads += [new[h] for h in sorted(new)]
    return torch.cat(heads)


@pytest.fixture(scope="module", params=["llama", "phi3"])
def parent(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("parent")
    model = tiny_model(request.param, hidden_size=48)  # a multiple of every number of heads
    model.save_pretrained(path)
    return Shape.of(family_of(model.config), model.config), Checkpoint.open(path)


def query_name(checkpoint, layer):
    attention = f"model.layers.{layer}.self_attn."
    return next(attention + n for n in ("q_proj.weight", "qkv_proj.weight") if attention + n in checkpoint.tensors)


@pytest.mark.parametrize("sizes", [{"head": 2}, {"head": 4}, {"head": 6}, {"head": 3, "kv_head": 1}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_paper_s_residual_is_as_printed(parent, sizes, seed, tmp_path):
    shape, checkpoint = parent
    scores = Given(seed)
    plan = make_plan(shape, shape.resize(**sizes), scores, Ranking(head_residual="paper"))
    plain = make_plan(shape, shape.resize(**sizes), scores, Ranking())
    child = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    without = prune_in_memory(plain, checkpoint.tensors, checkpoint.read)
    rows = sizes["head"] * HEAD_DIM
    for layer in range(4):
        name = query_name(checkpoint, layer)
        query = checkpoint.read(name)[: 8 * HEAD_DIM].split(HEAD_DIM)
        groups = plan.kept["kv_head"][layer].tolist() if "kv_head" in plan.kept else [0, 1]
        expected = printed(query, scores.scores[layer], groups, sizes["head"] // len(groups))
        torch.testing.assert_close(child[name][:rows], expected)
        assert not torch.equal(child[name][:rows], without[name][:rows])
        assert torch.equal(child[name][rows:], without[name][rows:])  # keys and values of a fused matrix
        if (bias := name.replace("weight", "bias")) in child:
            parts = checkpoint.read(bias).split(HEAD_DIM)
            torch.testing.assert_close(
                child[bias], printed(parts, scores.scores[layer], groups, sizes["head"] // len(groups))
            )
    others = [name for name in child if "q_proj" not in name and "qkv_proj" not in name]
    assert all(torch.equal(child[name], without[name]) for name in others)
    write_child(checkpoint, plan, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], child[name]) for name in child)


@pytest.mark.parametrize("block_bytes", [1, 500, 3000])
def test_heads_and_their_partners_are_read_a_few_rows_at_a_time(parent, tmp_path, monkeypatch, block_bytes):
    shape, checkpoint = parent
    plan = make_plan(shape, shape.resize(head=6), Given(0), Ranking(head_residual="paper"))
    wanted = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    read, original = [], Checkpoint.read_rows

    def noted(self, name, start, stop, *buffer):
        read.append((name, start, stop))
        return original(self, name, start, stop, *buffer)

    monkeypatch.setattr(Checkpoint, "read_rows", noted)
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    write_child(checkpoint, plan, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    row_bytes = 4 * shape.sizes["hidden"]
    name = query_name(checkpoint, 1)
    longest = max(stop - start for n, start, stop in read if n == name)
    assert longest <= max(1, block_bytes // row_bytes) + PER_GROUP * HEAD_DIM


def test_laco_has_the_other_sign(parent):
    """q + (q' - q): with one partner, the partner itself."""
    shape, checkpoint = parent
    paper, laco, none = (
        prune_in_memory(
            make_plan(shape, shape.resize(head=4), Given(1), Ranking(head_residual=kind)),
            checkpoint.tensors,
            checkpoint.read,
        )
        for kind in ("paper", "laco", "none")
    )
    for layer in range(4):
        name = query_name(checkpoint, layer)
        torch.testing.assert_close(paper[name] + laco[name], 2 * none[name])


def test_weights_in_low_precision_are_added_up_in_fp32(tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    checkpoint, shape = Checkpoint.open(tmp_path), Shape.of(family_of(model.config), model.config)
    plan = make_plan(shape, shape.resize(head=4), Given(0), Ranking(head_residual="paper"))
    name = query_name(checkpoint, 0)
    query = checkpoint.read(name).float().split(HEAD_DIM)
    expected = printed(query, Given(0).scores[0], [0, 1], 2).bfloat16()
    assert torch.equal(prune_in_memory(plan, [name], checkpoint.read)[name], expected)


def test_rounds_and_a_residual_exclude_each_other():
    with pytest.raises(ValueError, match="head_residual changes weights, and rounds carry over only indices"):
        PruneConfig(shape={"head": 4}, rounds=2, ranking=Ranking(head_residual="paper"))
