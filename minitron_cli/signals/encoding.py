"""Signals of one block as bytes, and back: made from the teacher's logits, read as rows for a loss."""

# N counted position of one block, V vocab, J draw, K stored id, M stored entry of all positions

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from minitron_cli.errors import RunFailed
from minitron_cli.signals import bits, draws
from minitron_cli.signals.config import Sampled, SignalKind
from minitron_cli.signals.rows import SignalRows

STORED = 2  # bytes of an entropy or a root
ROOTS = (1 << 16) - 1
"""Parts of one that square roots of probabilities are rounded to, which changes a probability p by 1.6e-5 sqrt(p)."""
INDEX = 8  # bytes of an entry of the tables that find a block


@dataclass(frozen=True)
class BlockSignals:
    """Signals of one block's counted positions for one pass over the text."""

    entries: np.ndarray
    """Ids, packed into bytes. If they were drawn, a bit for each draw comes first, in ascending order of ids: whether
    it differs from the draw before, as the first of a position does."""
    ids: int
    """Number of stored ids."""
    roots_M: np.ndarray
    """Square roots of the ids' probabilities in `ROOTS`, uint16; empty if they were drawn."""
    entropy_N: np.ndarray
    """Entropy of each position's distribution in nats, fp16; empty unless ids were drawn."""


@dataclass(frozen=True)
class Encoding:
    """What is stored of the teacher's distribution, and in how many bits."""

    kind: SignalKind
    vocab: int
    seed: int = 0
    temperature: float = 1.0

    @cached_property
    def id_bits(self) -> int:
        """Bits of an id."""
        return bits.width(self.vocab)

    @property
    def _draws(self) -> int:
        assert isinstance(self.kind, Sampled)
        return self.kind.draws

    @property
    def top_k(self) -> int:
        """Ids of each position, unless they were drawn."""
        return 0 if isinstance(self.kind, Sampled) else min(self.kind.k, self.vocab)

    def token_bytes(self, ids: float, epochs: int = 1) -> float:
        """Bytes of a position with so many different ids on average, without the tables that find a block."""
        if self.top_k:
            return self.top_k * (self.id_bits / 8 + STORED)
        return epochs * (self._draws + ids * self.id_bits) / 8 + STORED

    def block_bytes(self, epochs: int = 1) -> int:
        """Bytes of a block in the tables that find it."""
        return 2 * (1 + epochs) * INDEX

    def encoded(
        self, logits: Iterable[Tensor], block: int, places_N: np.ndarray, epochs: int = 1
    ) -> list[BlockSignals]:
        """Signals of a block's counted positions for each pass; `places_N` are their places in the block.

        Logits come a few positions at a time, [P, V], raw in fp32 or fp64, and are overwritten. RunFailed if those of a
        position are no distribution: not a number, or infinite.
        """
        logits = map(self._checked, logits)
        if self.top_k:
            return [self._most_probable(map(self._softened_, logits))]
        at = [self._thresholds(epoch, block, places_N) for epoch in range(epochs)]
        at_NJ, ids, entropies, first = torch.from_numpy(np.concatenate(at, 1)), [], [], 0
        for logits_PV in logits:
            at_PJ = at_NJ[first : first + len(logits_PV)].to(logits_PV.device)
            ids_PJ, entropy_P = draws.draw(self._softened_(logits_PV), at_PJ)
            ids.append(ids_PJ.cpu())
            entropies.append(entropy_P.to(torch.float16).cpu())
            first += len(logits_PV)
        entropy_N = torch.cat(entropies).numpy()
        return [self._drawn(ids_NJ, entropy_N) for ids_NJ in np.split(torch.cat(ids).numpy(), epochs, axis=1)]

    def _checked(self, logits_PV: Tensor) -> Tensor:
        if not logits_PV.amax(-1).isfinite().all():  # of a NaN as well; an entry of probability 0 is -inf
            raise RunFailed("the teacher's logits are not finite: check its weights, or run it with --dtype float32")
        return logits_PV

    def _softened_(self, logits_PV: Tensor) -> Tensor:
        return logits_PV if self.temperature == 1 else logits_PV.div_(self.temperature)

    def _thresholds(self, epoch: int, block: int, places_N: np.ndarray) -> np.ndarray:
        return draws.thresholds(self.seed, epoch, block, places_N, self._draws)

    def _drawn(self, ids_NJ: np.ndarray, entropy_N: np.ndarray) -> BlockSignals:
        is_new_NJ = np.ones(ids_NJ.shape, bool)
        is_new_NJ[:, 1:] = ids_NJ[:, 1:] != ids_NJ[:, :-1]
        ids_M = ids_NJ[is_new_NJ]
        packed = np.concatenate([np.packbits(is_new_NJ), bits.pack(ids_M, self.id_bits)])
        return BlockSignals(packed, len(ids_M), np.empty(0, np.uint16), entropy_N)

    def _most_probable(self, logits: Iterable[Tensor]) -> BlockSignals:
        ids, roots = [], []
        for logits_PV in logits:
            top = logits_PV.topk(self.top_k, dim=-1)
            ids.append(top.indices.reshape(-1).cpu())
            logp_PK = top.values - logits_PV.logsumexp(-1, keepdim=True)
            roots.append((logp_PK / 2).exp_().mul_(ROOTS).round_().int().reshape(-1).cpu())
        ids_M = torch.cat(ids).numpy()
        roots_M = torch.cat(roots).numpy().astype(np.uint16)
        return BlockSignals(bits.pack(ids_M, self.id_bits), len(ids_M), roots_M, np.empty(0, np.float16))

    def decoded(self, stored: BlockSignals) -> SignalRows:
        """Rows of a block's positions."""
        return self._probable_rows(stored) if self.top_k else self._drawn_rows(stored)

    def _drawn_rows(self, stored: BlockSignals) -> SignalRows:
        positions, draws_each = len(stored.entropy_N), self._draws
        flags = bits.size_bytes(positions * draws_each, 1)
        first_M = np.flatnonzero(np.unpackbits(stored.entries[:flags], count=positions * draws_each))
        row_M = first_M // draws_each
        sizes_N = np.bincount(row_M, minlength=positions)
        is_used_NK = np.arange(sizes_N.max(initial=0)) < sizes_N[:, None]
        ids_NK = np.zeros(is_used_NK.shape, np.int64)
        weights_NK = np.zeros(is_used_NK.shape, np.float32)
        ids_NK[is_used_NK] = bits.unpack(stored.entries[flags:], stored.ids, self.id_bits)
        counts_M = np.diff(first_M, append=positions * draws_each)
        weights_NK[is_used_NK] = counts_M / np.float32(draws_each)
        entropy_N = torch.from_numpy(stored.entropy_N.astype(np.float32))
        return self._rows(ids_NK, weights_NK, entropy_N)

    def _probable_rows(self, stored: BlockSignals) -> SignalRows:
        ids_NK = bits.unpack(stored.entries, stored.ids, self.id_bits).reshape(-1, self.top_k)
        weights_M = np.square(stored.roots_M.astype(np.float32) / np.float32(ROOTS))
        return self._rows(ids_NK, weights_M.reshape(ids_NK.shape), None)

    def _rows(self, ids_NK: np.ndarray, weights_NK: np.ndarray, entropy_N: Tensor | None) -> SignalRows:
        return SignalRows(
            torch.from_numpy(ids_NK), torch.from_numpy(weights_NK), self.vocab, self.temperature, entropy_N
        )
