"""How numbers are written: once for the terminal, the page, the card and the summary."""

import pytest

from minitron_cli import figures
from minitron_cli.figures import MINUS, NOTHING, TIMES, Estimate, Figure

LOSS = Figure("loss", "nats/token", "fixed", "lower")
CHANGE = Figure("loss", "nats/token", "fixed", "lower", is_change=True)


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
        (None, NOTHING),
    ],
)
def test_short_counts_have_three_digits(count, shown):
    assert Figure("parameters", style="short").cell(count) == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Estimate(0.5), "0.500"),
        (Estimate(123456.7), "123,457"),
        (Estimate(0.004), "0.0040"),
        (Estimate(None, 1.0, 2.0), NOTHING),
        (Estimate(0.64, low=0.573, high=0.707), "0.640 (0.573 to 0.707)"),
        (Estimate(0.64, note="p 0.01"), "0.640, p 0.01"),
        (None, NOTHING),
        (2.3456, "2.346"),
        (-0.5, f"{MINUS}0.500"),
        (3e102, f"3.00 {TIMES} 10¹⁰²"),
        (Estimate(2e30, low=2.0, high=4e31), f"2.00 {TIMES} 10³⁰ (2 to 4.00 {TIMES} 10³¹)"),
    ],
)
def test_estimates_have_the_decimals_they_deserve(found, shown):
    assert LOSS.cell(found) == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (-0.5, f"{MINUS}0.500"),
        (0.25, "+0.250"),
        (-0.00002, "0.0000"),
        (0.0, "0.000"),
        (0.0032, "+0.0032"),
        (Estimate(-0.00005, low=-0.0012, high=0.0011), f"{MINUS}0.0001 ({MINUS}0.0012 to +0.0011)"),
        (Estimate(0.0, low=0.0, high=0.0), "0.000 (0.000 to 0.000)"),
    ],
)
def test_differences_have_a_sign_unless_they_round_to_zero(found, shown):
    assert CHANGE.cell(found) == shown


def test_each_style_writes_its_own_unit():
    assert [figures.memory_size(n) for n in (512, 2816, 3 << 20, 5 << 30)] == ["512 B", "2.75 KiB", "3 MiB", "5 GiB"]
    assert Figure("FLOPs", style="power").cell(1.234e15) == f"1.23 {TIMES} 10¹⁵"
    assert Figure("FLOPs", style="power").cell(0) == NOTHING
    assert Figure("against target", style="share", is_change=True).cell(-0.021) == f"{MINUS}2.1 %"
    assert Figure("tokens", style="count").cell(8_030_261_248) == "8,030,261,248"


def test_a_unit_stands_in_the_heading_of_a_column_and_behind_a_value_in_text():
    latency = Figure("latency", "ms", better="lower")
    assert latency.heading == "latency (ms)"
    assert latency.cell(12.5) == "12.5"
    assert latency.text(12.5) == "12.5 ms"
    assert latency.text(None) == NOTHING
