"""The page of a chain."""

from typing import Any

import pytest

from minitron_cli.report.family import view
from minitron_cli.report.view import Lines
from minitron_cli.results.family import FamilyMember, FamilyResult, Interval


def interval(value: float, half: float, chance: float | None = None) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, chance=chance)


def member(label: str, parameters: int, loss: float, accuracy: float, **more: Any) -> FamilyMember:
    metrics = {
        "perplexity.loss": interval(loss, 0.03),
        "perplexity.perplexity": interval(9.0, 0.1),
        "quiz.acc": interval(accuracy, 0.01, 0.5),
    }
    return FamilyMember(
        label=label,
        fingerprint=label,
        parameters=parameters,
        non_embedding=parameters,
        active=parameters,
        sizes={},
        memory_bytes=1,
        metrics=metrics,
        **more,
    )


def test_members_are_drawn_against_their_parameters_with_intervals_and_chance() -> None:
    apart = {"perplexity.loss": interval(0.2, 0.01)}
    members = (member("original", 8_000, 2.0, 0.7), member("narrow", 4_000, 2.2, 0.6, from_original=apart))
    shown = view("t", FamilyResult(members=members), ())
    assert shown.headline == (
        "The last of 1 steps, at 50 % of the original's size, keeps 82 % of the probability that the original gives a "
        "token of held-out text (loss +0.200 (+0.190 to +0.210) nats per token)."
    )
    quality = shown.sections[0]
    assert [plot.caption for plot in quality.plots] == [
        "Loss against parameters.",
        "quiz.acc against parameters; guessing has the dashed line.",
    ]
    loss, quiz = (plot.drawing for plot in quality.plots)
    assert isinstance(loss, Lines)
    assert isinstance(quiz, Lines)
    assert [(line.style, line.color) for line in loss.lines] == [("points", 0), ("span", 1), ("points", 1)]
    ends = [value for line in loss.lines for _, value in line.points]
    assert ends == pytest.approx([2.0, 2.19, 2.21, 2.2])  # the interval of the difference, not of the value
    assert (loss.reference, quiz.reference) == (None, 0.5)
    assert quality.legend == ((0, "original"), (1, "narrow"))


def test_a_chain_that_was_not_measured_claims_nothing() -> None:
    members = tuple(member(label, 8, 2.0, 0.5).model_copy(update={"metrics": {}}) for label in ("original", "narrow"))
    shown = view("t", FamilyResult(members=members), ())
    assert shown.headline == "The last of 1 steps, at 100 % of the original's size, has not been measured."
    assert not shown.sections[0].plots
