"""Parameters of a model by part."""

import math

from minitron_cli.model.family import NAME_AXIS, pattern
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from minitron_cli.results.prune import Parts

FFN_AXES = {"ffn", "expert"}


def parts(shape: Shape) -> Parts:
    """Parameters of a shape by part, and its cache; a final norm is left out."""
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
    cache = shape.kv_cache_bytes(batch=1, length=1)
    return Parts(embeddings=embeddings, mixer=tuple(mixer), ffn=tuple(ffn), cache_bytes=cache)


def _module(template: str) -> str:
    """Module of a layer that a tensor belongs to, such as `mlp`: also its bias, which has no axis of its own."""
    return template.partition("{layer}.")[2].partition(".")[0]


def _axes(shape: Shape, template: str) -> set[str]:
    tensor = parse(shape.family.tensors[template])
    return set(NAME_AXIS.findall(template)).union(*(tensor.axes(dim) for dim in range(len(tensor.dims))))
