"""Which blocks of a token file hold a token to predict. Those without one train and measure nothing."""

from collections.abc import Iterator

import numpy as np

from minitron_cli.data.token_file import TokenFile

# B block, T token

CHUNK = 1 << 22  # entries looked at together


def continued(file: TokenFile, start_B: np.ndarray, sequence_length: int, before: tuple[int, ...]) -> np.ndarray:
    """Whether each block begins inside a document that begins with `before`, so that it is to begin so too, bool [B].

    `start_B` is the place in the file at which each block begins. A block that has no room for `before` and two tokens,
    or whose document ends within as many tokens, stays as it is.
    """
    count = len(before)
    if not count or sequence_length < count + 2:
        return np.zeros(len(start_B), bool)
    following_B = np.searchsorted(file.starts, start_B, side="right")
    begin_B = np.asarray(file.starts)[following_B - 1].astype(np.int64)
    ends = np.append(file.starts, len(file.tokens))
    found_B = (begin_B < start_B) & (start_B + count < ends[following_B])
    for i, token in enumerate(before):
        found_B[found_B] = file.tokens[begin_B[found_B] + i] == token
    return found_B


def predicted_blocks(file: TokenFile, sequence_length: int, before: tuple[int, ...] = ()) -> np.ndarray | None:
    """Numbers of the complete blocks with a predicted token, ascending; None if all blocks have one.

    A token is predicted unless it is the first of its block or document, or the loss mask leaves it out, or the block
    is continued and it is in `before` or the first after it.
    """
    count = len(file.tokens) // sequence_length
    if file.loss_mask is None and sequence_length > len(before) + 2 and not _has_single_tokens(file.starts):
        return None  # only documents of one token could leave three tokens without a prediction
    found = np.concatenate([np.empty(0, bool), *_has_prediction_B(file, sequence_length, count, before)])
    return None if found.all() else found.nonzero()[0]


def _has_single_tokens(starts: np.ndarray) -> bool:
    return any((np.diff(starts[i : i + CHUNK + 1]) == 1).any() for i in range(0, len(starts), CHUNK))


def _has_prediction_B(
    file: TokenFile, sequence_length: int, count: int, before: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Whether each block has a predicted token, for some blocks at a time."""
    size = max(1, CHUNK // sequence_length)
    for first in range(0, count, size):
        begin, end = first * sequence_length, min(first + size, count) * sequence_length
        scored = np.ones(end - begin, bool) if file.loss_mask is None else np.array(file.loss_mask[begin:end])
        low, high = np.searchsorted(file.starts, [begin, end])
        scored[file.starts[low:high] - begin] = False
        scored_BT = scored.reshape(-1, sequence_length)
        is_continued_B = continued(file, np.arange(begin, end, sequence_length), sequence_length, before)
        scored_BT[is_continued_B, : len(before) + 1] = False
        yield np.asarray(scored_BT[:, 1:].any(1))
