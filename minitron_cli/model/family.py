"""What a model family's checkpoint looks like: its tensors, by name, in named axes.

An axis lives either in a tensor's name (`{layer}`, `{expert}`) or in its dims. Trimming an axis in a name
drops keys and renumbers the rest; trimming one in the dims selects indices. Outside the tables in
`families/`, nothing in the package knows a parameter's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model.layout import Layout, parse

NAME_AXIS = re.compile(r"\{(\w+)\}")


class Match(NamedTuple):
    template: str
    layout: Layout
    at: dict[str, int]  # the position on each axis that the name carries, e.g. {"layer": 3}


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
    tied: Mapping[str, str] = field(default_factory=dict)
    """Template -> the template it equals when `tie_word_embeddings` is set; some checkpoints store both."""
    ignored: tuple[str, ...] = ()
    """Templates of buffers that older checkpoints carry and no model loads."""
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Config lists with one entry per layer."""
    layer_marks: tuple[str, ...] = ()
    """Config integers that count layers from the bottom (`max_window_layers`)."""
    hidden_is_multiple_of_heads: bool = False
    """Whether transformers refuses a hidden size that the number of heads does not divide."""

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(template), template) for template in self.tensors]

    def match(self, name: str) -> Match:
        """The template, layout and position of one tensor. CheckpointError names the table to edit."""
        for pattern, template in self._patterns:
            if found := pattern.fullmatch(name):
                return Match(template, parse(self.tensors[template]), {a: int(i) for a, i in found.groupdict().items()})
        raise CheckpointError(
            f"tensor {shown(name)} has no layout in family {self.model_type!r}: "
            f"describe it in minitron_cli/model/families/{self.model_type}.py"
        )

    def ignores(self, name: str) -> bool:
        return any(_pattern(template).fullmatch(name) for template in self.ignored)

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

    def stored(self, config: Any) -> tuple[str, ...]:
        """The templates that a model of this config stores, in table order."""
        return tuple(t for t in self.tensors if _holds(self.stored_if.get(t), config))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]{0,5})", re.escape(template)))


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _holds(condition: str | None, config: Any) -> bool:
    if condition is None:
        return True
    flag = condition.removeprefix("!")
    return bool(getattr(config, flag, False)) != condition.startswith("!")
