"""Signals on disk: what comes back, how large it is, and what no file depends on."""

# N position, V vocab

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minitron_cli.errors import RunFailed
from minitron_cli.signals import shards
from minitron_cli.signals.config import Sampled, TopK
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.shards import StoredSignals, Visit

VOCAB, EPOCHS = 300, 3
COUNTED = {4: 6, 9: 1, 2: 11}
"""Number of a block -> its counted positions."""
SAMPLED = Encoding(Sampled(draws=20), VOCAB, seed=1, temperature=2.0)
MOST = Encoding(TopK(k=5, allow_small_k=True), VOCAB)


def logits(block: int) -> torch.Tensor:
    return torch.randn(COUNTED[block], VOCAB, generator=torch.Generator().manual_seed(block)) * 3


def stored(directory: Path, encoding: Encoding, epochs: int = EPOCHS, split: int = 2) -> StoredSignals:
    """Signals of `COUNTED` in two shards."""
    made = {b: encoding.encoded(logits(b).split(4), b, np.arange(n), epochs) for b, n in COUNTED.items()}
    paths = [directory / shards.file_name("train", i) for i in range(2)]
    for path, blocks in zip(paths, (list(made)[:split], list(made)[split:]), strict=True):
        shards.write(path, {block: made[block] for block in blocks})
    return StoredSignals(paths, encoding)


def test_drawn_ids_come_back_in_any_order(tmp_path: Path) -> None:
    found = stored(tmp_path, SAMPLED).rows([Visit(2, 0), Visit(9, 2), Visit(4, 4)])
    assert found.entropy_N is not None
    wanted = [
        SAMPLED.decoded(SAMPLED.encoded(logits(b).split(4), b, np.arange(COUNTED[b]), EPOCHS)[e])
        for b, e in [(2, 0), (9, 2), (4, 1)]
    ]
    for rows, start in zip(wanted, (0, 11, 12), strict=True):
        width = rows.ids_NK.shape[1]
        part = found.part(slice(start, start + rows.tokens))
        assert torch.equal(part.ids_NK[:, :width], rows.ids_NK)
        assert not part.weights_NK[:, width:].any()
    assert found.temperature == 2.0
    p_NV = (torch.cat([logits(2), logits(9), logits(4)]) / 2).softmax(-1)
    torch.testing.assert_close(found.entropy_N, -(p_NV * p_NV.log()).sum(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.weights_NK.sum(-1), torch.ones(18))


def test_the_most_probable_come_back(tmp_path: Path) -> None:
    found = stored(tmp_path, MOST, epochs=1).rows([Visit(9, 0), Visit(4, 3)])
    wanted = F.softmax(torch.cat([logits(9), logits(4)]), -1).topk(5, -1)
    assert found.has_rest
    assert torch.equal(found.ids_NK, wanted.indices)
    assert ((found.weights_NK - wanted.values).abs() <= 1.6e-5 * wanted.values.sqrt()).all()


def test_each_pass_has_its_own_draws(tmp_path: Path) -> None:
    found = stored(tmp_path, SAMPLED)
    first, second, fourth = (found.rows([Visit(2, epoch)]) for epoch in (0, 1, 3))
    assert not torch.equal(first.ids_NK, second.ids_NK)
    assert torch.equal(first.ids_NK, fourth.ids_NK)


@pytest.mark.parametrize(("encoding", "epochs"), [(SAMPLED, EPOCHS), (MOST, 1)])
def test_size_is_as_counted(encoding: Encoding, epochs: int, tmp_path: Path) -> None:
    stored(tmp_path, encoding, epochs, split=2)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    positions = sum(COUNTED.values())
    ids = sum(shards.Shard(path, encoding).ids for path in tmp_path.iterdir())
    assert sum(shards.Shard(path, encoding).positions for path in tmp_path.iterdir()) == positions
    counted = positions * encoding.token_bytes(ids / positions / epochs, epochs) + len(COUNTED) * encoding.block_bytes(
        epochs
    )
    headers = sum(int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in tmp_path.iterdir())
    assert size - headers == pytest.approx(counted, abs=2 * 16 + 2 * 3 * epochs)  # ends of the tables, bits left over


def test_most_ids_of_few_positions_need_few_bytes() -> None:
    """About 35 bytes for 50 draws of a vocabulary of 152,000, and 540 for the 128 most probable."""
    assert Encoding(Sampled(), 151_936).token_bytes(12) == pytest.approx(35.25)
    assert Encoding(TopK(), 151_936).token_bytes(128) == pytest.approx(544)


@pytest.mark.parametrize("encoding", [SAMPLED, MOST], ids=["sampled", "top k"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_signals(encoding: Encoding, broken: float) -> None:
    """A student would learn from what is stored in their place."""
    bad = logits(4)
    bad[5, 17] = broken
    with pytest.raises(RunFailed, match="the teacher's logits are not finite"):
        encoding.encoded(bad.split(4), 4, np.arange(6), 1)


@pytest.mark.parametrize("encoding", [SAMPLED, MOST], ids=["sampled", "top k"])
def test_an_entry_that_cannot_come_is_no_fault(encoding: Encoding) -> None:
    masked = logits(4)
    masked[:, 17] = float("-inf")
    (made,) = encoding.encoded(masked.split(4), 4, np.arange(6), 1)
    rows = encoding.decoded(made)
    assert not ((rows.ids_NK == 17) & (rows.weights_NK > 0)).any()
