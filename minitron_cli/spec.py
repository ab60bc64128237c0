"""Base class of everything that users write down: frozen, strict, each attribute with a docstring."""

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Spec(BaseModel):
    """An immutable piece of a recipe. An unknown key is an error; attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def _quantity(value: object) -> object:
    """Read 4B, 1.5B, 350M, 64k or 4_000_000. Anything else is left for pydantic to refuse."""
    text = _without_separators(str(value))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbBtT]?)", text)
    if isinstance(value, bool) or found is None:
        raise ValueError(f"{value!r} is not a quantity: write 4B, 1.5B, 350M, 64k or a whole number")
    exact = Fraction(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[found[2].lower()]
    if exact.denominator != 1 or exact < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return int(exact)


def _without_separators(text: str) -> str:
    """The text of a number without underscores and commas between thousands; a comma elsewhere stays."""
    text = text.strip().replace("_", "")
    return text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?\s*[A-Za-z]*", text) else text


def _share(text: str) -> str | None:
    """Normalized share such as `50%`; None if the text is not a share."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
    return f"{float(found[1]):g}%" if found and float(found[1]) > 0 else None


def _amount(value: object) -> object:
    """Read a quantity, or a share of the parent's."""
    return _share(str(value).strip()) or _quantity(value)


def _is_no_bare_percentage(amount: float | str) -> float | str:
    if not isinstance(amount, str) and amount <= 100:
        raise ValueError(f"{amount:g} is a number of parameters: write {amount:g}% for a share of the parent's")
    return amount


BYTES = (
    {"": 1}
    | {f"{p}B": 1000 ** (i + 1) for i, p in enumerate("kMGT")}
    | {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}
)


def _bytes(value: object) -> object:
    """Read 16GiB, 24GB, 80% or a number of bytes."""
    text = _without_separators(str(value))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if share := _share(text):
        return share
    if isinstance(value, bool) or found is None or found[2] not in BYTES:
        raise ValueError(f"{value!r} is not a size in memory: write 16GiB, 24GB, 80% or a number of bytes")
    return round(Fraction(found[1]) * BYTES[found[2]])


def _measure(value: object) -> object:
    """Read a number, or a share of the parent's."""
    text = str(value).strip()
    if share := _share(text):
        return share
    try:
        number = math.nan if isinstance(value, bool) else float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a number above 0: write 20 or 12.5, without a unit, or 80% of the parent's")
    return number


def of_whole(amount: float | str, whole: float) -> float:
    """Value of an amount; a share is taken of `whole`."""
    return float(amount[:-1]) / 100 * whole if isinstance(amount, str) else amount


def _form(name: str) -> Any:
    """Field whose JSON schema names the accepted form."""
    return Field(json_schema_extra={"format": name})


Quantity = Annotated[int, BeforeValidator(_quantity, json_schema_input_type=Annotated[int | str, _form("count")])]
"""A positive count; `4B`, `350M` and `64k` are understood."""

Amount = Annotated[
    int | str, BeforeValidator(_amount, json_schema_input_type=Annotated[int | str, _form("count or share")])
]
"""A count, or a share of the parent's, such as `50%`."""

Target = Annotated[Amount, AfterValidator(_is_no_bare_percentage)]
"""Size of a child as an `Amount`; no model is so small that a count up to 100 is meant."""

Bytes = Annotated[
    int | str, BeforeValidator(_bytes, json_schema_input_type=Annotated[int | str, _form("bytes or share")])
]
"""A size in memory such as `16GiB`, or a share of the parent's."""

Reading = Annotated[
    float | str, BeforeValidator(_measure, json_schema_input_type=Annotated[float | str, _form("number or share")])
]
"""A measured value, or a share of the parent's."""
