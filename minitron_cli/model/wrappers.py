"""What a text model shares with the multimodal wrapper that it is in: tensors around it, sizes, and its first layers.

`checkpoint/wrappers.py` says where the text model lies; this says which of its axes can be pruned there.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model.family import Family, Wrapping, at, pattern
from minitron_cli.model.layout import parse

OTHER = "_"
"""Dim of a layout that no axis of the text model has."""


class SharedSizes(NamedTuple):
    """Sizes that a wrapper has from its text model."""

    tensors: Mapping[str, str] = MappingProxyType({})
    """Name template of a tensor around the text model -> layout. They write to the residual stream."""
    config: Mapping[str, str] = MappingProxyType({})
    """Axis -> path of a config field, outside the text config, that states its size too."""
    hidden_not_prunable: str = ""
    """Reason why hidden cannot be pruned, for messages; empty where it can."""
    derives_head_dim: bool = False
    """Whether the size of a head is hidden / heads, whatever the text model alone would read."""
    per_layer: str = ""
    """Path of a config list: what an image adds to the stream, entry i after layer i."""


TWO_LAYER_PROJECTOR = (
    "the projector's inner width is the hidden size too, and no scores say which of its neurons to keep; "
    "prune another axis, or the text model alone (--as text)"
)


def _merger(name: str) -> dict[str, str]:
    return {f"{name}.weight": "hidden _", f"{name}.bias": "hidden"}


SHARED: Mapping[str, SharedSizes] = MappingProxyType(
    {
        "gemma3": SharedSizes({"multi_modal_projector.mm_input_projection_weight": "_ hidden"}),
        "idefics3": SharedSizes({"model.connector.modality_projection.proj.weight": "hidden _"}),
        "internvl": SharedSizes(hidden_not_prunable=TWO_LAYER_PROJECTOR),
        "llama4": SharedSizes({"multi_modal_projector.linear_1.weight": "hidden _"}),
        "llava": SharedSizes(hidden_not_prunable=TWO_LAYER_PROJECTOR),
        "mistral3": SharedSizes(hidden_not_prunable=TWO_LAYER_PROJECTOR),
        "qwen2_vl": SharedSizes(
            _merger("visual.merger.mlp.2"), {"hidden": "vision_config.hidden_size"}, derives_head_dim=True
        ),
        "qwen2_5_vl": SharedSizes(
            _merger("visual.merger.mlp.2"), {"hidden": "vision_config.out_hidden_size"}, derives_head_dim=True
        ),
        "qwen3_vl": SharedSizes(
            _merger("model.visual.merger.linear_fc2")
            | _merger("model.visual.deepstack_merger_list.{merger}.linear_fc2"),
            {"hidden": "vision_config.out_hidden_size"},
            per_layer="vision_config.deepstack_visual_indexes",
        ),
        "qwen3_5": SharedSizes(_merger("model.visual.merger.linear_fc2"), {"hidden": "vision_config.out_hidden_size"}),
        "smolvlm": SharedSizes({"model.connector.modality_projection.proj.weight": "hidden _"}),
    }
)


def within(
    family: Family, model_type: str, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
) -> Family:
    """The family of a text model in a wrapper of this type, config and tensors (name -> shape, of those around it).

    CheckpointError if a tensor that shares a size with the text model is missing.
    """
    shared = SHARED[model_type]
    found: dict[str, str] = {}
    for template, layout in shared.tensors.items():
        fitting = [name for name in tensors if pattern(template).fullmatch(name)]
        if not fitting and layout != "hidden":
            raise CheckpointError(f"tensor {template} is missing: the checkpoint is incomplete; download it again")
        found |= {name: _with_size(layout, name, tensors[name]) for name in fitting}
    sizes = {axis: field for axis, field in family.sizes.items() if axis != "head_dim" or not shared.derives_head_dim}
    first_layers = len(at(config, shared.per_layer) or ()) if shared.per_layer else 0
    wrapping = Wrapping(model_type, found, shared.config, shared.hidden_not_prunable, first_layers, family)
    return replace(family, sizes=sizes, wrapping=wrapping)


def _with_size(layout: str, name: str, shape: tuple[int, ...]) -> str:
    """Layout with the tensor's own number in place of `_`."""
    dims = layout.split()
    if len(dims) != len(shape):
        raise CheckpointError(f"tensor {name!r} has shape {shown(shape)}, not {len(dims)} dims: download it again")
    return " ".join(str(size) if dim == OTHER else dim for dim, size in zip(dims, shape, strict=True))


def check(family: Family, sizes: Mapping[str, int], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the tensors around a text model have the sizes that they share with it."""
    for name, layout in (family.wrapping.tensors if family.wrapping else {}).items():
        if tensors[name] != (wanted := parse(layout).shape(sizes)):
            raise CheckpointError(
                f"tensor {name!r} has shape {shown(tensors[name])} where config.json implies {wanted}: fix config.json"
            )
