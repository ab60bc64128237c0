"""What the head of the page says of a result: differences always, a share only of what is worth dividing by."""

import pytest

from minitron_cli.figures import MINUS
from minitron_cli.report.data import ReportData
from minitron_cli.report.headline import key_figures, lead, share_closed
from minitron_cli.report.sections import repair_tables
from minitron_cli.results.training import Worsening
from tests.unit.report.sample import difference, evaluated, pruned, repair

REPAIRED = pruned(repair(2.4, (3.0, 0.5), (2.4002, 0.0005)))


def head(parent, pruned, distilled, *, sparse=None, apart=None, repaired=None):
    """The lead, and what is said of training: value and note."""
    losses = {"parent": parent, "pruned": pruned, "sparse": sparse, "distilled": distilled}
    losses = {kind: loss for kind, loss in losses.items() if loss is not None}
    rows = tuple(
        evaluated(kind, kind, loss, apart={"perplexity": {"loss": apart}} if apart and kind == "pruned" else None)
        for kind, loss in losses.items()
    )
    data = ReportData(title="t", models=rows, prune=repaired)
    (figure,) = (figure for figure in key_figures(data) if figure.label == "change by training")
    return lead(data), figure.value, figure.note


def test_a_wrapper_says_that_only_text_was_measured():
    assert "on text alone: of this gemma3 model" in lead(ReportData(title="t", wrapper="gemma3"))
    assert "text alone" not in lead(ReportData(title="t"))


def test_a_pruned_child_that_recovered():
    text, value, note = head(2.412, 4.913, 2.688)
    assert text == "Pruning raised the loss from 2.412 to 4.913 nats per token. Distillation lowered it to 2.688."
    assert value == f"{MINUS}2.225"
    assert note == "in loss, from 4.913 to 2.688: 89 % of the damage by pruning"  # 2.225 of 2.501


def test_training_starts_from_the_sparse_model():
    text, value, note = head(2.0, 2.1, 2.3, sparse=2.5)
    assert text == (
        "Pruning raised the loss from 2.000 to 2.100 nats per token. Making weights zero raised it to 2.500. "
        "Distillation lowered it to 2.300."
    )
    assert (value, note) == (f"{MINUS}0.200", "in loss, from 2.500 to 2.300: 40 % of the damage by pruning")


def test_a_sparse_model_of_the_parent():
    text, value, note = head(2.0, None, 2.3, sparse=2.5)
    assert text == (
        "Making weights zero raised the loss from 2.000 to 2.500 nats per token. Distillation lowered it to 2.300."
    )
    assert (value, note) == (f"{MINUS}0.200", "in loss, from 2.500 to 2.300: 40 % of the damage by pruning")


def test_a_repaired_child_that_improved():
    text, value, note = head(2.4, 2.5, 2.44, apart=difference(0.1, 0.08, 0.12), repaired=REPAIRED)
    assert "Pruning and repair raised the loss from 2.400 to 2.500" in text
    assert (value, note) == (f"{MINUS}0.060", "in loss, from 2.500 to 2.440: 60 % of the damage by pruning")


def test_a_repaired_child_that_training_made_a_little_worse_is_no_percentage():
    """(2.4002 - 2.4034) / (2.4002 - 2.4) is -1600 %."""
    text, value, note = head(2.4, 2.4002, 2.4034, repaired=REPAIRED)
    assert "left the loss at 2.400 nats per token. Distillation raised it to 2.403." in text
    assert (value, note) == ("+0.0032", "in loss, from 2.400 to 2.403")


def test_a_pruned_child_that_training_made_worse_is_no_percentage_either():
    text, value, note = head(2.0, 3.0, 3.5)
    assert "Distillation raised it to 3.500." in text
    assert (value, note) == ("+0.500", "in loss, from 3.000 to 3.500")


@pytest.mark.parametrize(("before", "what"), [(0.5, "made it worse"), (9.0, "ended above its lowest evaluation")])
def test_a_training_that_ends_above_its_start_or_only_above_its_lowest_point(before: float, what: str) -> None:
    worse = Worsening(measure="kl", before=before, lowest=0.5, after=2.0)
    assert f"Training {what}: held-out KL to the teacher ended at 2" in lead(ReportData(title="t", worse=worse))


def test_a_child_that_is_better_than_its_parent():
    text, value, note = head(2.4, 2.6, 2.3)
    assert text.endswith("Distillation lowered it to 2.300, below the parent's.")
    assert (value, note) == (f"{MINUS}0.300", "in loss, from 2.600 to 2.300")


def test_a_pruned_child_that_was_better_than_its_parent():
    text, value, note = head(2.4, 2.35, 2.3)
    assert "Pruning lowered the loss from 2.400 to 2.350" in text
    assert (value, note) == (f"{MINUS}0.050", "in loss, from 2.350 to 2.300")


def test_a_gap_that_may_be_nothing_is_not_divided_by():
    assert "%" in head(2.4, 2.5, 2.44, apart=difference(0.1, 0.05, 0.15))[2]
    assert "%" not in head(2.4, 2.5, 2.44, apart=difference(0.1, -0.01, 0.21))[2]


@pytest.mark.parametrize(
    ("gap", "left", "share"),
    [(2.0, 0.5, 0.75), (2.0, 2.0, 0.0), (2.0, 0.0, 1.0), (2.0, 2.1, None), (2.0, -0.1, None), (0.01, 0.0, None)],
)
def test_a_share_lies_between_nothing_and_everything(gap, left, share):
    assert share_closed(gap, left) == share


def test_a_repair_of_next_to_nothing_is_no_percentage():
    (table,) = repair_tables(repair(2.4, (2.401, 0.5), (2.41, 0.1)))
    assert [row[-1] for row in table.rows] == [None, 0.8]


def test_signals_in_place_of_a_teacher_are_named():
    said = "learned from what the teacher had said of the text once (50 draws of each position)"
    assert said in lead(ReportData(title="t", signals="50 draws"))
