"""Modules at which the activations of an axis are observed, derived from the layouts.

A channel of `ffn` or `head` is an input channel of the matrix that reads it, so the tap is that module's input. A
channel of `hidden` is observed after every norm, so the tap is the output of each module whose weight is a plain
`hidden` vector, and of each norm without a weight. A head of a state space, and a channel of its heads, is observed
where its inputs x are made: the second section of the output of in_proj, which gives z, x, B, C and dt (Taghibakhshi et
al. 2025, Minitron-SSM). A channel of a latent, from which queries or keys and values are made, is observed where it is
read: after its norm. Neurons inside experts have no tap: the loaded model joins all experts in one module.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from minitron_cli.model.family import Family
from minitron_cli.model.layout import parse

X = ("mamba_head", "mamba_dim")
"""Section of a state space's inputs."""


READ = ("head", "ffn", "shared_ffn", "mlp_ffn", "q_rank", "kv_rank")
"""Axes whose entries are input channels of a matrix."""


class Tap(NamedTuple):
    """Input or output of a module, whose channels are the entries of an axis."""

    axis: str
    module: str
    """Template such as "model.layers.{layer}.mlp.down_proj"."""
    side: Literal["input", "output"]
    section: int | None = None
    """Section of the output that shows the axis, where it is not all of it."""


def taps(family: Family) -> tuple[Tap, ...]:
    """Taps of head, neurons, latents, hidden and the heads of state spaces, in table order."""
    read = (tap for axis in READ for tap in _consumers(family, axis))
    return (*read, *_norms(family), *_state_spaces(family))


def _consumers(family: Family, axis: str) -> Iterator[Tap]:
    for template, text in family.tensors.items():
        layout = parse(text)
        if len(layout.dims) == 2 and axis in layout.axes(1) and "{expert}" not in template:
            yield Tap(axis, template.removesuffix(".weight"), "input")


def _norms(family: Family) -> Iterator[Tap]:
    for template, text in family.tensors.items():
        if text == "hidden" and template.endswith(".weight"):
            yield Tap("hidden", template.removesuffix(".weight"), "output")
    yield from (Tap("hidden", module, "output") for module in family.norms_without_weight)


def _state_spaces(family: Family) -> Iterator[Tap]:
    for template, text in family.tensors.items():
        if template.endswith("in_proj.weight") and X in parse(text).dims[0][1:]:
            for axis in X:
                yield Tap(axis, template.removesuffix(".weight"), "output", section=1)


def layer_module(family: Family) -> str:
    """Template of the decoder layer's module, such as "model.layers.{layer}"."""
    return next(t[: t.index("{layer}") + len("{layer}")] for t in family.tensors if "{layer}" in t)
