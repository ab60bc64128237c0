"""How much each layer loses: the same for all, a list, or by its outliers (OWL: Yin et al. 2023, arXiv 2310.05175).

An outlier is an entry of |W_ij| ||X_j|| more than a few times the layer's mean. With D_l the share of outliers of layer
l, OWL prunes a layer with more of them less: S_l = S - c (D_l - mean D), within S +- spread. Means are over weights, so
that the layers together lose S. c is the largest number that keeps every S_l within the spread, as the paper's text has
it; its code spreads the shares over 2 spread before it moves their mean to S, which can leave these bounds.

For N:M the layers keep different N of the same M (section 4.4 of the paper): N_l are these shares of M rounded so that
together no more weights stay than with N for all, and no layer keeps more than its share rounded up. Importable without
torch.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from minitron_cli.errors import InputError
from minitron_cli.sparse.pattern import SHARE_DIGITS, Pattern
from minitron_cli.spec import Spec


class Owl(Spec):
    """Layers with more outliers lose less (Yin et al. 2023)."""

    kind: Literal["owl"] = "owl"
    outlier: float = Field(5, gt=1)
    """An entry of |W_ij| ||X_j|| is an outlier above so many times its layer's mean. The paper tries 3 to 10."""
    spread: float = Field(0.08, gt=0, lt=0.5)
    """Largest difference of a layer's share of zeros from that of all; for N:M before rounding."""


def _text(value: Any) -> Any:
    """A pattern as text; a bare number is a share."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 1:
            raise ValueError("a share of zeros is at least 0 and below 1")
        return str(Pattern(Fraction(str(value))))
    try:
        return str(Pattern.parse(value))
    except InputError as e:
        raise ValueError(str(e)) from None


def _named(value: Any) -> Any:
    """Amounts that are given by a name; null is uniform."""
    if value is None:
        return "uniform"
    if isinstance(value, str) and value not in ("uniform", "owl"):
        raise ValueError(f"{value!r} is unknown: write uniform, owl, or a list such as [0.4, 0.6]")
    return {"kind": "owl"} if value == "owl" else value


PatternText = Annotated[str, BeforeValidator(_text, json_schema_input_type=float | str)]
"""N:M or a share of zeros."""

LayerAmounts = Annotated[
    tuple[PatternText, ...] | Owl | Literal["uniform"],
    BeforeValidator(_named, json_schema_input_type=Literal["uniform", "owl"] | list[float | str] | Owl | None),
]
"""uniform, owl, or a share of zeros or an N:M pattern for each layer."""


def by_outliers(pattern: Pattern, owl: Owl, outliers: Sequence[float], weights: Sequence[int]) -> tuple[Pattern, ...]:
    """Pattern of each layer, from its share of outliers and the number of its weights that the pattern is about."""
    shares = _shares(pattern.zeros, Fraction(str(owl.spread)), list(map(Fraction, outliers)), weights)
    if pattern.group is None:
        return tuple(Pattern(share if share == pattern.zeros else _written(share)) for share in shares)
    return tuple(Pattern(1 - Fraction(kept, pattern.group), pattern.group) for kept in _kept(pattern, shares, weights))


def _shares(zeros: Fraction, spread: Fraction, outliers: Sequence[Fraction], weights: Sequence[int]) -> list[Fraction]:
    """Share of zeros of each layer, whose mean over all weights is `zeros`."""
    mean = sum((o * w for o, w in zip(outliers, weights, strict=True)), Fraction()) / sum(weights)
    widest = max(abs(share - mean) for share in outliers)
    return [zeros - (spread * (share - mean) / widest if widest else 0) for share in outliers]


def _written(share: Fraction) -> Fraction:
    """A share with as many digits as a pattern is written with."""
    return Fraction(round(share * 10**SHARE_DIGITS), 10**SHARE_DIGITS)


def _kept(pattern: Pattern, shares: Sequence[Fraction], weights: Sequence[int]) -> list[int]:
    """N of each layer: one more weight of a group stays in the layer that lacks most, while there is room.

    A layer that lacks less than others may be the only one small enough for what is left; it gets its share rounded up,
    and no more. Only where another's share is more than all of M, what that cannot keep goes to the rest, up to N.
    """
    size = pattern.group or 1
    wanted, whole = [(1 - share) * size for share in shares], (1 - pattern.zeros) * size
    least = whole if max(wanted) > size else 0
    kept, room = [1] * len(shares), (whole - 1) * sum(weights)
    while fitting := [i for i, n in enumerate(kept) if n < size and n < max(wanted[i], least) and weights[i] <= room]:
        lacks_most = max(fitting, key=lambda i: (wanted[i] - kept[i], -i))
        kept[lacks_most] += 1
        room -= weights[lacks_most]
    return kept
