"""Names of measured values in recipes: TASK.METRIC."""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

_PATTERN = r"^.+\..+$"


def checked(name: str) -> str:
    """The name. ValueError unless it is TASK.METRIC."""
    if not re.match(_PATTERN, name):
        raise ValueError("a metric is named TASK.METRIC, such as winogrande.acc")
    return name


MetricName = Annotated[str, AfterValidator(checked), WithJsonSchema({"type": "string", "pattern": _PATTERN})]
