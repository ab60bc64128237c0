"""Loss and KL of several children of one parent on a few blocks: quick, and with an error of their differences.

What the parent makes of the blocks is computed once. A head over a large vocabulary costs as much as many layers, so
only some positions of each block are predicted; and of a long block only the beginning is read.
"""

# B block of the batch, T token, D hidden, N counted prediction

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.data.batches import evenly_spaced, is_predicted
from minitron_cli.errors import DataError, RunFailed
from minitron_cli.evaluate.perplexity import (
    BlockBatch,
    DocumentSum,
    TokenBlocks,
    document_sums,
    final_hidden,
    items_of,
    read_batch,
)
from minitron_cli.evaluate.statistics import Items
from minitron_cli.model.lm_head import Predictions, head_of, token_values
from minitron_cli.results.prune import HeldOut

POSITIONS = 128  # of each block
READ = 512
"""Tokens of a block that are read, or more until `POSITIONS` of them are predicted."""
BATCH = 4  # blocks


@dataclass(frozen=True)
class ChildFigures:
    """One child on the blocks, in nats per token. Items of several children correspond."""

    loss: Items
    kl: Items

    @property
    def held_out(self) -> HeldOut:
        """Means with their standard errors."""
        return HeldOut(
            loss=self.loss.mean,
            kl=self.kl.mean,
            loss_stderr=self.loss.stderr,
            kl_stderr=self.kl.stderr,
            degrees_of_freedom=self.loss.degrees_of_freedom,
        )


class _Seen(NamedTuple):
    batch: BlockBatch
    is_counted_BT: Tensor
    """Whether each token but a block's first is predicted and counted, bool [B, T - 1]."""
    hidden_ND: Tensor
    """The parent's final hidden states."""


_Values = tuple[_Seen, Tensor]
"""A batch, and a value [N] of each counted prediction."""


class BesideParent:
    """A parent and blocks, on which its children are measured."""

    @torch.inference_mode()
    def __init__(self, parent: Any, blocks: TokenBlocks, ids: Sequence[int]) -> None:
        self._head = head_of(parent)
        self._seen: list[_Seen] = []
        with progress.track("parent on held-out text", len(ids), "blocks") as step:
            for start in range(0, len(ids), BATCH):
                batch = _beginning(read_batch(blocks, ids[start : start + BATCH]))
                is_counted_BT = _counted(batch)
                self._seen.append(_Seen(batch, is_counted_BT, _hidden(parent, batch, is_counted_BT)))
                step(len(batch.tokens_BT))
        if not self.tokens:
            raise DataError("held-out text has no predictable token: give longer documents")

    @property
    def tokens(self) -> int:
        """Predictions that are counted."""
        return sum(len(seen.hidden_ND) for seen in self._seen)

    @property
    def read(self) -> int:
        """Tokens that a model reads to be measured."""
        return sum(seen.batch.tokens_BT.numel() for seen in self._seen)

    @torch.inference_mode()
    def parent_loss(self) -> Items:
        """Loss of the parent."""
        values = (token_values(self._predictions(seen), _labels(seen, seen.hidden_ND)) for seen in self._seen)
        return _means([(seen, found.nll_N) for seen, found in zip(self._seen, values, strict=True)])

    @torch.inference_mode()
    def of(self, child: Any) -> ChildFigures:
        """Loss of a child, and its KL from the parent, by one forward pass. RunFailed if they are not finite."""
        head, losses, divergences = head_of(child), list[_Values](), list[_Values]()
        with progress.track("child on held-out text", len(self._seen), "batches") as step:
            for seen in self._seen:
                hidden_ND = _hidden(child, seen.batch, seen.is_counted_BT)
                found = token_values(Predictions(head, hidden_ND), _labels(seen, hidden_ND), self._predictions(seen))
                assert found.kl_N is not None
                losses.append((seen, found.nll_N))
                divergences.append((seen, found.kl_N))
                step()
        return ChildFigures(_means(losses), _means(divergences))

    def _predictions(self, seen: _Seen) -> Predictions:
        """The parent's."""
        return Predictions(self._head, seen.hidden_ND)


def inputs(has_loss_mask: bool) -> dict[str, str]:
    """What a stage that measures children on blocks names among its inputs; nothing where every token counts.

    Predictions were chosen among all tokens before; now among those that count.
    """
    return {"held_out": "of counted tokens"} if has_loss_mask else {}


def read_of(length: int) -> int:
    """Tokens that are read of a block of this length in which all count."""
    return min(length, READ)


def _beginning(batch: BlockBatch) -> BlockBatch:
    """What is read of some blocks."""
    counts_BT = is_predicted(batch.positions_BT, batch.loss_mask_BT).cumsum(1)
    needed = int((counts_BT < POSITIONS).sum(1).max()) + 2  # tokens up to the last block's prediction of that number
    return BlockBatch(*(each_BT[:, : max(READ, needed)] for each_BT in batch))


def _counted(batch: BlockBatch) -> Tensor:
    """Predictions of evenly spaced tokens among those that each block's loss mask has, bool [B, T - 1]."""
    chosen_BT = torch.zeros_like(batch.loss_mask_BT[:, 1:])
    for chosen_T, mask_T in zip(chosen_BT, batch.loss_mask_BT[:, 1:], strict=True):
        (scored_N,) = mask_T.nonzero(as_tuple=True)
        chosen_T[scored_N[evenly_spaced(len(scored_N), POSITIONS)]] = True
    return chosen_BT & is_predicted(batch.positions_BT, batch.loss_mask_BT)


def _hidden(model: Any, batch: BlockBatch, is_counted_BT: Tensor) -> Tensor:
    hidden_ND = final_hidden(model, batch)
    return hidden_ND[is_counted_BT.flatten().to(hidden_ND.device)]


def _labels(seen: _Seen, hidden_ND: Tensor) -> Tensor:
    """Labels [N] of what is counted, where the hidden states are."""
    return seen.batch.tokens_BT[:, 1:][seen.is_counted_BT].to(hidden_ND.device)


def _means(values: Sequence[_Values]) -> Items:
    """Means of parts of documents over their counted tokens."""
    sums, first = list[DocumentSum](), 0
    for seen, values_N in values:
        values_BT = torch.zeros(seen.is_counted_BT.shape, dtype=torch.float64)
        values_BT[seen.is_counted_BT] = values_N.cpu().double()
        sums += document_sums(first, seen.batch._replace(loss_mask_BT=_mask(seen)), values_BT)
        first += len(values_BT)
    found = items_of(sums)
    if not math.isfinite(found.mean):
        raise RunFailed("loss or KL is not finite: the weights or activations overflow; try --dtype float32")
    return found


def _mask(seen: _Seen) -> Tensor:
    """Loss mask [B, T] that lets count what is counted."""
    return torch.nn.functional.pad(seen.is_counted_BT, (1, 0))
