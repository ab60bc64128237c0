import pytest

from minitron_cli.report import text
from minitron_cli.report.data import Interval, Measure

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (4_512_746_496, "4.51 B"),
        (94e9, "94.0 B"),
        (3_912_448, "3.91 M"),
        (999_999, "1.00 M"),
        (999_499, "999 k"),
        (12_345, "12.3 k"),
        (9_960_000, "9.96 M"),
        (9_996_000, "10.0 M"),
        (999, "999"),
        (0, "0"),
        (63.9123, "63.9"),
        (412.1, "412"),
        (15e12, "15.0 T"),
        (None, text.NOTHING),
    ],
)
def test_counts_have_three_digits(count, shown):
    assert text.short(count) == shown


@pytest.mark.parametrize(
    ("measure", "shown"),
    [
        (Measure(2.34567, 0.0123), "2.346 ± 0.012"),
        (Measure(0.5), "0.500"),
        (Measure(136.04, 2.72), "136.0 ± 2.7"),
        (Measure(123456.7), "123,457"),
        (Measure(0.00436, 0.00023), "0.0044 ± 0.0002"),
        (Measure(2.5, 0.00004), "2.50000 ± 0.00004"),
        (Measure(0.004), "0.0040"),
        (Measure(0.0, 0.0), "0.000 ± 0.000"),
        (Measure(None, 1.0), text.NOTHING),
        (None, text.NOTHING),
    ],
)
def test_measures_have_the_decimals_they_deserve(measure, shown):
    assert text.measure(measure) == shown


def test_powers_sizes_and_signs():
    assert text.power_of_ten(1.234e15) == f"1.23 {TIMES} 10¹⁵"
    assert text.power_of_ten(None) == text.power_of_ten(0) == text.NOTHING
    assert [text.size(n) for n in (512, 2816, 3 << 20, 5 << 30)] == ["512 B", "2.75 KiB", "3 MiB", "5 GiB"]
    assert (text.signed(-0.5), text.signed(0.25)) == (f"{MINUS}0.500", "+0.250")
    assert (text.signed(-0.00002), text.signed(0.0), text.signed(0.0032)) == ("0.0000", "0.000", "+0.0032")
    difference = text.interval(Interval(-0.00005, -0.0012, 0.0011), is_difference=True)
    assert difference == f"{MINUS}0.0001 ({MINUS}0.0012 to +0.0011)"
    assert text.interval(Interval(0.0, 0.0, 0.0), is_difference=True) == "0.000 (0.000 to 0.000)"
    assert text.signed_percent(-0.021) == f"{MINUS}2.1 %"


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [((8,), "8"), ((3, 4), "3, 4"), ((3, 7, 8, 9), "3, 7 to 9"), ((0, 1, 2, 4, 6, 7, 8), "0 to 2, 4, 6 to 8")],
)
def test_neighbours_are_told_as_a_range(numbers, shown):
    assert text.ranges(numbers) == shown


def test_clean_text_keeps_what_people_write():
    assert text.clean("模型 🧠 ñ\tA\nB <>&") == "模型 🧠 ñ\tA\nB <>&"
    assert text.clean("a\x00\x1b\ud800\u202eb") == "a" + "\ufffd" * 4 + "b"
    assert text.clean("a\ufffe\U0001ffff\u2028b") == "a\ufffd\ufffd\u2028b"
