import pytest

from minitron_cli.report import text


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [((8,), "8"), ((3, 4), "3, 4"), ((3, 7, 8, 9), "3, 7 to 9"), ((0, 1, 2, 4, 6, 7, 8), "0 to 2, 4, 6 to 8")],
)
def test_runs_of_numbers_become_ranges(numbers, shown):
    assert text.ranges(numbers) == shown


def test_clean_text_keeps_what_people_write():
    assert text.clean("模型 🧠 ñ\tA\nB <>&") == "模型 🧠 ñ\tA\nB <>&"
    assert text.clean("a\x00\x1b\ud800\u202eb") == "a" + "\ufffd" * 4 + "b"
    assert text.clean("a\ufffe\U0001ffff\u2028b") == "a\ufffd\ufffd\u2028b"
