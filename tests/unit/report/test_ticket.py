"""Curves of tickets: means over seeds against the weights that are left, and only where every seed has a figure."""

from minitron_cli.report import ticket
from minitron_cli.results.ticket import TicketResult, TicketRow


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
