"""Curves of tickets: means over seeds against the weights that are left, and only where every seed has a figure."""

from minitron_cli.report import ticket
from minitron_cli.results.ticket import TicketResult, TicketRow, TransferResult


def row(arm, number, seed, loss, steps, *moved):
    kept, lost = moved or (None, None)
    return TicketRow(
        arm=arm, round=number, seed=seed, density=0.8**number, loss=loss, steps_to_dense=steps, best_step=9,
        moved_kept=kept, moved_lost=lost, path="",
    )  # fmt: skip


ROWS = (
    row("ticket", 0, 0, 3.0, 8),
    row("ticket", 0, 1, 4.0, 9),
    row("ticket", 1, 0, 2.0, 4, 0.3, 0.1),
    row("ticket", 1, 1, 3.0, 6, 0.5, 0.3),
    row("shuffled", 1, 0, 5.0, None),
    row("shuffled", 1, 1, 6.0, 7),
)
FOUND = TicketResult(rewind="init", scope="global", steps=9, seeds=2, rows=ROWS)


def test_curves_are_means_over_seeds_where_each_has_one():
    losses, steps, moved = ticket.plots(FOUND)
    assert [line.points for line in losses.drawing.lines] == [[(1.0, 3.5), (0.8, 2.5)], [(0.8, 5.5)]]
    assert losses.drawing.reference == 3.5
    assert [line.points for line in steps.drawing.lines] == [[(1.0, 8.5), (0.8, 5.0)], []]
    assert [line.points for line in moved.drawing.lines] == [[(0.8, 0.4)], [(0.8, 0.2)]]
    assert moved.legend == ((0, "kept"), (1, "lost"))


def test_curves_without_points_are_left_out():
    rows = tuple(one.model_copy(update={"moved_kept": None, "moved_lost": None}) for one in ROWS)
    assert [plot.name for plot in ticket.plots(FOUND.model_copy(update={"rows": rows}))] == ["tickets", "steps"]
    (first, second) = ticket.view(FOUND.model_copy(update={"rows": rows})).sections
    assert first.tables[0].rows[1][0] == "ticket"
    assert second.title == "Steps to the dense loss"


def test_the_page_begins_with_the_sparsest_tickets_beside_the_best_of_the_other_arms():
    others = (row("random_mask", 1, 0, 9.0, None), row("random_mask", 1, 1, 9.0, None))
    found = FOUND.model_copy(update={"rows": (*ROWS, *others)})
    assert ticket.view(found).headline == (
        "Tickets with 80 % of the weights differ from the dense model's loss by \N{MINUS SIGN}1.000 "
        "(\N{MINUS SIGN}1.000 to \N{MINUS SIGN}1.000) nats per token; the best of the other arms, shuffled, by +2.000 "
        "(+2.000 to +2.000)."
    )
    alone = tuple(one for one in ROWS if one.arm == "ticket" and one.seed == 0)
    said = ticket.view(FOUND.model_copy(update={"rows": alone})).headline
    assert said.endswith("differ from the dense model's loss by \N{MINUS SIGN}1.000 nats per token.")
    assert ticket.view(FOUND.model_copy(update={"rows": ROWS[:2]})).headline == ""


def test_tickets_of_another_text_are_beside_the_own_ones():
    names = {"ticket": "transferred", "shuffled": "ticket"}
    rows = tuple(one.model_copy(update={"arm": names[one.arm]}) if one.round else one for one in ROWS)
    said = ticket.view(TransferResult.model_validate(FOUND.model_dump() | {"rows": rows})).headline
    assert "the best of the other arms, own ticket, by +2.000" in said
