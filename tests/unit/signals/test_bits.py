"""Packed numbers against Python's own big integers."""

import numpy as np
import pytest

from minitron_cli.signals import bits


@pytest.mark.parametrize("width", [1, 5, 8, 11, 17, 18, 24, 31, 35])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 500])
def test_numbers_come_back(width: int, count: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**width, count)
    numbers[:1] = 2**width - 1
    packed = bits.pack(numbers, width)
    assert len(packed) == bits.size_bytes(count, width)
    np.testing.assert_array_equal(bits.unpack(packed, count, width), numbers)


def test_the_lowest_bits_come_first() -> None:
    numbers, width = [2**18 - 1, 0, 5, 2**17], 18
    whole = sum(number << (i * width) for i, number in enumerate(numbers))
    assert bits.pack(np.array(numbers), width).tobytes() == whole.to_bytes(9, "little")


@pytest.mark.parametrize(("count", "width"), [(1, 1), (2, 1), (3, 2), (64, 6), (65, 7), (2**18, 18), (2**18 + 1, 19)])
def test_a_number_below_the_count_fits(count: int, width: int) -> None:
    assert bits.width(count) == width
