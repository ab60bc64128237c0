"""Calibration batches for tests: random tokens, every block packed with documents of its own lengths."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from minitron_cli.checkpoint import document_masks
from minitron_cli.data.batches import Batch
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.model.families import family_of
from minitron_cli.scores.scores import Scores

SAMPLES, TOKENS = 5, 14  # unlike each other and every axis of the tiny models


class Killed(Exception):
    """What a test raises in the middle of a pass."""


def samples(count: int = SAMPLES, tokens: int = TOKENS, *, seed: int = 0, documents: bool = True) -> Batch:
    """One batch of random blocks; each starts a second document somewhere, unless there shall be one only."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, 64, (count, tokens), generator=generator)
    positions_BT = torch.arange(tokens).repeat(count, 1)
    if documents:
        for row, start in enumerate(torch.randint(2, tokens - 2, (count,), generator=generator).tolist()):
            positions_BT[row, start:] -= start
    return Batch(ids_BT, positions_BT, tuple(range(count)))


def split(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """The same samples in batches of these sizes."""
    parts = zip(batch.input_ids_BT.split(list(sizes)), batch.position_ids_BT.split(list(sizes)), strict=True)
    return [Batch(ids_BT, positions_BT, tuple(range(len(ids_BT)))) for ids_BT, positions_BT in parts]


def calibrated(
    batches: Iterable[Batch],
    *,
    layer_removal=True,
    blocks=(),
    block_distances=(),
    pre_activation=False,
    removal_samples=64,
    removal_positions=64,
    **run,
) -> tuple[Calibration, ObserverOptions]:
    """A pass over the batches, and what is observed in it."""
    config = ImportanceConfig(
        layer_removal=layer_removal,
        blocks=blocks,
        block_distances=block_distances,
        pre_activation=pre_activation,
        removal_samples=removal_samples,
        removal_positions=removal_positions,
    )
    return Calibration(batches, **run), config.observer_options


def score(model, batches: Iterable[Batch], **options) -> Scores:
    document_masks.keep_documents_apart(model)  # as every model that the program loads does
    return collect(model, family_of(model.config), *calibrated(batches, **options))


def killed_after(batches: Sequence[Batch], count: int) -> Iterator[Batch]:
    yield from batches[:count]
    raise Killed
