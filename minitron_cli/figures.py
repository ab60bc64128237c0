"""A figure's title, unit, format and direction, owned by whatever is measured. Knows no measurement and no page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
HUGE = 1e12  # from which a number is written as a power of ten: the perplexity of a diverged model has 100 digits
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Style = Literal["significant", "fixed", "count", "short", "bytes", "share", "power", "duration"]


class Estimate(NamedTuple):
    """Measured value with the ends of its interval, or of another figure than its column's."""

    value: float | None
    """None where the measurement gave no finite value."""
    low: float | None = None
    high: float | None = None
    note: str = ""
    """Remark behind the value, such as `p 0.01`."""
    figure: "Figure | None" = None
    """Figure of the value, in a table whose rows are quantities; None for that of the column."""


Direction = Literal["lower", "higher"]
"""Which values of a quantity are better. One type for all: equal unions share the order of whichever came first."""


@dataclass(frozen=True)
class Figure:
    """How one measured quantity is presented, in a terminal, a page, a card and a summary alike."""

    title: str
    """Name of the quantity, as in running text: `latency`."""
    unit: str = ""
    """Unit of the values as they are written: `ms`. Empty for counts, shares and bytes, which carry their own."""
    style: Style = "significant"
    """How a value is written."""
    better: Direction | None = None
    """Which direction is an improvement; None where neither is."""
    is_change: bool = False
    """Whether values are differences, which are written with their sign."""

    @property
    def heading(self) -> str:
        """Title of a column of plain values: `latency (ms)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def cell(self, value: float | Estimate | None) -> str:
        """Value as a cell under `heading`, with its interval; a dash for None."""
        found = value if isinstance(value, Estimate) else Estimate(value)
        if found.value is None:
            return NOTHING
        figure = found.figure or self
        plus = "+" if figure.is_change else ""
        if found.low is None or found.high is None:
            written = _signed(found.value, _STYLES[figure.style](abs(found.value)), plus)
        else:
            written = _with_interval(found.value, found.low, found.high, plus)
        return f"{written}, {found.note}" if found.note else written

    def text(self, value: float | None) -> str:
        """Value with its unit, for running text: `12.5 ms`."""
        written = self.cell(value)
        return f"{written} {self.unit}" if self.unit and value is not None else written


def significant(value: float) -> str:
    """Four significant digits with thousands separators: `1,234`, `0.9876`."""
    if abs(value) >= HUGE:
        return power(value)
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def fixed(value: float) -> str:
    """As many decimals as values of that size have in one column: `2.346`, `0.640`, `136.0`."""
    return _written(value, value)


def count(value: float) -> str:
    """Whole number with thousands separators: `8,030,261,248`."""
    return f"{round(value):,}"


def short(value: float) -> str:
    """Three significant digits with k, M, B or T: `4.51 B`."""
    units = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"))
    size, unit = next((one for one in units if abs(value) >= 0.9995 * one[0]), (1, ""))
    is_whole = not unit and value == int(value)
    return f"{value:g}" if is_whole else f"{value / size:#.3g}".rstrip(".") + unit


def listed(values: Sequence[object]) -> str:
    """Values in a sentence: `hidden, ffn and layer`."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def memory_size(size_bytes: float) -> str:
    """Bytes in the largest binary unit that is not below one: `896 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.4g} GiB"


def duration(seconds: float) -> str:
    """Time in the unit that suits it: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    for size, unit, most in ((1, "s", 90), (60, "min", 90), (3600, "h", 48)):
        if seconds < size * most:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:,.3g} days"


def power(value: float) -> str:
    """Three significant digits and a power of ten: 1.23 times 10¹⁵."""
    if not value:
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def _with_interval(value: float, low: float, high: float, plus: str) -> str:
    """`0.640 (0.573 to 0.707)`, all with the decimals of the largest."""
    largest = max(value, low, high, key=abs)
    written, first, last = (_signed(x, _written(abs(x), largest), plus) for x in (value, low, high))
    return f"{written} ({first} to {last})"


def _written(value: float, largest: float) -> str:
    """Value with the decimals of the largest in its column."""
    return power(value) if abs(value) >= HUGE else f"{value:,.{_decimals(largest)}f}"


def _signed(value: float, written: str, plus: str) -> str:
    """Absolute value as written, with the sign of the value if it does not round to 0."""
    is_zero = not any(digit in written for digit in "123456789")
    return written if is_zero else f"{plus if value > 0 else MINUS}{written.replace('-', MINUS)}"


def _decimals(value: float) -> int:
    if 0 < abs(value) < 0.01:
        return 4
    return 3 if abs(value) < 20 else 1 if abs(value) < 10_000 else 0


_STYLES: dict[Style, Callable[[float], str]] = {
    "significant": significant,
    "fixed": fixed,
    "count": count,
    "short": short,
    "bytes": memory_size,
    "share": lambda value: f"{100 * value:.1f} %",
    "power": power,
    "duration": duration,
}
