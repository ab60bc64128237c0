import random

import pytest
import torch

from minitron_cli.data.batches import (
    Batches,
    batch,
    calibration_ids,
    evenly_spaced,
    is_predicted,
    rank_slice,
    training_ids,
)


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_epoch_visits_every_block_once(total):
    for epoch in range(4):
        assert sorted(training_ids(3, epoch * total, total, total)) == list(range(total))


def test_epochs_and_seeds_differ_in_order():
    orders = [tuple(training_ids(seed, epoch * 50, 50, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_the_order_does_not_depend_on_where_a_run_was_cut():
    whole = training_ids(1, 0, 500, 13)
    rng, position, pieces = random.Random(0), 0, []
    while position < 500:
        count = rng.randint(0, min(40, 500 - position))
        pieces += training_ids(1, position, count, 13)
        position += count
    assert pieces == whole


def test_the_order_is_the_same_for_ever():
    """A changed order would make a resumed run see some blocks twice and others never."""
    assert training_ids(0, 0, 20, 10) == [3, 2, 8, 4, 7, 9, 6, 0, 5, 1, 8, 0, 2, 6, 3, 4, 1, 5, 9, 7]
    assert calibration_ids(0, 10, 10) == [1, 5, 0, 6, 9, 7, 4, 8, 2, 3]


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_a_training_reads_the_calibration_blocks_last_in_its_first_epoch(total):
    for seed in range(3):
        order = training_ids(seed, 0, total, total)
        for count in range(1, total + 1):
            drawn = calibration_ids(seed, count, total)
            assert len(drawn) == count
            assert sorted(drawn) == sorted(order[total - count :])
            assert drawn == calibration_ids(seed, total, total)[:count]


def test_the_order_leaves_the_global_generator_alone_and_ignores_it():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ids = training_ids(77, 0, 5, 1001)
    assert torch.equal(torch.rand(3), expected)
    assert training_ids(77, 0, 5, 1001) == ids


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 20])
def test_the_world_size_changes_who_computes_a_sample_and_nothing_else(world):
    seen = {}
    for step in range(5):
        ids = training_ids(0, step * 16, 16, 37)
        parts = [rank_slice(ids, rank, world) for rank in range(world)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        seen |= {(step, j * world + rank): part[j] for rank, part in enumerate(parts) for j in range(len(part))}
    assert [seen[key] for key in sorted(seen)] == training_ids(0, 0, 80, 37)


class Counting:
    """Blocks of 3 tokens whose content tells their index."""

    def tokens(self, i: int) -> torch.Tensor:
        return torch.arange(3) + 10 * i

    def loss_mask(self, i):
        return None

    def positions(self, i: int) -> torch.Tensor:
        return torch.arange(3) + i


def test_a_batch_holds_the_blocks_that_were_asked_for_in_their_order():
    it = batch(Counting(), [4, 0, 4])
    assert it.input_ids_BT.tolist() == [[40, 41, 42], [0, 1, 2], [40, 41, 42]]
    assert it.position_ids_BT.tolist() == [[4, 5, 6], [0, 1, 2], [4, 5, 6]]
    assert it.sample_ids == (4, 0, 4)


def test_batches_hold_every_block_in_order_and_can_be_read_again():
    batches = Batches(Counting(), [4, 0, 2, 1, 3], 2)
    for _ in range(2):
        assert [part.sample_ids for part in batches] == [(4, 0), (2, 1), (3,)]
    assert [part.input_ids_BT[0, 0].item() for part in batches] == [40, 20, 30]


def test_a_token_is_predicted_from_its_own_document_where_the_loss_mask_has_it():
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 0, 1]])  # the second block starts inside a document
    assert is_predicted(positions, None).int().tolist() == [[1, 1, 0, 1], [1, 0, 0, 1]]
    loss_mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    assert is_predicted(positions, loss_mask).int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize(("count", "expected"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (2, [0, 2]), (1, [0])])
def test_evenly_spaced_blocks_start_at_the_first(count, expected):
    assert evenly_spaced(5, count) == expected
