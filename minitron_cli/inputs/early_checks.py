"""Checks of a model's files that need no forward pass, so that none is wasted on a model that fails them later."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.errors import CheckpointError
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check(checkpoint: Checkpoint, config: "PretrainedConfig", shape: Shape) -> None:
    """Raise CheckpointError for a head that config.json ties to other numbers, or an invalid generation config."""
    _check_ties(checkpoint, shape)
    hf.check_generation_config(checkpoint.path)


def _check_ties(checkpoint: Checkpoint, shape: Shape) -> None:
    stored = shape.tensors()
    for copy, original in shape.family.tied.items():
        if copy not in stored and copy in checkpoint.tensors and not _is_same(checkpoint, copy, original):
            raise CheckpointError(
                f"{copy} differs from {original} though config.json ties them: set tie_word_embeddings to false"
            )


def _is_same(checkpoint: Checkpoint, copy: str, original: str) -> bool:
    pairs: Iterable[tuple[tuple[int, Tensor], tuple[int, Tensor]]] = zip(
        blocks(checkpoint, copy), blocks(checkpoint, original), strict=True
    )
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)
