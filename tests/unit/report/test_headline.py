"""What the head of the page says of a result: differences always, a share only of what is worth dividing by."""

from dataclasses import replace

import pytest

from minitron_cli.figures import MINUS
from minitron_cli.report.data import ReportData
from minitron_cli.report.headline import headline, key_figures, lead, share_closed
from minitron_cli.report.sections import repair_tables
from minitron_cli.results.training import Worsening
from tests.unit.report.sample import difference, evaluated, pruned, repair, sparse

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


SMALL = {"title": "t", "model": "Big-8B", "sizes": (8_000, 4_000)}


def told(*models, **more):
    return headline(ReportData(models=models, **(SMALL | more)))


def beside(kind, loss, apart=None, label=None):
    return evaluated(label or kind, kind, loss, apart={"perplexity": {"loss": apart}} if apart else None)


def test_the_headline_is_nothing_where_nothing_was_made_smaller():
    assert told(beside("parent", 2.0), sizes=()) == ""


@pytest.mark.parametrize("models", [(), (beside("parent", 2.0),), (beside("parent", 2.0), beside("pruned", None))])
def test_the_headline_says_that_quality_was_not_measured(models):
    assert told(*models) == "Big-8B at 50 % of its size; its quality has not been measured."


def test_the_headline_gives_the_probability_that_is_kept():
    """exp(-0.1) is 0.905."""
    expected = (
        "Big-8B at 50 % of its size keeps 90 % of the probability that the parent gives a token of held-out text "
        "(loss +0.100 (+0.080 to +0.120) nats per token)."
    )
    assert told(beside("parent", 2.0), beside("distilled", 2.1, difference(0.1, 0.08, 0.12))) == expected
    assert "(loss +0.100 nats per token)" in told(beside("parent", 2.0), beside("distilled", 2.1), model="")


def test_the_headline_claims_no_difference_that_cannot_be_seen():
    for more in (0.01, -0.01):
        text = told(beside("parent", 2.0), beside("pruned", 2.0 + more, difference(more, more - 0.02, more + 0.02)))
        assert text.startswith("Big-8B at 50 % of its size is not measurably worse or better than the parent (loss ")


def test_the_headline_of_a_child_that_is_better_and_of_one_that_diverged():
    assert "gives a token of held-out text 122 % of the probability" in told(
        beside("parent", 2.0), beside("pruned", 1.8)
    )
    assert "keeps 0 % of the probability" in told(beside("parent", 2.0), beside("pruned", 90.0))


def test_the_headline_names_controls_that_are_better():
    """By the paired interval where there is one, else by the value."""
    pair = beside("parent", 2.0), beside("distilled", 2.1)
    seen, unseen = ({"distilled": {"perplexity": {"loss": difference(-0.02, -0.05, high)}}} for high in (-0.01, 0.01))
    base = beside("control", 2.08, label="random-init")
    better, unclear = (replace(base, found=base.found.model_copy(update={"against": one})) for one in (seen, unseen))
    assert told(*pair, better).endswith("nats per token); random-init is better.")
    assert told(*pair, unclear).endswith("nats per token).")
    assert told(*pair, base, better).endswith("; random-init and random-init are better.")


def test_the_headline_of_a_chain_compares_with_the_original():
    last = beside("distilled", 2.5)
    last = replace(
        last,
        found=last.found.model_copy(update={"against_original": {"perplexity": {"loss": difference(0.7, 0.6, 0.8)}}}),
    )
    text = told(beside("original", 1.8), beside("parent", 2.4), last, sizes=(8, 6, 4))
    assert "keeps 50 % of the probability that the original gives" in text
    assert "with 40 % zeros in its pruned matrices" in told(
        last, sparsity=sparse().model_copy(update={"sparsity": 0.4})
    )
