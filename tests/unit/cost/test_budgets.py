"""Lengths of controls from the student's ledger, against sums by hand."""

import pytest

from minitron_cli.cost.budgets import flops_per_token, length, of_entries, without_signals
from minitron_cli.cost.compute import Entry, teacher, training
from minitron_cli.results.base import ModelSize


def size(flops: int) -> ModelSize:
    return ModelSize(sizes={}, parameters=1, non_embedding=1, decoder_flops=flops - 1, head_flops=1)


STUDENT, TEACHER = size(10), size(40)
SEARCH = [Entry("held-out text", 7_000, 9), *training(STUDENT, TEACHER, 300)]
FIRST, LAST = training(size(20), TEACHER, 1_000), [*training(STUDENT, TEACHER, 500), Entry("held-out text", 64, 5)]
LEDGER = [
    one
    for stage, some in (
        ("search", SEARCH),
        ("correct", training(TEACHER, None, 50)),
        ("distill", FIRST),
        ("distill", LAST),
    )
    for one in of_entries(stage, some)
]


@pytest.mark.parametrize(
    ("equal", "tokens"),
    [
        ("tokens", 1_000 + 500),
        ("total_tokens", 1_000_000 + 300 + 50 + 1_000 + 500),
        ("flops", (300 * (30 + 40) + 50 * 120 + 1_000 * (60 + 40) + 500 * (30 + 40)) // 30),
    ],
)
def test_a_control_from_scratch_is_as_long_as_the_student_is_costly(equal, tokens):
    assert length(equal, LEDGER, given=1_000_000, per_token=flops_per_token(STUDENT, None)) == tokens


def test_a_taught_control_of_equal_flops_pays_for_its_teacher():
    per_token = flops_per_token(STUDENT, TEACHER)
    assert per_token == 3 * 10 + 40
    one_step = of_entries("distill", training(STUDENT, TEACHER, 500))
    assert length("flops", one_step, given=0, per_token=per_token) == 500


def test_a_control_that_reads_the_same_signals_is_as_long_as_the_student():
    """Four passes over a text whose signals one pass of the teacher has stored."""
    ledger = [*of_entries("teach", [teacher(TEACHER, 1_000)]), *of_entries("distill", training(STUDENT, None, 4_000))]
    per_token = flops_per_token(STUDENT, None)
    assert length("flops", without_signals(ledger), given=0, per_token=per_token) == 4_000
    assert length("flops", ledger, given=0, per_token=per_token) == 4_000 + 40 * 1_000 // 30  # one without a teacher
