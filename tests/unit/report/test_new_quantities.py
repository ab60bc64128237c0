"""A constraint and a metric that nothing else knows are shown with their own titles and units everywhere."""

import re
from dataclasses import replace
from typing import ClassVar, Literal

import pytest

from minitron_cli.cli import console
from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.reverse_kl import ReverseKL
from minitron_cli.evaluate import metrics
from minitron_cli.figures import Figure
from minitron_cli.model.shape import Shape
from minitron_cli.report import markdown
from minitron_cli.report.candidates import Ranking, candidate_tables, candidates_section
from minitron_cli.report.evaluation import evaluation_tables
from minitron_cli.report.page import render
from minitron_cli.report.sections import repair_tables
from minitron_cli.report.view import Lines, Section, Table, View
from minitron_cli.results.evaluation import MetricResult
from minitron_cli.results.search import CandidateResult, ObjectiveResult
from minitron_cli.search import constraints
from minitron_cli.search.constraints.base import Between, Counted
from tests.unit.report.hostile import Page
from tests.unit.report.sample import evaluated, repair, size


class Energy(Between, Counted):
    """Energy per generated token."""

    kind: Literal["energy"] = "energy"
    figure: ClassVar[Figure] = Figure("energy per token", "mJ", better="lower")

    def cost(self, shape: Shape) -> float:
        return shape.parameters() * 1e-6


def everywhere(table: Table, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The table in the terminal, in HTML and in Markdown."""
    console.table(table)
    page = render(View("t", sections=(Section("a", "A", "", (table,)),)))
    return [capsys.readouterr().err, Page(page).words, markdown.table(table)]


def ranking() -> Ranking:
    return Ranking(
        [
            CandidateResult(
                shape={"hidden": hidden}, parameters=5, zero_shot=loss, costs={"energy": energy}, model=size(5)
            )
            for hidden, loss, energy in ((64, 2.0, 12.5), (48, 2.5, 9.75), (32, 3.0, 11.0))
        ]
    )


def test_a_new_constraint_has_its_unit_in_every_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(constraints.KINDS, "energy", Energy)
    (table,) = candidate_tables(ranking())
    for shown in everywhere(table, capsys):
        assert "energy per token (mJ)" in shown
        assert "12.5" in shown
        assert "9.75" in shown
    assert [row[-1] for row in table.rows] == ["parameters, energy per token", "energy per token", None]


@pytest.mark.slow
def test_a_new_constraint_has_its_unit_on_the_axis_of_its_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(constraints.KINDS, "energy", Energy)
    section = candidates_section(ranking())
    assert section is not None
    assert section.plots[-1].drawing.x.heading == "energy per token (mJ)"  # type: ignore[union-attr]
    assert "against energy per token" in section.plots[-1].caption
    assert ">energy per token (mJ)<" in render(View("t", sections=(section,)))


def test_a_constraint_that_this_installation_lacks_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = candidate_tables(ranking())
    assert all("energy" in shown and "mJ" not in shown for shown in everywhere(table, capsys))


@pytest.mark.parametrize(
    ("scored", "retrained", "first", "said"),
    [
        (("rotate",), ("least_squares", "rotate"), 100, "(zero-shot: untrained, rotate applied)"),
        (("least_squares", "rotate"), ("least_squares", "rotate"), 0, "untrained, least squares and rotate applied"),
        ((), (), 0, "(zero-shot: untrained, not repaired)"),
    ],
)
def test_a_curve_starts_where_the_training_does(
    scored: tuple[str, ...], retrained: tuple[str, ...], first: int, said: str
) -> None:
    """A candidate that was repaired further between its score and its training has no known loss at zero tokens."""
    repairs = {"repairs": scored, "retrained_repairs": retrained, "rungs": (1.5, 1.25)}
    rows = [row.model_copy(update=repairs) for row in ranking().candidates]
    section = candidates_section(replace(ranking(), candidates=rows, rung_tokens=(100, 200)))
    curves = next(plot for plot in section.plots if plot.name == "halving").drawing
    assert isinstance(curves, Lines)
    assert [line.points[0][0] for line in curves.lines] == [first] * 3
    assert said in section.text


def test_every_divergence_says_from_what(capsys: pytest.CaptureFixture[str]) -> None:
    """The parent and the teacher may be two models, and a table has the divergences from both."""
    tables = [
        *evaluation_tables([evaluated("pruned", "pruned", 2.0, kl=0.5)]),
        *candidate_tables(replace(ranking(), objective=ObjectiveResult(name="kl"))),
        *repair_tables(repair(2.0, (3.0, 0.5), (2.5, 0.25))),
        Table("t", (*HELD_OUT.values(), ForwardKL.figure, ReverseKL.figure), ()),
    ]
    words = " ".join(" ".join(everywhere(table, capsys)) for table in tables)
    found = re.findall(r"\bkl\b(?: \(nats/token\),)?(?: to the )?(?:teacher|parent)?", words, re.IGNORECASE)
    assert {one.rsplit(" ", 1)[-1] for one in found} == {"parent", "teacher"}, found
    assert {row[0] for row in tables[0].rows} >= {"KL to the parent (nats/token)"}
    assert "zero-shot KL to the teacher (nats/token)" in tables[1].header


def test_a_new_metric_has_its_unit_in_every_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(metrics.TEXT_FIGURES, "calibration", Figure("calibration error", "pp", better="lower"))
    tasks = {"perplexity": {"calibration": MetricResult(value=3.25, stderr=0.5, n=8)}}
    models = [evaluated("parent", "parent", tasks=tasks), evaluated("pruned", "pruned", tasks=tasks)]
    (table,) = evaluation_tables(models)
    for shown in everywhere(table, capsys):
        assert "calibration error (pp)" in shown
