"""What pruning kept, as a picture: the parameters of each layer and of the embeddings, before and after."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitron_cli.figures import Figure
from minitron_cli.report.view import KeptBar, KeptBars, Legend, Plot

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape

FFN_AXES = {"ffn", "expert"}
EMBEDDINGS, MIXER, FFN = 0, 1, 2
LEGEND: Legend = ((EMBEDDINGS, "embeddings and head"), (MIXER, "attention"), (FFN, "FFN"))
PARAMETERS = Figure("parameters", style="short")


@dataclass(frozen=True)
class Parts:
    """Parameters of a model by part."""

    embeddings: int
    mixer: tuple[int, ...]
    """Of each layer, all but the FFN: attention and norms."""
    ffn: tuple[int, ...]
    """Of each layer, the FFN or the experts."""


def parts(shape: "Shape") -> Parts:
    """Parameters of a shape by part; a final norm is left out."""
    from minitron_cli.model.family import pattern

    layers, tensors = shape.sizes["layer"], shape.tensors()
    of_ffn = {_module(template) for template in shape.templates if _axes(shape, template) & FFN_AXES}
    embeddings, mixer, ffn = 0, [0] * layers, [0] * layers
    for template in shape.templates:
        form, part = pattern(template), ffn if _module(template) in of_ffn else mixer
        for name in shape.names(template):
            elements, found = math.prod(tensors[name]), form.fullmatch(name)
            embeddings += elements if shape.is_embedding(template) else 0
            if found and "layer" in found.groupdict():
                part[int(found["layer"])] += elements
    return Parts(embeddings, tuple(mixer), tuple(ffn))


def _module(template: str) -> str:
    """Module of a layer that a tensor belongs to, such as `mlp`: also its bias, which has no axis of its own."""
    return template.partition("{layer}.")[2].partition(".")[0]


def _axes(shape: "Shape", template: str) -> set[str]:
    from minitron_cli.model.family import NAME_AXIS
    from minitron_cli.model.layout import parse

    tensor = parse(shape.family.tensors[template])
    return set(NAME_AXIS.findall(template)).union(*(tensor.axes(dim) for dim in range(len(tensor.dims))))


def kept_plot(parent: Parts, child: Parts, kept_layers: Sequence[int]) -> Plot:
    """Picture of a pruning. `kept_layers`: the parent's number of each layer of the child."""
    places = {layer: i for i, layer in enumerate(kept_layers)}
    bars: list[tuple[KeptBar, ...]] = [(KeptBar(EMBEDDINGS, parent.embeddings, child.embeddings),)]
    for layer, (mixer, ffn) in enumerate(zip(parent.mixer, parent.ffn, strict=True)):
        place = places.get(layer)
        after = (0, 0) if place is None else (child.mixer[place], child.ffn[place])
        bars.append((KeptBar(MIXER, mixer, after[0]), KeptBar(FFN, ffn, after[1])))
    caption = "Each bar is as long as the parent's parameters; what was pruned is red."
    return Plot("kept", KeptBars(tuple(bars), PARAMETERS), caption, LEGEND)
