"""Several children beside one parent, against plain logits of whole blocks."""

import copy

import numpy as np
import pytest
import torch

from minitron_cli.errors import DataError, RunFailed
from minitron_cli.evaluate import beside_parent
from minitron_cli.evaluate.beside_parent import BesideParent
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.evaluate.statistics import compare
from tests.unit.evaluate.conftest import Blocks


@pytest.fixture
def child(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight.mul_(0.2)
    return changed


@torch.no_grad()
def by_token(model, parent, blocks, i):
    """Loss and KL of every predicted position of a block, [T - 1] each."""
    inputs = {"input_ids": blocks.tokens(i)[None], "position_ids": blocks.positions(i)[None], "use_cache": False}
    own, wanted = (m(**inputs).logits[0, :-1].double().log_softmax(-1) for m in (model, parent))
    loss = -own.gather(1, blocks.tokens(i)[1:, None])[:, 0]
    return loss, (wanted.exp() * (wanted - own)).sum(-1)


def test_on_all_positions_they_are_the_usual_figures(model, child, blocks):
    beside = BesideParent(model, blocks, range(len(blocks)))
    found = beside.of(child)
    assert found.loss.mean == pytest.approx(perplexity(child, blocks).loss_nats, rel=1e-6)
    assert found.kl.mean == pytest.approx(kl_to_parent(child, model, blocks).kl_nats, rel=1e-5)
    assert found.kl.stderr == pytest.approx(kl_to_parent(child, model, blocks).stderr_nats, rel=1e-4)
    assert beside.parent_loss().mean == pytest.approx(perplexity(model, blocks).loss_nats, rel=1e-6)
    assert (beside.tokens, beside.read) == (5 * 23 - 1, 5 * 24)


def test_of_some_positions_of_some_blocks_they_are_the_means(model, child, blocks, monkeypatch):
    monkeypatch.setattr(beside_parent, "POSITIONS", 4)
    monkeypatch.setattr(beside_parent, "BATCH", 2)
    ids = [0, 1, 3]
    mask = torch.rand(5, 24, generator=torch.Generator().manual_seed(0)) < 0.7
    masked = Blocks(blocks.tokens_NT)
    masked.loss_mask = lambda i: mask[i]
    beside, expected = BesideParent(model, masked, ids), []
    for i in ids:
        scored = [t for t in range(23) if mask[i, t + 1]]
        counts = [scored[k * len(scored) // 4] for k in range(4)]
        expected += zip(*(figure[counts].tolist() for figure in by_token(child, model, masked, i)), strict=True)
    found = beside.of(child)
    assert len(expected) == beside.tokens == 12
    assert (found.loss.mean, found.kl.mean) == pytest.approx(np.mean(expected, axis=0), rel=1e-5)


def test_where_every_token_counts_evenly_spaced_tokens_are_predicted(model, child, blocks, monkeypatch):
    monkeypatch.setattr(beside_parent, "POSITIONS", 5)
    beside, expected = BesideParent(model, blocks, [2]), []
    for t in (0, 4, 9, 13, 18):  # of 23 predictions
        expected += [by_token(child, model, blocks, 2)[0][t].item()] if blocks.positions(2)[t + 1] != 0 else []
    assert beside.of(child).loss.mean == pytest.approx(np.mean(expected), rel=1e-5)
    assert beside.tokens == len(expected)


def test_short_answers_between_evenly_spaced_tokens_are_counted(model, blocks, monkeypatch):
    monkeypatch.setattr(beside_parent, "POSITIONS", 3)
    chat, mask = Blocks(blocks.tokens_NT), torch.zeros(24, dtype=torch.bool)
    mask[[4, 5, 6, 20, 21, 22]] = True  # the evenly spaced tokens are 1, 8 and 16
    chat.loss_mask = lambda i: mask
    assert BesideParent(model, chat, [0, 1]).tokens == 2 * 3


def test_of_long_blocks_the_beginning_is_read(model, child, blocks, monkeypatch):
    monkeypatch.setattr(beside_parent, "POSITIONS", 4)
    monkeypatch.setattr(beside_parent, "READ", 10)
    cut = Blocks(blocks.tokens_NT[:, :10])
    cut.positions = lambda i: blocks.positions(i)[:10]
    cut.documents = lambda i: blocks.documents(i)[:10]
    long, short = (BesideParent(model, text, [0, 1, 3]) for text in (blocks, cut))
    assert (long.read, long.tokens) == (short.read, short.tokens) == (30, 12)
    found, expected = long.of(child), short.of(child)
    assert (found.loss.mean, found.kl.mean) == (expected.loss.mean, expected.kl.mean)
    assert (found.loss.stderr, found.kl.stderr) == (expected.loss.stderr, expected.kl.stderr)


def test_as_much_is_read_as_predictions_need(model, blocks, monkeypatch):
    """The answers of a chat may come late: the third of these is token 17 of block 1."""
    monkeypatch.setattr(beside_parent, "POSITIONS", 3)
    monkeypatch.setattr(beside_parent, "READ", 4)
    late = Blocks(blocks.tokens_NT)
    masks = torch.zeros(5, 24, dtype=torch.bool)
    masks[0, 5:20], masks[1, [8, 15, 17, 22]] = True, True
    late.loss_mask = lambda i: masks[i]
    late.positions = lambda i: torch.arange(24)
    assert BesideParent(model, late, [0, 1]).read == 2 * 18
    assert BesideParent(model, late, [0]).read == 8
    masks[1, 17:] = False  # two are all that there are
    assert BesideParent(model, late, [1]).read == 24


def test_a_difference_of_children_has_the_error_of_the_pairs(model, child, blocks):
    """Two children that are nearly the same differ by far less than either is uncertain."""
    beside, near = BesideParent(model, blocks, range(len(blocks))), copy.deepcopy(child)
    with torch.no_grad():
        near.model.layers[1].mlp.down_proj.weight.mul_(1.01)
    one, other = (beside.of(m).kl for m in (child, near))
    assert compare(one, other).stderr < one.stderr / 10


def test_the_parent_runs_once(model, child, blocks):
    runs = []
    beside = BesideParent(model, blocks, range(len(blocks)))
    with model.get_decoder().register_forward_hook(lambda *_: runs.append(1)):
        beside.of(child)
    assert not runs


def test_what_cannot_be_measured_is_refused(model, child, blocks):
    starts = Blocks(blocks.tokens_NT)
    starts.positions = lambda i: torch.zeros(24, dtype=torch.long)
    with pytest.raises(DataError, match="no predictable token"):
        BesideParent(model, starts, [0, 1])
    with torch.no_grad():
        child.model.norm.weight.fill_(float("inf"))
    with pytest.raises(RunFailed, match="not finite"):
        BesideParent(model, blocks, [0]).of(child)
