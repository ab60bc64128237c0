"""What a model family's checkpoint looks like: its tensors, by name, in named axes.

An axis lives either in a tensor's name (`{layer}`, `{expert}`) or in its dims. Trimming an axis in a name
drops keys and renumbers the rest; trimming one in the dims selects indices. Outside the tables in
`families/`, nothing in the package knows a parameter's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model.layout import Layout, parse

NAME_AXIS = re.compile(r"\{(\w+)\}")


class Match(NamedTuple):
    template: str
    layout: Layout
    at: dict[str, int]  # the position on each axis that the name carries, e.g. {"layer": 3}


class Correction(NamedTuple):
    """Keeps the function where a model computes with an axis's size: times (child's size / parent's size) ** power."""

    axis: str
    power: float
    if_tied: bool = False
    """Only where the head is the embedding, whose correction must not reach the logits."""


class RopeV4(NamedTuple):
    """How version 4 of transformers spells what version 5 keeps in `rope_parameters`."""

    fields: Mapping[str, str] = MappingProxyType(
        {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    )
    """Config field -> its path in `rope_parameters`."""
    scaled: str = ""
    """The path of the parameters that `rope_scaling` speaks of; all of them if empty."""
    scaling: Mapping[str, str] = MappingProxyType({})
    """Field of `rope_scaling` -> field of the parameters; every field without another spelling if empty."""


@dataclass(frozen=True)
class Family:
    """One table. Templates are parameter names as they stand on disk, with axes in braces."""

    model_type: str
    tensors: Mapping[str, str]
    """Name template -> layout."""
    sizes: Mapping[str, str]
    """Axis -> the config field that holds its size."""
    active: Mapping[str, str] = field(default_factory=dict)
    """Axis -> the config field that holds how many of its entries one token uses (experts)."""
    stored_if: Mapping[str, str] = field(default_factory=dict)
    """Template -> the config flag that says it is stored; `!flag` where it is stored unless the flag is set."""
    links: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Norm -> the tensors that read its output, for folding and rotating."""
    norm: Literal["rms", "layer"] = "rms"
    """What its norms over the residual stream do: layer norms subtract the mean as well."""
    norm_offset: float = 0.0
    """What is added to a norm's stored weight to make its gain: 1 where gain - 1 is stored."""
    residual_multiplier: str = ""
    """The config field by which what a block writes is multiplied before it is added to the stream, if there is one."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Template -> the template it equals when `tie_word_embeddings` is set; some checkpoints store both."""
    ignored: tuple[str, ...] = ()
    """Templates of buffers that older checkpoints carry and no model loads."""
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Config lists with one entry per layer."""
    layer_marks: tuple[str, ...] = ()
    """Config integers that count layers from the bottom (`max_window_layers`)."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """Template -> how its numbers change when a size does."""
    rope_v4: RopeV4 = field(default_factory=RopeV4)
    hidden_is_multiple_of_heads: bool = False
    """Whether transformers refuses a hidden size that the number of heads does not divide."""
    head_dim_table: str = ""
    """Path of a config list as long as hidden // head implies: where it is set, that quotient must stay."""
    heads_not_prunable: str = ""
    """Why no head can go, where none can."""
    layer_pattern: str = ""
    """The config list of `layer_lists` that readers such as llama.cpp compute themselves, as a repeating pattern."""
    width_multiple: int = 1
    """What hidden and ffn must be multiples of: experts are multiplied in groups, whose rows are 16-byte steps."""
    runtime_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter of the live model -> the tensors on disk that transformers joins in it: one below the other, and where
    their names have an axis that its own has not (`{expert}`), once for each entry of that axis along a new dim 0."""
    config_aliases: Mapping[str, str] = field(default_factory=dict)
    """Config field -> the name by which other versions of transformers read it; a child's config has both."""
    uniform_if: Mapping[str, Any] = field(default_factory=dict)
    """Config field -> the value that says that all layers are of the kind the table describes."""

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(template), template) for template in self.tensors]

    def match(self, name: str) -> Match:
        """The template, layout and position of one tensor. CheckpointError names the table to edit."""
        if name not in self._matched:
            self._matched[name] = self._match(name)
        return self._matched[name]

    @cached_property
    def _matched(self) -> dict[str, Match]:
        """Every name that was asked for: a model's few thousand, each asked for once a block."""
        return {}

    def _match(self, name: str) -> Match:
        for pattern, template in self._patterns:
            if found := pattern.fullmatch(name):
                return Match(template, parse(self.tensors[template]), {a: int(i) for a, i in found.groupdict().items()})
        raise CheckpointError(
            f"tensor {shown(name)} has no layout in family {self.model_type!r}: "
            f"describe it in minitron_cli/model/families/{self.model_type}.py"
        )

    def offset(self, template: str) -> float:
        """What is added to a tensor's numbers to make what the model multiplies by."""
        is_norm = self.tensors[template] == "hidden" and template.endswith(".weight")
        return self.norm_offset if is_norm else 0.0

    def ignores(self, name: str) -> bool:
        return any(pattern(template).fullmatch(name) for template in self.ignored)

    def axis_sizes(self, config: Any) -> dict[str, int]:
        """Axis sizes, read as attributes of a `PretrainedConfig`."""
        sizes: dict[str, Any] = {axis: getattr(config, name, None) for axis, name in self.sizes.items()}
        if "kv_head" in sizes and sizes["kv_head"] is None:
            sizes["kv_head"] = sizes["head"]  # multi-head attention
        if sizes.get("head_dim") is None and _is_size(sizes["hidden"]) and _is_size(sizes["head"]):
            sizes["head_dim"] = sizes["hidden"] // sizes["head"]
        for axis, size in sizes.items():
            if not _is_size(size):
                raise CheckpointError(
                    f"config field {self.sizes[axis]!r} is {shown(size)}: it must be a positive integer"
                )
        if sizes.get("head", 0) % sizes.get("kv_head", 1):
            heads, groups = self.sizes["head"], self.sizes["kv_head"]
            raise CheckpointError(f"config field {heads!r} is {sizes['head']}: it must be a multiple of {groups!r}")
        return sizes

    def kinds(self, config: Any) -> tuple[Any, ...]:
        """Each layer's kind, where readers expect the parent's pattern; else nothing."""
        return tuple(getattr(config, self.layer_pattern, None) or ()) if self.layer_pattern else ()

    def keeps_hidden_per_head(self, config: Any) -> bool:
        """Whether hidden // head must stay: it is the size of a head, or a table in the config has its length."""
        return "head_dim" not in self.sizes or (bool(self.head_dim_table) and bool(at(config, self.head_dim_table)))

    def active_sizes(self, config: Any, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many entries one token uses, of the axes where that is not all."""
        used: dict[str, Any] = {axis: getattr(config, name, None) for axis, name in self.active.items()}
        for axis, count in used.items():
            if not _is_size(count) or count > sizes[axis]:
                raise CheckpointError(
                    f"config field {self.active[axis]!r} is {shown(count)}: it must be within 1 to {sizes[axis]}"
                )
        return used

    def owners(self, axis: str) -> tuple[str, ...]:
        """The axes whose every entry has an `axis` of its own: layers have heads, layers and experts have neurons."""
        names = [NAME_AXIS.findall(t) for t, text in self.tensors.items() if axis in _axes(t, text)]
        return tuple(a for a in names[0] if a != axis and all(a in others for others in names))

    def stored(self, config: Any) -> tuple[str, ...]:
        """The templates that a model of this config stores, in table order."""
        return tuple(t for t in self.tensors if _holds(self.stored_if.get(t), config))


def at(config: Any, path: str) -> Any:
    """What a dotted path names in a config, an object or nested dicts; None where there is nothing."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _axes(template: str, text: str) -> frozenset[str]:
    layout = parse(text)
    return frozenset(NAME_AXIS.findall(template)).union(*(layout.axes(d) for d in range(len(layout.dims))))


def pattern(template: str) -> re.Pattern[str]:
    """What a name must be to be the template's, with a group for each axis that it carries."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]{0,5})", re.escape(template)))


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _holds(condition: str | None, config: Any) -> bool:
    if condition is None:
        return True
    flag = condition.removeprefix("!")
    return bool(getattr(config, flag, False)) != condition.startswith("!")
