"""Numbers and names as a reader wants them."""

import math
import unicodedata
from collections.abc import Mapping, Sequence

from minitron_cli.report.data import CostRow, Interval, Measure

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
AXES = {
    "layer": "layers",
    "hidden": "hidden size",
    "head": "query heads",
    "kv_head": "key-value heads",
    "head_dim": "head size",
    "ffn": "FFN size",
    "vocab": "vocabulary",
    "expert": "experts",
}
CHANNELS = {
    "hidden": "hidden channels",
    "head": "query heads",
    "expert": "experts",
    "ffn": "FFN neurons",
    "layer": "layers",
}


def channel_title(axis: str) -> str:
    """What an axis's entries are called when they are counted."""
    return CHANNELS.get(axis, f"{axis} channels")


def axis_title(axis: str) -> str:
    return AXES.get(axis, axis)


def short(count: float | None) -> str:
    """Three digits: 4.51 B."""
    if count is None:
        return NOTHING
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:g}" if count == int(count) else _three_digits(count)


def ranges(numbers: Sequence[int]) -> str:
    """3, 7 to 9: of numbers in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def exact(count: int | None) -> str:
    return NOTHING if count is None else f"{count:,}"


def size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} GiB"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def signed_percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", MINUS)


def signed(value: float) -> str:
    """+0.250; more decimals where it is small."""
    return _signed(value, _decimals(abs(value)))


def _signed(value: float, digits: int) -> str:
    """What rounds to nothing has no sign."""
    shown = f"{value:+,.{digits}f}"
    return shown.replace("-", MINUS) if float(shown.replace(",", "")) else shown[1:]


def measure(value: Measure | None) -> str:
    """2.345 ± 0.012; fewer decimals where the value is large, more where the error would read as nothing."""
    if value is None or value.value is None:
        return NOTHING
    digits = _decimals(abs(value.value))
    if value.stderr is None:
        return decimal(value.value)
    if 0 < value.stderr < 10.0**-digits:
        digits = min(6, math.ceil(-math.log10(value.stderr)))
    return f"{value.value:,.{digits}f} ± {value.stderr:,.{digits}f}"


def decimal(value: float) -> str:
    return f"{value:,.{_decimals(abs(value))}f}"


def interval(found: Interval | None, *, is_difference: bool = False) -> str:
    """0.640 (0.573 to 0.707); with signs where it is a difference."""
    if found is None:
        return NOTHING
    digits = _decimals(max(abs(x) for x in (found.value, found.low, found.high) if x is not None))
    value, low, high = (
        "" if x is None else _signed(x, digits) if is_difference else f"{x:,.{digits}f}".replace("-", MINUS)
        for x in (found.value, found.low, found.high)
    )
    return f"{value} ({low} to {high})" if low else value


def _decimals(size: float) -> int:
    if 0 < size < 0.01:
        return 4
    return 3 if size < 20 else 1 if size < 10_000 else 0


def power_of_ten(value: float | None) -> str:
    """1.23 times 10¹⁵, with the sign for it."""
    if not value:
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} {TIMES} 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def clean(text: str) -> str:
    """Text that can be stored and shown: what would break either, or reorder its surroundings, becomes �."""
    return "".join("\ufffd" if _is_harmful(c) else c for c in text)


def _is_harmful(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    is_nothing = ord(character) & 0xFFFE == 0xFFFE  # which XML may not hold
    return is_control or is_nothing or character in BIDI_CONTROLS


def cost_rows(costs: Sequence[CostRow]) -> tuple[tuple[str, ...], ...]:
    """Stage, work, tokens, FLOPs."""
    return tuple((row.stage, row.work or NOTHING, short(row.tokens), power_of_ten(row.flops)) for row in costs)


def cost_total(costs: Sequence[CostRow]) -> tuple[str, str]:
    """Tokens and FLOPs."""
    return short(sum(row.tokens or 0 for row in costs)), power_of_ten(sum(row.flops or 0 for row in costs))


def hours(by_device: Mapping[str, float]) -> str:
    """A sentence on what devices were busy for how long, or nothing."""
    found = ", ".join(f"{spent:,.3g} hours of {clean(device)}" for device, spent in by_device.items())
    return f"It took {found}." if found else ""
