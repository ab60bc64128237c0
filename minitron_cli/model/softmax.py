"""Softmax of logits that come one chunk of the vocabulary at a time. Importable without torch."""

# N token, C one chunk of the vocab

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


TOKENS = 1024  # whose logits over one chunk of the vocabulary are held at a time


def chunk_entries(device: str) -> int:
    """Entries of the vocabulary in a chunk: their logits fit a core's cache, or fill an accelerator."""
    return 1024 if device == "cpu" else 16384


class OnlineSoftmax:
    """Normalizer of each token's softmax, and the mean under it of values that come with the logits."""

    def __init__(self, zeros_N1: "Tensor") -> None:
        self._max_N1 = zeros_N1.clone().fill_(float("-inf"))
        self._sum_N1, self._weighted_N1 = zeros_N1.clone(), zeros_N1.clone()

    def read_(self, logits_NC: "Tensor", of_NC: "Tensor | None" = None) -> None:
        """Add a chunk of logits, and of the values to average. Both are overwritten."""
        max_N1 = self._max_N1.maximum(logits_NC.amax(-1, keepdim=True))
        shrink_N1 = self._max_N1.sub_(max_N1).exp_()
        exp_NC = logits_NC.sub_(max_N1).exp_()
        self._sum_N1.mul_(shrink_N1).add_(exp_NC.sum(-1, keepdim=True))
        if of_NC is not None:
            self._weighted_N1.mul_(shrink_N1).add_(of_NC.mul_(exp_NC).sum(-1, keepdim=True))
        self._max_N1 = max_N1

    @property
    def log_z_N1(self) -> "Tensor":
        """Log of the normalizer: logsumexp of the logits so far."""
        return self._sum_N1.log() + self._max_N1

    @property
    def mean_N1(self) -> "Tensor":
        """Mean of the values under the softmax."""
        return self._weighted_N1 / self._sum_N1
