"""View of results: sections of text, tables of typed values and plots. Back ends render it; it knows none of them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.figures import NOTHING, Estimate, Figure

if TYPE_CHECKING:
    import numpy as np

# L layer, C channel or column, K kept, R row

Cell = str | float | Estimate | None
Style = Literal["line", "faint", "dashed", "points", "rings", "span"]
Legend = tuple[tuple[int, str], ...]  # number of a series' color, and its name


@dataclass(frozen=True)
class Table:
    """Typed values under figures. The first column names the rows."""

    title: str
    columns: Sequence[Figure]
    rows: Sequence[Sequence[Cell]]
    marked: Collection[int] = ()
    """Numbers of the rows that stand out."""

    @classmethod
    def of_words(cls, title: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> "Table":
        """Table under headings without units."""
        return cls(title, tuple(map(Figure, headings)), tuple(rows))

    @classmethod
    def of_columns(cls, title: str, *columns: tuple[Figure, Sequence[Cell]], marked: Collection[int] = ()) -> "Table":
        """Table of columns, without those after the first that hold no value."""
        shown = [column for i, column in enumerate(columns) if i == 0 or not all(map(is_empty, column[1]))]
        rows = zip(*(cells for _, cells in shown), strict=True)
        return cls(title, tuple(figure for figure, _ in shown), tuple(rows), marked)

    @property
    def header(self) -> tuple[str, ...]:
        """Headings of the columns."""
        return tuple(figure.heading for figure in self.columns)

    def text(self) -> list[tuple[str, ...]]:
        """All cells as text, row by row."""
        rows = [zip(row, self.columns, strict=True) for row in self.rows]
        return [tuple((x or NOTHING) if isinstance(x, str) else figure.cell(x) for x, figure in row) for row in rows]

    def is_words(self, column: int) -> bool:
        """Whether a column holds words, which are aligned to the left."""
        return column == 0 or any(isinstance(row[column], str) for row in self.rows)


def is_empty(cell: Cell) -> bool:
    """Whether a cell holds no value."""
    return (cell.value if isinstance(cell, Estimate) else cell) in (None, "")


@dataclass(frozen=True)
class Line:
    """One series of a plot of lines."""

    points: Sequence[tuple[float, float]]
    """Horizontal and vertical value of each point."""
    color: int
    """Number of the series' color."""
    style: Style = "line"
    """`faint` is one of many lines that only give the context, `span` an interval."""


@dataclass(frozen=True)
class Lines:
    """Values against another quantity, series by series, and a dashed line at `reference`."""

    lines: tuple[Line, ...]
    x: Figure
    y: Figure
    reference: float | None = None


@dataclass(frozen=True)
class LayerBars:
    """One bar per layer [L]; those of dropped layers stand out."""

    x: ClassVar = Figure("layer")
    values: Sequence[float]
    y: Figure
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImportanceMap:
    """Importance [L, C], or [C] if all layers share the channels, and the kept ones [L, K] or [K]."""

    x: ClassVar = Figure("channel")
    y: ClassVar = Figure("importance")
    scores: "np.ndarray"
    kept: "np.ndarray"
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeptBar:
    """One part of a row: its size before and after."""

    color: int
    """Number of the part's color."""
    before: float
    after: float


@dataclass(frozen=True)
class KeptBars:
    """Rows of parts side by side, as long as they were before; what was kept stands out. The first row is that of the
    embeddings, the next one that of layer 0."""

    y: ClassVar = Figure("layer")
    rows: tuple[tuple[KeptBar, ...], ...]
    x: Figure


@dataclass(frozen=True)
class Contours:
    """Values over a plane, on a grid of R rows and C columns that may be oblique, and places in it, one per series."""

    x: ClassVar = Figure("distance")
    x_RC: "np.ndarray"
    """Horizontal place of each point of the grid."""
    y_RC: "np.ndarray"
    """Vertical place."""
    values_RC: "np.ndarray"
    """Value there; NaN where there is none."""
    y: Figure
    points: Sequence[tuple[float, float]] = ()


Drawing = Lines | LayerBars | ImportanceMap | KeptBars | Contours


@dataclass(frozen=True)
class Plot:
    """One panel: a drawing and its caption."""

    name: str
    """Identifier that is unique on the page; never a user's string."""
    drawing: Drawing
    caption: str
    legend: Legend = ()


@dataclass(frozen=True)
class Section:
    """One topic: a paragraph, tables, plots and commands."""

    anchor: str
    title: str
    text: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    legend: Legend = ()
    """Legend that all plots share."""
    code: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show but text."""
        return not (self.plots or self.code or any(table.rows for table in self.tables))


@dataclass(frozen=True)
class KeyFigure:
    """One number of the result with its title and a remark, for the head of the page."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class View:
    """Everything that is shown of a result."""

    title: str
    headline: str = ""
    """The result in one sentence, which is true whatever was measured; empty if there is none."""
    lead: str = ""
    """The result in a few sentences."""
    figures: tuple[KeyFigure, ...] = ()
    sections: tuple[Section, ...] = ()
