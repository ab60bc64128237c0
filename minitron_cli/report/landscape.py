"""Tables and plots of the landscape around models."""

# R row, C column of the grid on a plane

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minitron_cli.evaluate.metrics import LOSS
from minitron_cli.figures import Figure
from minitron_cli.report.view import Cell, Contours, Line, Lines, Plot, Table
from minitron_cli.results.landscape import LandscapeResult, PlaneLosses

RADIUS = Figure("radius")
COLUMNS = (
    Figure("model"),
    LOSS,
    Figure("weights", style="short"),
    Figure("median radius"),
    Figure("log volume per weight", "nats"),
    Figure("effective directions", style="fixed"),
    Figure("trusted"),
    Figure("log volume, less the first's", "nats", is_change=True),
    Figure("sharpness", "nats/token", better="lower"),
)


def tables(found: LandscapeResult) -> Iterator[Table]:
    """Volumes and sharpness of every model, and the losses on lines between them."""
    title = (
        f"Basin up to +{found.cutoff:g} nats per token, {found.directions:,} directions, scale {found.scale}; "
        f"sharpness at {found.sharpness_radius:g}; {found.tokens:,} held-out tokens"
    )
    yield Table(title, COLUMNS, tuple(_row(found, label) for label in found.models))
    if found.lines:
        yield lines_table(found)
    if found.plane:
        yield plane_table(found.plane)


def _row(found: LandscapeResult, label: str) -> tuple[Cell, ...]:
    one = found.models[label]
    return (
        label,
        one.loss,
        one.dimension,
        one.median_radius,
        one.log_volume_per_weight,
        one.effective_directions,
        "yes" if one.is_trusted else "no",
        found.log_ratio(label),
        one.sharpness,
    )


def lines_table(found: LandscapeResult) -> Table:
    """Loss at each point of the lines."""
    points = len(found.lines[0].losses)
    columns = (Figure("share of the way"), *(Figure(f"{one.start} to {one.end}", LOSS.unit) for one in found.lines))
    rows: list[tuple[Cell, ...]] = [
        (f"{i / (points - 1):.2f}", *(one.losses[i] for one in found.lines)) for i in range(points)
    ]
    return Table("Loss on the line", columns, (*rows, ("barrier", *(one.barrier for one in found.lines))))


def plane_table(found: PlaneLosses) -> Table:
    """Loss on the plane: a row for each share of the way to the third model, a column for that to the second."""
    first, second, third = found.models
    title = f"Loss on the plane: {first}, and shares of the way to {second} (columns) and to {third} (rows)"
    columns = (Figure("share of the way"), *(Figure(f"{a:.2f}", style="fixed") for a in found.shares))
    rows = [(f"{b:.2f}", *row) for b, row in zip(found.shares, found.losses, strict=True)]
    return Table(title, columns, rows)


def plots(found: LandscapeResult, radii: Mapping[str, Sequence[float]]) -> list[Plot]:
    """Radii of every model from the shortest to the longest, and losses on the lines."""
    sorted_radii = [
        Line([((i + 1) / len(some), radius) for i, radius in enumerate(sorted(some))], number)
        for number, some in enumerate(radii.values())
    ]
    share = Figure("share of directions", style="share")
    caption = "Distance to the end of the basin in every direction, from the shortest up"
    shown = [Plot("radii", Lines(tuple(sorted_radii), share, RADIUS), caption, tuple(enumerate(radii)))]
    if found.lines:
        drawn = tuple(Line(_points(one.losses), number) for number, one in enumerate(found.lines))
        names = tuple((number, f"{one.start} to {one.end}") for number, one in enumerate(found.lines))
        way = Figure("share of the way", style="share")
        shown.append(Plot("line", Lines(drawn, way, LOSS), "Loss on the line between two models", names))
    if found.plane:
        caption = "Loss on the plane through three models; distances are in the units of the scale"
        shown.append(Plot("plane", _map(found.plane), caption, tuple(enumerate(found.plane.models))))
    return shown


def _map(found: PlaneLosses) -> Contours:
    """Losses at their places in the orthonormal basis of the plane."""
    corners = np.array(found.corners)
    b_RC, a_RC = np.meshgrid(found.shares, found.shares, indexing="ij")
    places_RC2 = a_RC[..., None] * corners[1] + b_RC[..., None] * corners[2]
    values = np.array([[np.nan if x is None else x for x in row] for row in found.losses])
    return Contours(places_RC2[..., 0], places_RC2[..., 1], values, LOSS, found.corners)


def _points(losses: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(i / (len(losses) - 1), loss) for i, loss in enumerate(losses) if loss is not None]
