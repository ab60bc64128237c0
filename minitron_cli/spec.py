"""The base of everything a user writes down: frozen, strict, documented attribute by attribute."""

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


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
    text = str(value).strip().replace("_", "").replace(",", "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbBtT]?)", text)
    if isinstance(value, bool) or found is None:
        raise ValueError(f"{value!r} is not a quantity: write 4B, 1.5B, 350M, 64k or a whole number")
    exact = Fraction(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[found[2].lower()]
    if exact.denominator != 1 or exact < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return int(exact)


Quantity = Annotated[int, BeforeValidator(_quantity, json_schema_input_type=int | str)]
"""A positive count; `4B`, `350M` and `64k` are understood."""
