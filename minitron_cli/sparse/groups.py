"""The largest of every few neighbors, on the CPU: comparisons of whole arrays with themselves, shifted.

A weight stays if it beats enough of its group. Whether it beats the neighbor r places on is one comparison of the array
with itself, r places on; 8 of these are bytes of one word. With A_r these words, without comparisons that leave their
group, every byte of

    sum over r of A_r - (A_r << 8 r), plus each weight's place in its group

is the number of weights that it beats: those behind it that it is not below, and those before it that are below it. No
byte overflows, and a product with 1 - 2^(8 r) does a shift and a subtraction at once. Blocks stay in the cache.
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (2, 4, 8)
"""Sizes of groups that are whole in a word of 8 bytes."""
DTYPES = ("int16", "int32", "int64", "float32", "float64")
"""Scores that numpy compares."""
BLOCK = 1 << 18  # scores
WORD = 8
TOP, ONES = 7, 0x0101010101010101  # the bit of a byte that says what stays; it alone in every byte


class Comparison(NamedTuple):
    """Comparison with the neighbor some places on."""

    places: int
    inside: np.uint64
    """1 in the bytes of weights whose neighbor is in their group."""
    factor: np.uint64


def are_quick(scores: "Tensor", size: int) -> bool:
    """Whether `largest` takes these scores, in groups of `size` along the last axis."""
    is_here = scores.device.type == "cpu"
    return (
        is_here and sys.byteorder == "little" and size in SIZES and str(scores.dtype).removeprefix("torch.") in DTYPES
    )


def largest(scores: "Tensor", count: int) -> "Tensor":
    """Mask of the `count` largest along the last axis; of equal ones those with the lower index. See `are_quick`."""
    import torch

    kept = torch.empty(scores.shape, dtype=torch.bool)
    flat, found = scores.contiguous().view(-1).numpy(), kept.reshape(-1).numpy()
    words = -(-min(BLOCK, len(flat)) // WORD)
    beaten, sums = np.zeros(words * WORD, dtype=bool), np.empty(words, dtype=np.uint64)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        found[start : start + BLOCK] = _of_block(block, scores.shape[-1], count, beaten, sums)[: len(block)]
    return kept


def _of_block(block: np.ndarray, size: int, count: int, beaten: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Mask of a block, and some more of what the buffers hold."""
    comparisons, places = _numbers(size, count)
    words = beaten.view(np.uint64)
    for i, (behind, inside, factor) in enumerate(comparisons):
        np.greater_equal(block[: len(block) - behind], block[behind:], out=beaten[: len(block) - behind])
        np.bitwise_and(words, inside, out=words)
        np.multiply(words, factor, out=words if i else sums)
        if i:
            np.add(sums, words, out=sums)
    np.add(sums, places, out=sums)
    np.right_shift(sums, np.uint64(TOP), out=sums)
    np.bitwise_and(sums, np.uint64(ONES), out=sums)
    return sums.view(bool)


@lru_cache
def _numbers(size: int, count: int) -> tuple[tuple[Comparison, ...], np.uint64]:
    """Comparisons of a group, and what is added so that the top bit of a byte says that the weight stays."""
    comparisons = tuple(
        Comparison(
            places,
            _word([i % size + places < size for i in range(WORD)]),
            np.uint64((1 - (1 << 8 * places)) % (1 << 64)),
        )
        for places in range(1, size)
    )
    enough = size - count
    return comparisons, _word([i % size + (1 << TOP) - enough for i in range(WORD)])


def _word(values: list[int]) -> np.uint64:
    """Word of 8 bytes, the first one lowest."""
    return np.array(values, dtype=np.uint8).view(np.uint64)[0]
