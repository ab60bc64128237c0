"""The base of everything a user writes down: frozen, strict, documented attribute by attribute."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """An immutable piece of a recipe. An unknown key is an error; attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
