"""Unsigned numbers of a few bits each, packed without gaps into bytes. Knows nothing of what they mean."""

# M number, G group of 8 numbers

import numpy as np

LANES = 8  # so many numbers of b bits fill b bytes
MAX_BITS = 48  # of one number; shifted by up to 7 bits it still fits 64


def width(count: int) -> int:
    """Bits of a number below `count`; at least 1."""
    return max(1, (count - 1).bit_length())


def size_bytes(numbers: int, bits: int) -> int:
    """Bytes of so many packed numbers."""
    return -(-numbers * bits // 8)


def pack(numbers_M: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2**bits as uint8 [ceil(M * bits / 8)], the lowest bits first; unused bits are 0."""
    assert bits <= MAX_BITS
    padded = np.zeros(-(-len(numbers_M) // LANES) * LANES, np.uint64)
    padded[: len(numbers_M)] = numbers_M
    words_GL = padded.reshape(-1, LANES)
    bytes_GB = np.zeros((len(words_GL), bits), np.uint8)
    for lane in range(LANES):
        first, shift = divmod(lane * bits, 8)
        shifted_G = words_GL[:, lane] << np.uint64(shift)
        for i in range(size_bytes(1, shift + bits)):
            bytes_GB[:, first + i] |= (shifted_G >> np.uint64(8 * i)).astype(np.uint8)
    return bytes_GB.reshape(-1)[: size_bytes(len(numbers_M), bits)]


def unpack(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The first `count` numbers of packed bytes, int64 [count]."""
    groups = -(-count // LANES)
    bytes_GB = np.zeros(groups * bits, np.uint8)
    bytes_GB[: size_bytes(count, bits)] = packed[: size_bytes(count, bits)]
    bytes_BG = np.ascontiguousarray(bytes_GB.reshape(groups, bits).T).astype(np.int64)
    words_GL = np.empty((groups, LANES), np.int64)
    for lane in range(LANES):
        first, shift = divmod(lane * bits, 8)
        word_G = bytes_BG[first] >> shift
        for i in range(1, size_bytes(1, shift + bits)):
            word_G |= bytes_BG[first + i] << (8 * i - shift)
        words_GL[:, lane] = word_G & ((1 << bits) - 1)
    return words_GL.reshape(-1)[:count]
