"""Metrics by which weights are pruned. The union is the registry: a metric is one file here and one name below."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from minitron_cli.sparse.metrics.magnitude import Magnitude
from minitron_cli.sparse.metrics.sparsegpt import SparseGPT
from minitron_cli.sparse.metrics.wanda import Wanda

AnyMetric = Annotated[Magnitude | Wanda | SparseGPT, Field(discriminator="kind")]


def _by_name(value: Any) -> Any:
    """Settings of a metric that is given by its name alone."""
    return {"kind": value} if isinstance(value, str) else value


MetricSetting = Annotated[AnyMetric, BeforeValidator(_by_name, json_schema_input_type=AnyMetric | str)]
"""A metric as users write it: its name, or its kind and options."""
