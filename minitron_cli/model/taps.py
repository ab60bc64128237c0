"""Where an axis's activations are seen, read off the layouts.

A channel of `ffn` or `head` is an input channel of the matrix that consumes it, so the tap is that module's
input. A channel of `hidden` is seen after every norm, so the tap is the output of each module whose weight is
a plain `hidden` vector. Neurons inside experts have no tap: the live model joins all experts in one module.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from minitron_cli.model.family import Family
from minitron_cli.model.layout import parse


class Tap(NamedTuple):
    axis: str
    module: str  # a template such as "model.layers.{layer}.mlp.down_proj"
    side: Literal["input", "output"]


def taps(family: Family) -> tuple[Tap, ...]:
    """Every tap of head, ffn and hidden, in table order."""
    return (*_consumers(family, "head"), *_consumers(family, "ffn"), *_norms(family))


def _consumers(family: Family, axis: str) -> Iterator[Tap]:
    for template, text in family.tensors.items():
        layout = parse(text)
        if len(layout.dims) == 2 and axis in layout.axes(1) and "{expert}" not in template:
            yield Tap(axis, template.removesuffix(".weight"), "input")


def _norms(family: Family) -> Iterator[Tap]:
    for template, text in family.tensors.items():
        if text == "hidden" and template.endswith(".weight"):
            yield Tap("hidden", template.removesuffix(".weight"), "output")


def layer_module(family: Family) -> str:
    """The decoder layer's module, e.g. "model.layers.{layer}"."""
    return next(t[: t.index("{layer}") + len("{layer}")] for t in family.tensors if "{layer}" in t)
