"""Which positions count, against a plain loop."""

import torch

from minitron_cli.data.batches import Batch
from minitron_cli.distill.targets import documents, targets


def test_a_position_counts_if_its_document_goes_on_in_the_block() -> None:
    positions = [[0, 1, 2, 3, 4], [3, 4, 0, 1, 0], [0, 0, 0, 1, 2]]
    ids = [[10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34]]
    expected = [
        (b * 5 + t, ids[b][t + 1]) for b in range(3) for t in range(4) if positions[b][t + 1] == positions[b][t] + 1
    ]
    target = targets(Batch(torch.tensor(ids), torch.tensor(positions), (0, 1, 2)))
    assert list(zip(target.rows_N.tolist(), target.labels_N.tolist(), strict=True)) == expected
    assert len(expected) == 4 + 2 + 2


def test_a_position_counts_only_if_the_token_to_predict_does() -> None:
    ids, positions = torch.tensor([[10, 11, 12, 13]]), torch.tensor([[0, 1, 2, 3]])
    target = targets(Batch(ids, positions, (0,), torch.tensor([[True, False, True, True]])))
    assert target.rows_N.tolist() == [1, 2]
    assert target.labels_N.tolist() == [12, 13]


def test_documents_are_told_apart_within_a_sequence() -> None:
    positions = [[3, 4, 0, 1, 0], [0, 1, 2, 3, 4]]
    found = documents(Batch(torch.zeros(2, 5, dtype=torch.long), torch.tensor(positions), (0, 1)))
    same = found[:, :, None] == found[:, None, :]
    assert same[0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert same[1].all()
