"""A model family as a table: the tensors of its checkpoints by name, in named axes, and what pruning must respect.

An axis is either in a tensor's name (`{layer}`, `{expert}`) or in its dims. Pruning an axis in a name drops tensors and
renumbers the rest; pruning one in the dims selects indices. Outside the tables in `families/`, nothing in the package
knows a parameter's name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model.layer_kinds import KindRule, Layer, Periodic
from minitron_cli.model.layout import Layout, parse

NAME_AXIS = re.compile(r"\{(\w+)\}")
ROTARY_BUFFER = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that older versions of transformers stored for every family; newer ones compute them."""


class Match(NamedTuple):
    """A tensor's name, taken apart."""

    template: str
    layout: Layout
    at: dict[str, int]
    """Position on each axis that the name carries, such as {"layer": 3}."""


class Correction(NamedTuple):
    """Keeps the function where a model computes with a pruned size: times (child's size / parent's size) ** power."""

    axis: str
    """Axis, or product of axes."""
    power: float
    if_tied: bool = False
    """Whether to correct only where the LM head is the embedding, whose own correction must not reach the logits."""


class RopeV4(NamedTuple):
    """Names in version 4 of transformers for what version 5 keeps in `rope_parameters`."""

    fields: Mapping[str, str] = MappingProxyType(
        {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    )
    """Config field -> its path in `rope_parameters`."""
    scaled: str = ""
    """Path of the parameters that `rope_scaling` describes; all of them if empty."""
    scaling: Mapping[str, str] = MappingProxyType({})
    """Field of `rope_scaling` -> field of the parameters; if empty, every field that `fields` does not name."""


HeadSize = Literal["reads_head_dim", "derives_head_dim", "through_transformers", "unsupported", "unknown"]
"""Where a serving program takes the size of a head from: `head_dim` of the config; hidden / heads, whatever the config
says; or transformers' own modeling code, which it runs. unsupported: it has no code for the family. unknown: its code
for the family has not been read."""


class KnownBySize(NamedTuple):
    """Models of a family that a program knows by their sizes and runs otherwise than all others."""

    sizes: tuple[Mapping[str, int], ...]
    """Axis -> size of each such model."""
    differs: str
    """What it does otherwise, or takes for granted, for messages."""
    lacks: str = ""
    """Axis that these models lack and all others have. Empty where sizes do not show which of the two a model needs: a
    child then needs what its parent needs."""
    keeps: tuple[str, str] | None = None
    """Two axes of which it takes the quotient in these models, so that it must stay."""


class Serving(NamedTuple):
    """Serving programs and a family, from sources of vLLM and llama.cpp whose versions docs/serving.md names."""

    vllm: HeadSize = "unknown"
    llama_cpp: HeadSize = "unknown"
    transformers_4: HeadSize = "reads_head_dim"
    llama_cpp_period: int | None = None
    """Every this many layers, llama.cpp takes one to attend to all tokens, whatever `layer_types` says."""
    llama_cpp_windows_at: int | None = None
    """Number of layers of the only models whose windows of attention llama.cpp knows."""
    llama_cpp_differs: str = ""
    """What llama.cpp computes otherwise for all published models of the family, and so for children."""
    llama_cpp_equal: tuple[tuple[str, str], ...] = ()
    """Pairs of products of axes and numbers that llama.cpp takes to be equal."""
    llama_cpp_multiples: tuple[tuple[str, int], ...] = ()
    """Products of axes, with the numbers of which llama.cpp takes them to be multiples."""
    llama_cpp_known: KnownBySize | None = None
    """Models that llama.cpp knows by their sizes."""
    llama_cpp_numbers_kinds: bool = False
    """Whether llama.cpp computes the kinds of all layers from their numbers."""


UNREAD = Serving()


class Wrapping(NamedTuple):
    """What the multimodal wrapper around a text model shares with it."""

    model_type: str
    """Model type of the wrapper."""
    tensors: Mapping[str, str]
    """Name of a tensor around the text model -> layout, with numbers for dims of its own."""
    config: Mapping[str, str]
    """Axis -> path of a config field, outside the text config, that states its size too."""
    hidden_not_prunable: str
    """Reason why hidden cannot be pruned, for messages; empty where it can."""
    first_layers: int
    """Number of the first layers that must stay, because what an image adds to the stream is added after them."""
    alone: "Family"
    """Table of the text model outside the wrapper."""


@dataclass(frozen=True)
class Family:
    """One table. Templates are names of tensors on disk, with axes in braces.

    One that ends in `[{expert}]` is an expert's entry of the tensor on disk, which stacks those of all experts.
    """

    model_type: str
    tensors: Mapping[str, str]
    """Name template -> layout."""
    sizes: Mapping[str, str]
    """Axis -> config field that holds its size."""
    active: Mapping[str, str] = field(default_factory=dict)
    """Axis -> config field that holds how many of its entries one token uses (experts)."""
    stored_if: Mapping[str, str] = field(default_factory=dict)
    """Template -> config flag that says it is stored; `!flag` where it is stored unless the flag is set. Of several
    flags, with spaces between them, all must say so."""
    links: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Norm -> tensors that read its output, for folding and rotating."""
    norm: Literal["rms", "layer"] = "rms"
    """Kind of its norms over the residual stream: RMS norms, or layer norms, which subtract the mean as well."""
    norms_without_weight: tuple[str, ...] = ()
    """Modules of norms over the residual stream that multiply by nothing, so that nothing of them is stored."""
    norm_offset: float = 0.0
    """Added to a norm's stored weight to make its gain: 1 where gain - 1 is stored."""
    residual_multiplier: str = ""
    """Config field by which a block's output is multiplied before it is added to the stream, if there is one."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Template -> template it equals when `tie_word_embeddings` is set; some checkpoints store both."""
    ignored: tuple[str, ...] = ()
    """Templates of buffers that older checkpoints carry and no model loads."""
    layer_lists: tuple[str, ...] = ("layer_types",)
    """Config lists with one entry per layer."""
    layer_marks: tuple[str, ...] = ()
    """Config integers that count layers from the bottom (`max_window_layers`)."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """Template -> correction of its numbers when a size changes."""
    rope_v4: RopeV4 = field(default_factory=RopeV4)
    totals: Mapping[str, str] = field(default_factory=dict)
    """Config field -> product of axes, which it states beside their sizes."""
    quotients: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Config field -> two products of axes, of which it is the quotient, a whole number."""
    adds_outputs: bool = True
    """Whether a block's output is added to the stream as it is, or times `residual_multiplier`."""
    layers_return_tuples: bool = False
    """Whether the decoder takes the first entry of what a layer returns, which is its output otherwise."""
    hidden_is_multiple_of_heads: bool = False
    """Whether transformers refuses a hidden size that the number of heads does not divide."""
    head_dim_table: str = ""
    """Path of a config list whose length follows from hidden // head: where it is set, that quotient must stay."""
    buffers: frozenset[str] = frozenset()
    """Templates that are no parameters: they are stored, and are neither trained nor counted."""
    elementwise: frozenset[str] = frozenset()
    """Templates with two dims that are no matrices: no product is taken with them (rates of a state space)."""
    uncalled: frozenset[str] = frozenset()
    """Templates of matrices that the model multiplies with past their module, whose inputs no hook sees."""
    transposed: tuple[str, ...] = ()
    """Templates of matrices that are stored as inputs, then outputs."""
    not_prunable: Mapping[str, str] = field(default_factory=dict)
    """Axis -> reason why none of its entries can be pruned, for messages."""
    derived: Mapping[str, Callable[[Any], int]] = field(default_factory=dict)
    """Axis -> its size as a function of the config, where that is no field of it; a model without the axis has 0."""
    optional: frozenset[str] = frozenset()
    """Axes that a model need not have: their config field is null then."""
    follows: Mapping[str, str] = field(default_factory=dict)
    """Axis -> axis of whose size its own is a multiple by the config, so that both are pruned by one factor."""
    child_fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every child's config, which make it state what is derived in the parent's, or in transformers' code."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Axis -> axis of its groups, equal blocks of entries that each keep the same number. A router that chooses groups
    of experts first chooses `chosen_group` of them, each rated by its best `rated_expert`."""
    layer_pattern: str = ""
    """Config list of `layer_lists` that readers such as llama.cpp compute themselves, as a repeating pattern."""
    multiples: Mapping[str, int] = field(default_factory=dict)
    """Axis -> divisor of its size, without which transformers' code fails."""
    width_multiple: int = 1
    """Divisor of hidden and ffn: grouped products of experts need rows of whole 16-byte steps."""
    runtime_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter of the loaded model -> tensors on disk that transformers joins in it: concatenated along dim 0 and,
    where their names have an axis that the parameter's lacks (`{expert}`), stacked over it along a new dim 0."""
    config_aliases: Mapping[str, str] = field(default_factory=dict)
    """Config field -> name by which other readers find it; a child's config has both."""
    uniform_if: Mapping[str, Any] = field(default_factory=dict)
    """Config field -> value, or entry of a list by layer, of the models that the table describes."""
    serving: Serving = UNREAD
    """Reading of the family by vLLM and llama.cpp."""
    wrapping: Wrapping | None = None
    """Wrapper that a checkpoint holds around the model, whose table this then is (`model/wrappers.py`)."""

    layer_kinds: tuple[KindRule, ...] = ()
    """Rules for the kinds of layers, where layers hold different tensors."""
    held_by: Mapping[str, str] = field(default_factory=dict)
    """Template -> kind of the layers that hold it; all layers hold the others."""
    layers: tuple[Layer, ...] = field(default=(), compare=False)
    """Kinds of every layer of one model (`of_model`); empty where all layers hold the same tensors."""

    @property
    def is_periodic(self) -> bool:
        """Whether the config states kinds of layers by a period, so that layers go in whole periods."""
        return any(isinstance(rule, Periodic) for rule in self.layer_kinds)

    @cached_property
    def stacks(self) -> dict[str, tuple[str, ...]]:
        """Template of a tensor on disk -> the one whose entries it stacks along dim 0 (`stacked_names.py`)."""
        return {t.removesuffix("[{expert}]"): (t,) for t in self.tensors if t.endswith("[{expert}]")}

    def of_model(self, config: Any) -> "Family":
        """The table with the kinds of the layers of one model. CheckpointError if its config does not state them."""
        try:
            kinds = [rule.read(config) for rule in self.layer_kinds]
        except AttributeError as e:
            raise CheckpointError(f"config field {e.name!r} is missing: it states the kinds of layers") from None
        return self.with_layers(zip(*kinds, strict=True))

    def with_layers(self, layers: Iterable[Layer]) -> "Family":
        """The table with these kinds of layers; itself where it has no rules for them."""
        return replace(self, layers=tuple(layers)) if self.layer_kinds else self

    @property
    def states_its_layers(self) -> bool:
        """Whether config fields can say of which kinds the layers are."""
        by_rule = zip(self.layer_kinds, zip(*self.layers, strict=True), strict=True)
        return not self.layers or all(rule.write(kinds) is not None for rule, kinds in by_rule)

    def holds(self, layer: int, name: str) -> bool:
        """Whether a layer of the model holds a tensor, by its template, or a module, by the start of its tensors'."""
        if not self.layers:
            return True
        templates = (name,) if name in self.tensors else [t for t in self.tensors if t.startswith(f"{name}.")]
        kinds = {self.held_by.get(template) for template in templates}
        return None in kinds or not kinds.isdisjoint(self.layers[layer])

    def is_matrix(self, template: str) -> bool:
        """Whether a tensor is a matrix: no vector, no bias of two dims, no convolution, and no rates."""
        is_flat = len(parse(self.tensors[template]).dims) == 2
        return is_flat and not template.endswith("bias") and template not in self.elementwise

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(pattern(template), template) for template in self.tensors]

    def match(self, name: str) -> Match:
        """Template, layout and position of one tensor. CheckpointError if it has none."""
        if found := self.find(name):
            return found
        raise CheckpointError(f"tensor {shown(name)} has no layout in family {self.model_type!r}: report it")

    def find(self, name: str) -> Match | None:
        """Template, layout and position of one tensor; None if the table has none."""
        if name not in self._matched:
            self._matched[name] = self._match(name)
        return self._matched[name]

    @cached_property
    def _matched(self) -> dict[str, Match | None]:
        """Matches found so far, by name: a model has a few thousand, and each is asked for once a block."""
        return {}

    def _match(self, name: str) -> Match | None:
        for pattern, template in self._patterns:
            if found := pattern.fullmatch(name):
                return Match(template, parse(self.tensors[template]), {a: int(i) for a, i in found.groupdict().items()})
        if self.wrapping and name in self.wrapping.tensors:
            return Match(name, parse(self.wrapping.tensors[name]), {})
        return None

    def offset(self, template: str) -> float:
        """Number that is added to a tensor's values to make what the model multiplies by."""
        is_norm = self.tensors[template] == "hidden" and template.endswith(".weight")
        return self.norm_offset if is_norm else 0.0

    def ignores(self, name: str) -> bool:
        """Whether a tensor is a buffer that no model loads."""
        return bool(ROTARY_BUFFER.search(name)) or any(pattern(template).fullmatch(name) for template in self.ignored)

    def axis_sizes(self, config: Any) -> dict[str, int]:
        """Axis sizes, read as attributes of a `PretrainedConfig`. CheckpointError if one is no positive integer."""
        sizes: dict[str, Any] = {axis: getattr(config, name, None) for axis, name in self.sizes.items()}
        if "kv_head" in sizes and sizes["kv_head"] is None:
            sizes["kv_head"] = sizes["head"]  # multi-head attention
        if sizes.get("head_dim") is None and _is_size(sizes["hidden"]) and _is_size(sizes["head"]):
            sizes["head_dim"] = sizes["hidden"] // sizes["head"]
        sizes = {axis: size for axis, size in sizes.items() if size is not None or axis not in self.optional}
        for axis, size in sizes.items():
            if not _is_size(size):
                raise CheckpointError(
                    f"config field {self.sizes[axis]!r} is {shown(size)}: it must be a positive integer"
                )
        sizes |= {axis: size for axis, derive in self.derived.items() if (size := derive(config))}
        if sizes.get("head", 0) % sizes.get("kv_head", 1):
            heads, groups = self.sizes["head"], self.sizes["kv_head"]
            raise CheckpointError(f"config field {heads!r} is {sizes['head']}: it must be a multiple of {groups!r}")
        return sizes

    def kinds(self, config: Any) -> tuple[Any, ...]:
        """Each layer's kind, where readers expect the parent's pattern; else empty."""
        return tuple(getattr(config, self.layer_pattern, None) or ()) if self.layer_pattern else ()

    def keeps_hidden_per_head(self, config: Any) -> bool:
        """Whether hidden // head must stay: it is the size of a head, or sets the length of a config list."""
        return "head_dim" not in self.sizes or (bool(self.head_dim_table) and bool(at(config, self.head_dim_table)))

    def active_sizes(self, config: Any, sizes: Mapping[str, int]) -> dict[str, int]:
        """Number of entries that one token uses, for the axes where that is not all."""
        used: dict[str, Any] = {axis: getattr(config, name, None) for axis, name in self.active.items()}
        for axis, count in used.items():
            if not _is_size(count) or count > sizes[axis]:
                raise CheckpointError(
                    f"config field {self.active[axis]!r} is {shown(count)}: it must be within 1 to {sizes[axis]}"
                )
        return used

    def owners(self, axis: str) -> tuple[str, ...]:
        """Axes whose every entry has an `axis` of its own: layers have heads, layers and experts have neurons."""
        names = [NAME_AXIS.findall(t) for t, text in self.tensors.items() if axis in _axes(t, text)]
        return tuple(a for a in names[0] if a != axis and all(a in others for others in names))

    def stored(self, config: Any) -> tuple[str, ...]:
        """Templates that a model of this config stores, in table order."""
        return tuple(t for t in self.tensors if _holds(self.stored_if.get(t), config))


def at(config: Any, path: str) -> Any:
    """Value at a dotted path in a config, an object or nested dicts; None where there is nothing."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def _axes(template: str, text: str) -> frozenset[str]:
    layout = parse(text)
    return frozenset(NAME_AXIS.findall(template)).union(*(layout.axes(d) for d in range(len(layout.dims))))


def pattern(template: str) -> re.Pattern[str]:
    """Pattern of the names of a template, with a group for each axis that they carry."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]{0,5})", re.escape(template)))


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _holds(condition: str | None, config: Any) -> bool:
    flags = (condition or "").split()
    return all(bool(getattr(config, flag.removeprefix("!"), False)) != flag.startswith("!") for flag in flags)
