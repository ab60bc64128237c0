"""Loss on token blocks, and the distance to another model's predictions. Knows models and tokens, no files.

Blocks are packed documents: position ids restart at each document and no attention mask is passed,
so a token sees its own document only. Logits never exist for more than a few hundred tokens.
"""

# B batch, T token, D hidden, V vocab, N = B * T

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.errors import CheckpointError, RunFailed
from minitron_cli.model.nll import Head, head_of

LOGIT_ELEMENTS = 1 << 24  # of one model at a time while two are compared: 64 MiB in fp32
LOG_MAX = 700.0  # exp of more overflows; a model this bad has no perplexity worth telling apart


class TokenBlocks(Protocol):
    """What is asked of blocks of packed documents, all of one length."""

    def __len__(self) -> int: ...

    def tokens(self, i: int, /) -> Tensor: ...

    def positions(self, i: int, /) -> Tensor: ...


@dataclass(frozen=True)
class PerplexityResult:
    loss_nats: float
    """Mean negative log-likelihood of a token given the tokens before it, as Hugging Face computes it."""
    stderr_nats: float | None
    """Standard error of the loss over blocks; None for a single block."""
    perplexity: float
    tokens: int
    """Predicted tokens: one fewer per block than it holds."""
    blocks: int

    def metrics(self) -> dict[str, dict[str, float | int | None]]:
        """Plain values in the form that task results have."""
        spread = None if self.stderr_nats is None else self.perplexity * self.stderr_nats  # to first order
        return {
            "loss": _metric(self.loss_nats, self.stderr_nats, self.blocks),
            "perplexity": _metric(self.perplexity, spread, self.blocks),
        }


@dataclass(frozen=True)
class KLResult:
    kl_nats: float
    """KL(parent || model), mean per token."""
    stderr_nats: float | None
    """Over blocks; None for a single block."""
    tokens: int
    blocks: int

    def metrics(self) -> dict[str, dict[str, float | int | None]]:
        """Plain values in the form that task results have."""
        return {"kl": _metric(self.kl_nats, self.stderr_nats, self.blocks)}


def _metric(value: float, stderr: float | None, n: int) -> dict[str, float | int | None]:
    return {"value": value, "stderr": stderr, "n": n, "shots": None}


@torch.inference_mode()
def perplexity(
    model: Any, blocks: TokenBlocks, *, max_blocks: int | None = None, batch_size: int = 8
) -> PerplexityResult:
    """The mean loss over the first `max_blocks` blocks. RunFailed if it is not finite."""
    count = _count(blocks, max_blocks)
    head = head_of(model)
    means: list[float] = []
    with progress.track("perplexity", total=count, unit="blocks") as step:
        for ids in _batches(count, batch_size):
            tokens_BT, positions_BT = _batch(blocks, ids, model)
            hidden_ND = _hidden(model, tokens_BT, positions_BT)[:, :-1].flatten(0, 1)
            batch_means = _block_means(head.nll(hidden_ND, tokens_BT[:, 1:].flatten()), len(ids))
            means += batch_means
            step(len(ids), loss=_mean(batch_means))
    loss = _finite(_mean(means), "the loss")
    tokens = count * (tokens_BT.shape[1] - 1)
    return PerplexityResult(loss, _stderr(means), math.exp(min(loss, LOG_MAX)), tokens, count)


@torch.inference_mode()
def kl_to_parent(
    model: Any, parent: Any, blocks: TokenBlocks, *, max_blocks: int | None = None, batch_size: int = 8
) -> KLResult:
    """KL(parent || model) of the next-token distributions, mean over all tokens of the first `max_blocks` blocks."""
    head, parent_head = head_of(model), head_of(parent)
    _check_vocabularies(head, parent_head)
    count = _count(blocks, max_blocks)
    means: list[float] = []
    with progress.track("KL to parent", total=count, unit="blocks") as step:
        for ids in _batches(count, batch_size):
            hidden = [_hidden(m, *_batch(blocks, ids, m)).flatten(0, 1) for m in (model, parent)]
            batch_means = _block_means(_token_kl(head, parent_head, *hidden), len(ids))
            means += batch_means
            step(len(ids), kl=_mean(batch_means))
            block_tokens = len(hidden[0]) // len(ids)
    return KLResult(_finite(_mean(means), "the KL to the parent"), _stderr(means), count * block_tokens, count)


def _token_kl(head: Head, parent_head: Head, hidden_ND: Tensor, parent_hidden_ND: Tensor) -> Tensor:
    rows = max(1, LOGIT_ELEMENTS // len(head.weight_VD))
    chunks = []
    for start in range(0, len(hidden_ND), rows):
        logp_CV = head.logits(hidden_ND[start : start + rows]).float().log_softmax(dim=-1)
        parent_logp_CV = parent_head.logits(parent_hidden_ND[start : start + rows]).float().log_softmax(dim=-1)
        parent_logp_CV = parent_logp_CV.to(logp_CV.device)
        chunks.append((parent_logp_CV.exp() * (parent_logp_CV - logp_CV)).sum(dim=-1))
    return torch.cat(chunks)


def _check_vocabularies(head: Head, parent_head: Head) -> None:
    own, theirs = len(head.weight_VD), len(parent_head.weight_VD)
    if own != theirs:
        raise CheckpointError(
            f"KL to the parent: the model has {own:,} tokens and the parent {theirs:,}; compare models of one tokenizer"
        )


def _hidden(model: Any, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    output = model.get_decoder()(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
    return output.last_hidden_state


def _batch(blocks: TokenBlocks, ids: range, model: Any) -> tuple[Tensor, Tensor]:
    tokens_BT = torch.stack([blocks.tokens(i) for i in ids])
    positions_BT = torch.stack([blocks.positions(i) for i in ids])
    return tokens_BT.to(model.device), positions_BT.to(model.device)


def _batches(count: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _count(blocks: TokenBlocks, max_blocks: int | None) -> int:
    count = len(blocks) if max_blocks is None else min(max_blocks, len(blocks))
    assert count > 0, "data.prepare refuses an empty dataset"
    return count


def _block_means(values_N: Tensor, blocks: int) -> list[float]:
    # Sums of thousands of values: in double, which some accelerators lack, hence on the CPU.
    return values_N.cpu().double().view(blocks, -1).mean(dim=1).tolist()


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _stderr(values: list[float]) -> float | None:
    n, mean = len(values), _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise RunFailed(f"{name} is not finite: the weights or activations overflow; try --dtype float32")
    return value
