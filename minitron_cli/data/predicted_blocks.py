"""Which blocks of a token file hold a token to predict. Those without one train and measure nothing."""

from collections.abc import Iterator

import numpy as np

from minitron_cli.data.token_file import TokenFile

# B block, T token

CHUNK = 1 << 22  # entries looked at together


def predicted_blocks(file: TokenFile, sequence_length: int) -> np.ndarray | None:
    """Numbers of the complete blocks with a predicted token, ascending; None if all blocks have one.

    A token is predicted unless it is the first of its block or document, or the loss mask leaves it out.
    """
    count = len(file.tokens) // sequence_length
    if file.loss_mask is None and sequence_length > 2 and not _has_single_tokens(file.starts):
        return None  # only documents of one token could leave three tokens without a prediction
    found = np.concatenate([np.empty(0, bool), *_has_prediction_B(file, sequence_length, count)])
    return None if found.all() else found.nonzero()[0]


def _has_single_tokens(starts: np.ndarray) -> bool:
    return any((np.diff(starts[i : i + CHUNK + 1]) == 1).any() for i in range(0, len(starts), CHUNK))


def _has_prediction_B(file: TokenFile, sequence_length: int, count: int) -> Iterator[np.ndarray]:
    """Whether each block has a predicted token, for some blocks at a time."""
    size = max(1, CHUNK // sequence_length)
    for first in range(0, count, size):
        begin, end = first * sequence_length, min(first + size, count) * sequence_length
        scored = np.ones(end - begin, bool) if file.loss_mask is None else np.array(file.loss_mask[begin:end])
        low, high = np.searchsorted(file.starts, [begin, end])
        scored[file.starts[low:high] - begin] = False
        yield np.asarray(scored.reshape(-1, sequence_length)[:, 1:].any(1))
