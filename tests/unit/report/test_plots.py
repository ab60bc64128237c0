import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from minitron_cli.figures import Figure
from minitron_cli.report import plots
from minitron_cli.report.thinning import thinned
from minitron_cli.report.view import Contours, Drawing, ImportanceMap, LayerBars, Line, Lines, Plot

X, Y = Figure("x"), Figure("y")


def draw(drawing: Drawing) -> str:
    return plots.svg(Plot("plot", drawing, ""))


@pytest.fixture
def sorted_map(monkeypatch):
    """The map of many channels, forced on few."""

    def drawn(*found):
        with monkeypatch.context() as forced:
            forced.setattr(plots, "CELLS", 0)
            return draw(ImportanceMap(*found))

    return drawn


def picture(svg):
    """The map in a figure, RGBA, layer 0 first. The first image is the map, the second the color bar."""
    encoded = re.findall(r"base64,([^\"]*)\"", svg)[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))


@pytest.fixture
def scores():
    return np.random.default_rng(0).random((4, 10)) + 0.01


def brightness(pixels):
    return pixels[..., :3].astype(float) @ [0.299, 0.587, 0.114]


def test_a_map_has_the_kept_channels_first_each_side_from_bright_to_dark(scores, sorted_map):
    kept_LK = np.array([[0, 1, 2], [3, 4, 5], [7, 8, 9], [1, 5, 9]])
    light_LC = brightness(picture(sorted_map(scores, kept_LK)))
    for row, kept_K, light_C in zip(scores, kept_LK, light_LC, strict=True):
        order = [*sorted(kept_K, key=lambda c: -row[c]), *sorted(set(range(10)) - set(kept_K), key=lambda c: -row[c])]
        assert (np.argsort(np.argsort(row[order])) == np.argsort(np.argsort(light_C))).all()


@pytest.mark.slow
def test_a_dropped_layer_is_blank(scores, sorted_map):
    kept_LK = np.tile(np.arange(5), (4, 1))
    for svg in (sorted_map(scores, kept_LK, (2,)), draw(ImportanceMap(scores, kept_LK, (2,)))):
        assert [bool(row[:, 3].any()) for row in picture(svg)] == [True, True, False, True]


def test_a_grid_shows_channels_in_their_places_with_a_cross_on_each_that_was_pruned(scores):
    kept_LK = np.array([[0, 1, 2], [3, 4, 5], [7, 8, 9], [1, 5, 9]])
    svg = draw(ImportanceMap(scores, kept_LK, (1,)))
    light_LC = brightness(picture(svg))
    for row, light_C in zip(scores[[0, 2, 3]], light_LC[[0, 2, 3]], strict=True):
        assert (np.argsort(row) == np.argsort(light_C)).all()
    crosses = re.findall(r'd="((?:M [\d. -]+\nL [\d. -]+\n?){4,})"', svg)
    assert [path.count("M") for path in crosses] == [2 * 3 * 7] * 2  # two strokes, three layers, the halo and the cross


@pytest.mark.slow
def test_nothing_is_marked_where_nothing_was_pruned(scores, sorted_map):
    everything = np.tile(np.arange(10), (4, 1))
    svgs = [
        sorted_map(scores, everything),
        draw(ImportanceMap(scores, everything)),
        draw(ImportanceMap(scores[0], everything[0])),
    ]
    assert not any(plots.PRUNED_ON_MAP in svg or "--pruned" in svg for svg in svgs)


def test_wide_maps_are_averaged_into_columns():
    scores = np.repeat(np.linspace(1, 0.1, 50)[None], 3, axis=0).repeat(100, axis=1)
    assert picture(draw(ImportanceMap(scores, np.tile(np.arange(5000), (3, 1))))).shape == (3, plots.COLUMNS, 4)


def test_a_long_curve_is_thinned_without_moving():
    x, y = np.arange(90_000.0), np.sin(np.arange(90_000) / 9000)
    thin_x, thin_y = (thinned(values, plots.POINTS) for values in (x, y))
    assert len(thin_x) == plots.POINTS
    np.testing.assert_allclose(thin_y, np.sin(thin_x / 9000), atol=1e-3)


@pytest.mark.slow
def test_colors_follow_the_page():
    svgs = [
        draw(Lines((Line([(10, 2.0), (20, 3.0)], 2, "points"), Line([(10, 2.0)], 1, "rings")), X, Y)),
        draw(LayerBars([1, 2], Y, (1,))),
        draw(Lines((Line([(1, 3), (2, 4)], 8),), X, Y, reference=3.5)),
        draw(Lines((Line([(0, 0.5)], 0), Line([(0, np.nan)], 1)), X, Figure("kept", style="share"))),
        draw(
            Lines(
                (
                    Line([(0, 3.0), (1, 2.0), (2, 1.0)], 1),
                    Line([(0, 4.0), (1, 3.0)], 5, "dashed"),
                    Line([(0, 4.0), (1, 3.0)], 2, "faint"),
                ),
                X,
                Y,
            )
        ),
    ]
    for svg in svgs:
        assert "currentColor" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "var(--series-2)" in svgs[2]  # 8 modulo the number of series
    assert "var(--pruned)" in svgs[1]


def test_axes_are_titled_by_their_figures_with_units():
    svg = draw(Lines((Line([(10, 2.0), (20, 3.0)], 2, "points"),), Figure("energy", "J"), Figure("loss", "nats/token")))
    assert ">energy (J)<" in svg
    assert ">loss (nats/token)<" in svg
    assert 'aria-label="Loss against energy"' in svg


def test_no_mathematics_is_read_into_numbers():
    svg = draw(LayerBars([1e-3, 1e6], X))
    assert "mathdefault" not in svg
    assert ">1e+06<" in svg


@pytest.mark.slow
def test_a_sheet_names_its_lines_and_is_as_wide_as_its_plots():
    share, lines = Figure("share", style="share"), tuple(Line([(0.25, 2.0), (1.0, 3.0)], i) for i in range(2))
    one = Plot("one", Lines(lines, share, Figure("loss")), "A caption", ((0, "first <b>"), (1, "second")))
    alone, three = plots.sheet([one]), plots.sheet([one] * 3)
    assert "A caption" in alone
    assert ">first &lt;b&gt;<" in alone
    assert ">second<" in alone
    assert ">75%<" in alone
    widths = [float(re.search(r'width="([\d.]+)pt"', svg)[1]) for svg in (alone, three)]
    assert widths[1] == pytest.approx(3 * widths[0])


def test_a_plane_shows_its_points_and_bears_values_that_are_missing_or_equal():
    x, y = np.meshgrid([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    values = x**2 + y
    values[0, 0] = np.nan
    svg = draw(Contours(x, y, values, Y, [(0, 0), (2, 1)]))
    assert svg.count("distance") == 3  # both axes, and what a screen reader says
    assert "var(--series-0)" in svg
    assert "var(--series-1)" in svg
    assert Y.title in svg
    assert "distance" in draw(Contours(x, y, np.zeros((3, 3)), Y))
    assert "distance" in draw(Contours(x, y, np.full((3, 3), np.nan), Y))


@pytest.mark.parametrize(("length", "is_to_scale"), [(2, True), (50, False)])
def test_a_plane_that_is_far_longer_than_wide_is_no_line(length, is_to_scale):
    x, y = np.meshgrid([0.0, 1.0], [0.0, length])
    figure = plots._figure([Plot("plot", Contours(x, y, x + y, Y), "")])
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert (abs(box.height / box.width - length) < 0.01) == is_to_scale
    assert box.width > box.height / 3
