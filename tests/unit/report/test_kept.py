"""The picture of what pruning kept."""

from minitron_cli.report.kept import kept_plot
from minitron_cli.report.view import KeptBars
from minitron_cli.results.prune import Parts


def test_a_layer_that_was_dropped_keeps_nothing_and_the_others_their_places() -> None:
    parent = Parts(embeddings=9, mixer=(4, 4, 4), ffn=(8, 8, 8), cache_bytes=6)
    plot = kept_plot(parent, Parts(embeddings=7, mixer=(3, 2), ffn=(6, 5), cache_bytes=4), [0, 2])
    assert isinstance(plot.drawing, KeptBars)
    bars = [[(bar.before, bar.after) for bar in row] for row in plot.drawing.rows]
    assert bars == [[(9, 7)], [(4, 3), (8, 6)], [(4, 0), (8, 0)], [(4, 2), (8, 5)]]
