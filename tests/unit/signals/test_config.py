"""Settings of signals."""

import pytest

from minitron_cli.signals.config import TeachConfig, TopK, passes


@pytest.mark.parametrize(
    ("read", "count"), [(1, 1), (100, 1), (101, 1), (110, 1), (111, 2), (200, 2), (210, 2), (211, 3), (1000, 10)]
)
def test_a_pass_that_has_hardly_begun_is_none(read: int, count: int) -> None:
    assert passes(read, 100) == count


def test_a_small_k_has_to_be_allowed() -> None:
    with pytest.raises(ValueError, match="k 127 is below 128, which leaves out too much of the distribution"):
        TopK(k=127)
    assert str(TopK(k=8, allow_small_k=True)) == "top 8"


def test_the_most_probable_ids_are_those_of_every_pass() -> None:
    with pytest.raises(ValueError, match="top_k is the same in every pass: drop epochs"):
        TeachConfig.model_validate({"signals": {"kind": "top_k"}, "epochs": 2})
