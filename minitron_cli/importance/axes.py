"""Which axes are scored layer by layer, read off the layouts."""

from minitron_cli.model.family import Family
from minitron_cli.model.layout import parse


def is_per_layer(family: Family, axis: str) -> bool:
    """Whether each layer has channels of its own: true of heads and neurons, not of the residual stream."""
    return all("{layer}" in template for template, text in family.tensors.items() if axis in _axes(text))


def _axes(text: str) -> frozenset[str]:
    layout = parse(text)
    return frozenset().union(*(layout.axes(d) for d in range(len(layout.dims))))
