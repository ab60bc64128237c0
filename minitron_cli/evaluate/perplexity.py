"""Loss on token blocks, and KL divergence from another model's predictions. Knows models and tokens, no files.

Blocks are packed documents: position ids restart at each document and no attention mask is passed, so a token attends
to its own document only. Not counted are the first token of a document, which has no context, and tokens outside the
loss mask (the questions of a chat). Logits are computed for a few hundred tokens at a time.

Standard errors are clustered by document, since tokens of a document are correlated. If one document outweighs the
others, they are those of its blocks, and describe other parts of these texts rather than other texts.
"""

# B block of the batch, T token, D hidden, V vocab, N = B * (T - 1) predictions, C chunk of N, I item

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.data.batches import evenly_spaced, is_predicted
from minitron_cli.decoder import decoder_of
from minitron_cli.errors import DataError, RunFailed
from minitron_cli.evaluate.statistics import Items, errors, exponential
from minitron_cli.model.lm_head import Predictions, head_of, token_values
from minitron_cli.results.evaluation import MetricResult


class TokenBlocks(Protocol):
    """Blocks of packed documents, all of one length."""

    def __len__(self) -> int: ...

    def tokens(self, i: int, /) -> Tensor: ...

    def positions(self, i: int, /) -> Tensor: ...

    def documents(self, i: int, /) -> Tensor: ...

    def loss_mask(self, i: int, /) -> Tensor | None: ...


@dataclass(frozen=True)
class PerplexityResult:
    """Loss and perplexity of one model."""

    loss_nats: float
    """Mean negative log-likelihood of a token, given the preceding tokens of its document."""
    stderr_nats: float | None
    """Standard error of the loss; None for a single block."""
    perplexity: float
    tokens: int
    """Tokens predicted."""
    items: Items
    """Loss of the part of each document that is in one block, weighted by its tokens."""

    def metrics(self) -> dict[str, MetricResult]:
        """Metrics as they are stored, by name."""
        loss = _metric(self.loss_nats, self.items)
        spread = None if self.stderr_nats is None else self.perplexity * self.stderr_nats  # to first order
        exponential = {"value": self.perplexity, "stderr": spread, "scale": "log"}
        return {"loss": loss, "perplexity": loss.model_copy(update=exponential)}


@dataclass(frozen=True)
class KLResult:
    """KL divergence of one model from its parent."""

    kl_nats: float
    """KL(parent || model), mean per predicted token."""
    stderr_nats: float | None
    """Standard error; None for a single block."""
    tokens: int
    items: Items

    def metrics(self) -> dict[str, MetricResult]:
        """Metrics as they are stored, by name."""
        return {"kl": _metric(self.kl_nats, self.items)}


def _metric(value: float, items: Items) -> MetricResult:
    return MetricResult(value=value, n=items.clusters, **errors(items))


def perplexity(
    model: Any, blocks: TokenBlocks, *, max_blocks: int | None = None, batch_size: int = 8
) -> PerplexityResult:
    """Mean loss over `max_blocks` evenly spaced blocks, or over all. RunFailed if it is not finite."""
    found, _ = loss_and_kl(model, None, blocks, max_blocks=max_blocks, batch_size=batch_size)
    return found


@torch.inference_mode()
def loss_and_kl(
    model: Any,
    parent: Any | None,
    blocks: TokenBlocks,
    *,
    max_blocks: int | None = None,
    batch_size: int = 8,
) -> tuple[PerplexityResult, KLResult | None]:
    """Loss as `perplexity` measures it, and KL(parent || model) over the same predictions, by one pass of each model.

    Without a parent there is no KL. Of models of one tokenizer; if one head has more entries than the other, such as
    padding, the KL is over the entries that both have.
    """
    head, parent_head = head_of(model), head_of(parent) if parent is not None else None

    def values(batch: BlockBatch) -> list[Tensor]:
        beside = None if parent_head is None else Predictions(parent_head, final_hidden(parent, batch))
        found = token_values(Predictions(head, final_hidden(model, batch)), _labels(batch, model), beside)
        return [found.nll_N] if found.kl_N is None else [found.nll_N, found.kl_N]

    title, figures = ("perplexity", ["loss"]) if parent is None else ("loss and KL to the parent", ["loss", "kl"])
    loss, *kl = _means(title, figures, values, blocks, max_blocks, batch_size)
    return (
        PerplexityResult(loss.value, loss.items.stderr, exponential(loss.value), loss.tokens, loss.items),
        KLResult(kl[0].value, kl[0].items.stderr, kl[0].tokens, kl[0].items) if kl else None,
    )


def kl_to_parent(
    model: Any, parent: Any, blocks: TokenBlocks, *, max_blocks: int | None = None, batch_size: int = 8
) -> KLResult:
    """KL(parent || model) per token, as `loss_and_kl` measures it."""
    _, found = loss_and_kl(model, parent, blocks, max_blocks=max_blocks, batch_size=batch_size)
    assert found
    return found


def _labels(batch: "BlockBatch", model: Any) -> Tensor:
    return batch.tokens_BT[:, 1:].flatten().to(model.device)


class BlockBatch(NamedTuple):
    """Some blocks side by side."""

    tokens_BT: Tensor
    positions_BT: Tensor
    documents_BT: Tensor
    loss_mask_BT: Tensor


class _Mean(NamedTuple):
    value: float
    tokens: int
    items: Items


class DocumentSum(NamedTuple):
    """Sum over the part of a document that is in one block."""

    block: int
    document: int
    total: float
    tokens: int


def _means(
    title: str,
    figures: Sequence[str],
    measure: Callable[[BlockBatch], Sequence[Tensor]],
    blocks: TokenBlocks,
    max_blocks: int | None,
    batch_size: int,
) -> list[_Mean]:
    """Mean of each figure over the counted tokens of the blocks. `measure` returns its values [N] of a batch."""
    ids = evenly_spaced(len(blocks), max_blocks)
    pieces: dict[str, list[DocumentSum]] = {figure: [] for figure in figures}
    totals, tokens = dict.fromkeys(figures, 0.0), 0  # running means, for the progress display
    with progress.track(title, total=len(ids), unit="blocks") as step:
        for start in range(0, len(ids), batch_size):
            batch = read_batch(blocks, ids[start : start + batch_size])
            new = list[DocumentSum]()
            for figure, values_N in zip(figures, measure(batch), strict=True):
                # Thousands of values are summed in float64, which some accelerators lack, hence on the CPU.
                values_BT = values_N.cpu().double().view(len(batch.tokens_BT), -1)
                new = list(document_sums(start, batch, values_BT))
                pieces[figure] += new
                totals[figure] += sum(piece.total for piece in new)
            tokens += sum(piece.tokens for piece in new)  # which are those of every figure
            means = {figure: total / tokens for figure, total in totals.items()} if tokens else {}
            step(len(batch.tokens_BT), **means)
    return [_summary(some, figure) for figure, some in pieces.items()]


def document_sums(first: int, batch: BlockBatch, values_BT: Tensor) -> Iterator[DocumentSum]:
    """Sums over each document of each block, for those with a counted token."""
    is_predicted_BT = is_predicted(batch.positions_BT, batch.loss_mask_BT)
    for i, documents_T in enumerate(batch.documents_BT[:, 1:]):
        numbers, index_T = documents_T[is_predicted_BT[i]].unique(return_inverse=True)
        sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, index_T, values_BT[i][is_predicted_BT[i]])
        for number, total, tokens in zip(numbers.tolist(), sums.tolist(), index_T.bincount().tolist(), strict=True):
            yield DocumentSum(first + i, number, total, tokens)


def _summary(pieces: list[DocumentSum], figure: str) -> _Mean:
    tokens = sum(piece.tokens for piece in pieces)
    if tokens == 0:
        raise DataError(
            "validation data has no predictable token (every document is one token long): give longer documents"
        )
    value = math.fsum(piece.total for piece in pieces) / tokens
    if not math.isfinite(value):
        raise RunFailed(f"{figure} is not finite: the weights or activations overflow; try --dtype float32")
    return _Mean(value, tokens, items_of(pieces))


def items_of(pieces: list[DocumentSum]) -> Items:
    """Means of parts of documents, weighted by their tokens."""
    return Items(
        [piece.total / piece.tokens for piece in pieces],
        [piece.tokens for piece in pieces],
        [piece.document for piece in pieces],
        "block",
    )


def final_hidden(model: Any, batch: BlockBatch) -> Tensor:
    """Final hidden states that predict the next token, [N, D]."""
    tokens_BT, positions_BT = batch.tokens_BT.to(model.device), batch.positions_BT.to(model.device)
    output = decoder_of(model)(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
    return output.last_hidden_state[:, :-1].flatten(0, 1)


def read_batch(blocks: TokenBlocks, ids: Sequence[int]) -> BlockBatch:
    """The blocks of these numbers; without a loss mask every token counts."""
    tokens_BT = torch.stack([blocks.tokens(i) for i in ids])
    every_T = torch.ones_like(tokens_BT[0], dtype=torch.bool)
    masks = [blocks.loss_mask(i) for i in ids]
    return BlockBatch(
        tokens_BT,
        torch.stack([blocks.positions(i) for i in ids]),
        torch.stack([blocks.documents(i) for i in ids]),
        torch.stack([every_T if mask_T is None else mask_T for mask_T in masks]),
    )
