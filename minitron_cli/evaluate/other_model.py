"""Configuration of a model that was measured elsewhere. Importable without torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.metric_name import MetricName
from minitron_cli.spec import Quantity, Spec


class OtherModel(Spec):
    """Values of a model that was measured elsewhere, in a file or given by hand.

    In a recipe `NAME=FILE` is short for `{name: NAME, file: FILE}`.
    """

    name: str = Field(min_length=1)
    """Name in tables and plots."""
    file: str | None = None
    """Results that lm-eval wrote (results_*.json), or the output of `minitron eval --json`."""
    model: str | None = None
    """Model in a file of minitron; if absent, the one of the same name, or the only one besides the parent."""
    values: Mapping[MetricName, float] = {}
    """Values by `task.metric`, as `{winogrande.acc: 0.7}`; they replace the file's."""
    parameters: Quantity | None = None
    """Number of parameters; the file's if absent."""

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if self.file is None and not self.values:
            raise ValueError("give a file of results, or values such as {winogrande.acc: 0.7}")
        return self


def _other(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name, equals, file = value.partition("=")
    if not (name and equals and file):
        raise RecipeError(f"other model {value!r}: write NAME=FILE, for example llama-1b=results.json")
    return {"name": name, "file": file}


RequestedOther = Annotated[OtherModel, BeforeValidator(_other, json_schema_input_type=str | OtherModel)]
