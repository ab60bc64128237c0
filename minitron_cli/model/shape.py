"""A model's size on every axis, and the counts that follow from it without building the model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from minitron_cli.choices import CheckpointForm
from minitron_cli.errors import CheckpointError, InputError, shown
from minitron_cli.model.axes import PRUNABLE, Count
from minitron_cli.model.family import NAME_AXIS, Family
from minitron_cli.model.layer_kinds import Layer, apportioned
from minitron_cli.model.layout import parse
from minitron_cli.model.reader_bias import reader_biases


@dataclass(frozen=True)
class Shape:
    """Axis sizes of one model of a family. Two shapes of a parent and its child store the same templates."""

    family: Family
    sizes: Mapping[str, int]
    templates: tuple[str, ...]
    """Templates that are stored: biases and an untied head depend on the config."""
    active: Mapping[str, int]
    """Axis -> number of its entries that one token uses, where that is not all (experts)."""
    kinds: tuple[Any, ...] = field(default=(), compare=False)
    """Each layer's kind where readers expect a pattern. A child's are the first of its parent's, so it keeps these."""
    keeps_hidden_per_head: bool = False
    """Whether hidden // head must stay as it is."""

    @classmethod
    def of(cls, family: Family, config: Any) -> "Shape":
        """Shape of a `PretrainedConfig`. CheckpointError if a size in it is unusable."""
        sizes, family = family.axis_sizes(config), family.of_model(config)
        return cls(
            family,
            sizes,
            family.stored(config),
            family.active_sizes(config, sizes),
            family.kinds(config),
            family.keeps_hidden_per_head(config),
        )

    def check_size(self, axis: str, size: int, remedy: str = "choose another size", *, where: str = "") -> None:
        """Raise InputError, which names the place and the remedy, unless this model can have a child of this size."""
        if not 0 < size <= self.sizes[axis]:
            raise InputError(f"{where}{axis}={size} is not within 1 to the parent's {self.sizes[axis]}: {remedy}")

    def resize(self, **sizes: int) -> "Shape":
        """The same model with other sizes of some axes. Of each kind of layers it has as many as its share.

        An axis that follows another is as many times larger than it as before.
        """
        unknown = sizes.keys() - self.sizes.keys()
        if unknown:
            raise KeyError(f"no axis {sorted(unknown)} in {sorted(self.sizes)}")
        family, layers = self.family, sizes.get("layer", self.sizes["layer"])
        if family.layers and layers != len(family.layers):
            family = family.with_layers(_remaining(family, layers))
        following = {
            axis: self.sizes[axis] * sizes[of] // self.sizes[of]
            for axis, of in family.follows.items()
            if axis in self.sizes and of in sizes
        }
        return replace(self, family=family, sizes=dict(self.sizes) | following | sizes)

    def of_layers(self, kept: Sequence[int]) -> "Shape":
        """The same model with some of its layers."""
        family = self.family.with_layers(self.family.layers[i] for i in kept) if self.family.layers else self.family
        return replace(self, family=family, sizes=dict(self.sizes) | {"layer": len(kept)})

    def layers_with(self, template: str) -> int:
        """Number of layers that hold a template."""
        return sum(self.family.holds(layer, template) for layer in range(self.sizes["layer"]))

    @property
    def groups(self) -> int:
        """Number of key-value heads of a layer; the number of heads where the family has no such axis."""
        return self.sizes.get("kv_head", self.sizes["head"])

    @property
    def period(self) -> int:
        """Number of layers after which their kinds repeat, where the config or readers expect a pattern; else 1."""
        kinds = self.family.layers if self.family.is_periodic else self.kinds[: self.sizes["layer"]]
        return next((p for p in range(1, len(kinds)) if kinds[p:] == kinds[:-p]), max(len(kinds), 1))

    @property
    def is_tied(self) -> bool:
        """Whether the LM head is the token embedding."""
        return not self.family.tied.keys() <= set(self.templates)

    def untied(self) -> "Shape":
        """The same model with an LM head of its own. InputError if it has one."""
        if not self.is_tied:
            raise InputError("the LM head of the model is not tied: leave --untie out")
        return replace(
            self, templates=tuple(t for t in self.family.tensors if t in {*self.templates, *self.family.tied})
        )

    def written_as(self, form: CheckpointForm | None) -> "Shape":
        """The same model in this form; as text, one in a wrapper shares no size with what is around it any more.

        None: as it is. InputError for a wrapper around a model that is in none.
        """
        wrapping = self.family.wrapping
        if form == "wrapper" and wrapping is None:
            raise InputError("the model is a text model, in no wrapper that could be written: leave --as out")
        if form != "text" or wrapping is None:
            return self
        family = wrapping.alone.with_layers(self.family.layers)
        was_derived = family.sizes.keys() != self.family.sizes.keys() and not family.head_dim_table
        return replace(self, family=family, keeps_hidden_per_head=self.keeps_hidden_per_head and not was_derived)

    def without_pattern(self) -> "Shape":
        """The same model, whose layers may be removed in any choice, whatever kinds readers expect."""
        return replace(self, kinds=())

    def with_biases(self) -> "Shape":
        """The same model with a bias wherever inputs of a matrix can be pruned and its family may have one there.

        The flags that say so bring other biases along.
        """
        flags = {bias.flag for bias in reader_biases(self.family).values()}
        added = {
            t
            for t, condition in self.family.stored_if.items()
            if condition in flags
            or (flags.intersection(condition.split()) and t.replace(".bias", ".weight") in self.templates)
        }
        return replace(self, templates=tuple(t for t in self.family.tensors if t in {*self.templates, *added}))

    @property
    def prunable(self) -> dict[str, int]:
        """Sizes that a user may change, in the order in which they are shown."""
        return {axis: self.sizes[axis] for axis in PRUNABLE if axis in self.sizes}

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.prunable.items())

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor that the checkpoint stores, in table order."""
        return self._tensors

    @cached_property
    def _tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The same mapping each time: it is asked for once per tensor, and has an entry per tensor."""
        return {
            name: parse(self.family.tensors[template]).shape(self.sizes)
            for template in self.templates
            for name in self.names(template)
        }

    def names(self, template: str) -> Iterator[str]:
        """Names of one template's tensors, in order."""
        names: list[dict[str, int]] = [{}]
        for axis in NAME_AXIS.findall(template):
            places = [i for i in range(self.sizes[axis]) if axis != "layer" or self.family.holds(i, template)]
            names = [at | {axis: i} for at in names for i in places]
        return (template.format(**at) for at in names)

    def parameters(self, count: Count = "total") -> int:
        """Number of parameters that are stored. Tied embeddings count once.

        total: all; non_embedding: without the token embedding and the LM head; active: those that one token's forward
        pass reads, the embedding table included.
        """
        used = self.active if count == "active" else {}
        return sum(
            self._elements(template, used)
            for template in self.templates
            if template not in self.family.buffers and (count != "non_embedding" or not self.is_embedding(template))
        )

    def _elements(self, template: str, used: Mapping[str, int]) -> int:
        """Elements of all tensors of a template; of axes in its name, only as many entries as `used` says.

        Only whole tensors can be unused: a router scores all experts, of which one token uses a few.
        """
        counts = {**self.sizes, **used, "layer": self.layers_with(template)}
        copies = math.prod(counts[axis] for axis in NAME_AXIS.findall(template))
        return copies * math.prod(parse(self.family.tensors[template]).shape(self.sizes))

    def is_embedding(self, template: str) -> bool:
        """Whether a template is the token embedding or the LM head."""
        return "vocab" in parse(self.family.tensors[template]).axes(0)

    def kv_cache_bytes(self, batch: int, length: int, dtype_bytes: int = 2) -> int:
        """Bytes of the keys and values of every layer with attention, for `batch` sequences of `length` tokens.

        With latent attention, of what they are made of: the normed latent, and the rotated part that all keys share.
        States whose size does not depend on the length, as those of linear attention, are not counted.
        """
        sizes = self.sizes
        in_latent = sizes["kv_rank"] + sizes["rope"] if "kv_rank" in sizes else 0
        per_layer = in_latent or self.groups * (self.key_dim + sizes["head_dim"])
        return self._attention_layers * per_layer * batch * length * dtype_bytes

    @property
    def key_dim(self) -> int:
        """Number of features of a head's query, and of its key."""
        return self.sizes.get("key_dim", self.sizes["head_dim"])

    @property
    def _attention_layers(self) -> int:
        """Number of layers that have heads."""
        return next(self.layers_with(t) for t, text in self.family.tensors.items() if "head" in parse(text).axes(0))

    def flops_per_token(self, context: int = 0, *, with_head: bool = True) -> int:
        """Floating-point operations of one token's forward pass.

        Two per weight of every matrix that multiplies (the head included, tied or not; the embedding look-up not),
        and two per feature of a head's key and of its value and attended position, `context` of them.
        """
        matrices = sum(
            self._elements(template, self.active) for template in self.templates if self._multiplies(template)
        )
        head = self.sizes["vocab"] * self.sizes["hidden"] if with_head else 0
        per_head = 2 * (self.key_dim + self.sizes["head_dim"])
        attention = self._attention_layers * self.sizes["head"] * per_head * context
        return 2 * (matrices + head) + attention

    def _multiplies(self, template: str) -> bool:
        """Whether a template is a matrix that activations are multiplied with. ERNIE stores a bias as [1, expert]."""
        is_matrix = len(parse(self.family.tensors[template]).dims) > 1 and not template.endswith("bias")
        return is_matrix and template not in self.family.elementwise and not self.is_embedding(template)

    def check(self, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless a checkpoint holds exactly these tensors with these shapes."""
        expected = self.tensors()
        copies = {copy: expected[original] for copy, original in self.family.tied.items() if copy not in expected}
        allowed = {**expected, **copies}
        for name, found in tensors.items():
            if name not in allowed:
                raise CheckpointError(
                    f"unexpected tensor {shown(name)}: config.json and the weights disagree; fix config.json"
                )
            if tuple(found) != allowed[name]:
                raise CheckpointError(
                    f"tensor {name!r} has shape {shown(tuple(found))} where config.json implies {allowed[name]}: "
                    "fix config.json"
                )
        if missing := sorted(expected.keys() - tensors.keys()):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(
                f"missing tensors {', '.join(missing[:3])}{more}: the checkpoint is incomplete; download it again"
            )


def _remaining(family: Family, count: int) -> tuple[Layer, ...]:
    """Kinds of the layers of a model that has another number of them: of whole periods, or of each kind's share."""
    if family.is_periodic and count < len(family.layers):
        return family.layers[:count]
    return apportioned(family.layers, count)
