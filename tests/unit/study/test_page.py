"""The page of a study: intervals where seeds differ, and none where they cannot."""

import pytest

from minitron_cli.study.definition import StudyDefinition
from minitron_cli.study.page import Found
from minitron_cli.study.run_figures import Measured, ModelFigures, RunFigures

STUDY = StudyDefinition.model_validate(
    {
        "question": "Which?",
        "source": "nobody",
        "recipe": {},
        "arms": {"first": {}, "second": {}},
        "expected": [{"lower": "first", "higher": "second", "when": "before"}],
    }
)


def run(loss: float) -> RunFigures:
    """Run of an arm without training."""
    figures = ModelFigures(loss=loss, kl=loss / 10)
    before = Measured(chosen_by=ModelFigures(loss=9, kl=9), reported=figures)
    return RunFigures(parameters=10, non_embedding=8, learning_rate=None, before=before, after=None)


def page(first: list[float], second: list[float]) -> str:
    runs = {"first": [run(loss) for loss in first], "second": [run(loss) for loss in second]}
    return Found("own", STUDY, runs, 2.0, "A setting.", "minitron study own").page()


def test_figures_that_no_seed_changes_have_no_interval_and_no_p_value():
    text = page([2.5, 2.5, 2.5], [3.0, 3.0, 3.0]).replace("\N{EN DASH}", "-")
    assert "| first | 3 | 10 | - | 2.5000 / 0.2500 | - |" in text
    assert "| first | second | loss before | +0.5000 | 3 of 3 | - | - | - |" in text


def test_an_arm_with_fewer_runs_is_compared_by_the_seeds_that_both_have():
    lines = page([2.5, 2.6, 2.7], [3.0]).replace("\N{EN DASH}", "-").splitlines()
    (row,) = [line for line in lines if line.startswith("| first | second |")]
    assert "| +0.5000 | 1 of 1 | - | - |" in row
    (alone,) = [line for line in lines if line.startswith("| second | 1 |")]
    assert "| 3.0000 / 0.3000 |" in alone
    assert any(line.startswith("| first | 3 |") for line in lines)


def test_differences_of_arms_are_compared_by_seed():
    order = {"lower": ["second", "first"], "higher": ["fourth", "third"], "when": "before"}
    study = StudyDefinition.model_validate(
        STUDY.model_dump() | {"arms": {arm: {} for arm in ("first", "second", "third", "fourth")}, "expected": [order]}
    )
    losses = {"first": [2.0, 2.5], "second": [2.25, 2.5], "third": [1.0, 1.0], "fourth": [2.0, 3.0]}
    runs = {arm: [run(loss) for loss in found] for arm, found in losses.items()}
    text = Found("own", study, runs, 2.0, "A setting.", "minitron study own").page()
    # (2.0 - 1.0) - (2.25 - 2.0) = 0.75 and (3.0 - 1.0) - (2.5 - 2.5) = 2.0
    assert "| second minus first | fourth minus third | loss before | +1.3750 ± " in text


@pytest.mark.parametrize(("second", "as_expected"), [([3.0, 3.1], "2 of 2"), ([2.0, 2.1], "0 of 2")])
def test_a_difference_is_positive_in_the_expected_order(second, as_expected):
    (row,) = [line for line in page([2.5, 2.5], second).splitlines() if line.startswith("| first | second |")]
    sign = "+" if as_expected == "2 of 2" else "-"
    assert f"| {sign}0." in row
    assert f"| {as_expected} |" in row
    assert "±" in row


def test_a_p_value_is_never_shown_as_zero():
    (row,) = [line for line in page([2.5, 2.5, 2.5], [3.0, 3.0, 3.000001]).splitlines() if "| second | loss" in line]
    assert "< 0.001 |" in row


def test_what_is_seen_is_that_of_the_adjusted_p_values():
    """Differences 0.5, 0.6 and 0.7: a standard error of 0.0577, times 5.6535 for one order and 8.0104 for two."""

    def seen(orders: int) -> str:
        study = STUDY.model_copy(update={"expected": STUDY.expected * orders})
        runs = {"first": [run(2.5)] * 3, "second": [run(loss) for loss in (3.0, 3.1, 3.2)]}
        text = Found("own", study, runs, 2.0, "A setting.", "minitron study own").page()
        return next(line for line in text.splitlines() if line.startswith("| first | second |")).split(" | ")[6]

    assert [seen(1), seen(2)] == ["0.3264", "0.4625"]


def test_figures_that_differ_by_rounding_have_no_interval():
    text = page([2.5, 2.5 + 1e-15, 2.5], [3.0, 3.0, 3.0]).replace("\N{EN DASH}", "-")
    assert "| first | 3 | 10 | - | 2.5000 / 0.2500 | - |" in text
    assert "| first | second | loss before | +0.5000 | 3 of 3 | - | - | - |" in text


def test_compared_arms_of_different_size_are_named_with_both():
    runs = {"first": [run(2.5)] * 2, "second": [run(3.0).model_copy(update={"non_embedding": 9})] * 2}
    text = Found("own", STUDY, runs, 2.0, "A setting.", "minitron study own").page()
    assert "differ in size outside the embedding: first has 8 parameters and second 9." in text
    assert "differ in size" not in page([2.5, 2.5], [3.0, 3.0])


def trained(before: float, after: float) -> RunFigures:
    """Run of an arm with training."""
    figures = ModelFigures(loss=after, kl=after / 10)
    return run(before).model_copy(update={"after": Measured(chosen_by=ModelFigures(loss=9, kl=9), reported=figures)})


def test_candidates_are_judged_by_the_order_before_training():
    candidates = STUDY.model_copy(update={"are_candidates": True, "expected": ()})
    figures = {"first": [(1.0, 3.0), (1.0, 2.0)], "second": [(2.0, 2.5), (2.0, 2.5)], "third": [(3.0, 4.0), (3.0, 4.0)]}
    runs = {arm: [trained(*pair) for pair in pairs] for arm, pairs in figures.items()}
    text = Found("own", candidates, runs, 2.0, "A setting.", "minitron study own").page()
    # seed 0: one of three pairs is reversed, tau 1/3, cost 3.0 - 2.5; seed 1: none, tau 1, cost 0
    assert "| Kendall's tau of the orders | 0.6667 ± 4.2354 |" in text
    assert "| cost of the choice | 0.2500 ± 3.1766 |" in text


def test_learning_rates_at_the_edge_of_those_that_were_tried_are_named():
    rates = {"first": 1e-3, "second": 2e-4, "third": 5e-4}
    study = StudyDefinition.model_validate(STUDY.model_dump() | {"arms": {arm: {} for arm in rates}})
    runs = {arm: [run(2.5).model_copy(update={"learning_rate": rate})] * 2 for arm, rate in rates.items()}
    setting = ("own", study, runs, 2.0, "A setting.", "minitron study own")
    text = Found(*setting, dict.fromkeys(rates, (2e-4, 5e-4, 1e-3))).page()
    assert 'one beyond it may be better: the largest for "first"; the smallest for "second".' in text
    assert "may be better" not in Found(*setting, dict.fromkeys(rates, ())).page()
    assert "may be better" not in Found(*setting).page()


def test_the_agreement_of_candidates_is_shown_in_the_terminal_as_well():
    runs = {arm: [trained(2.0, 2.5)] * 2 for arm in ("first", "second")}
    setting = ("own", STUDY, runs, 2.0, "A setting.", "minitron study own")
    assert [table.title for table in Found(*setting).tables()] == ["Arms", "Published orders"]
    candidates = (setting[0], STUDY.model_copy(update={"are_candidates": True}), *setting[2:])
    assert [table.title for table in Found(*candidates).tables()][2:] == ["Choice before training"]
