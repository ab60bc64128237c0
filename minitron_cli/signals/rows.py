"""A teacher's signals of some tokens, as tensors that a loss reads."""

# N token, K stored id

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SignalRows:
    """Ids of each token with their weights: shares of the draws, or probabilities of the most probable ids."""

    ids_NK: Tensor
    """int64; a row with fewer ids than others ends with id 0 of weight 0."""
    weights_NK: Tensor
    """fp32."""
    vocab: int
    """Entries of the teacher's vocabulary."""
    temperature: float = 1.0
    """That the teacher's logits were divided by."""
    entropy_N: Tensor | None = None
    """Entropy of the teacher's distribution in nats, of which the ids were drawn; None for the most probable ids."""

    @property
    def has_rest(self) -> bool:
        """Whether the ids that are not stored are one event more, with the probability that is left."""
        return self.entropy_N is None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids_NK)

    def part(self, tokens: slice) -> "SignalRows":
        """Those of consecutive tokens."""
        return self._each(lambda x: x[tokens])

    def rows(self, rows_N: Tensor) -> "SignalRows":
        """Those of the tokens at these places."""
        return self._each(lambda x: x.index_select(0, rows_N.to(x.device)))

    def to(self, device: torch.device) -> "SignalRows":
        """The same on a device."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SignalRows":
        entropy_N = None if self.entropy_N is None else change(self.entropy_N)
        return replace(self, ids_NK=change(self.ids_NK), weights_NK=change(self.weights_NK), entropy_N=entropy_N)
