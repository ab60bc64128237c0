"""A parent and its child side by side, one decoder layer at a time: what each part of the child gets, and should give.

The child's layer is solved for part by part, in the order in which it computes, on what the child has computed so far:
an error that one part leaves is seen by the next, which makes up for it. Only one layer of each model is in memory, and
the sums of one part.
"""

# B batch, T token, N token of any sample, R token routed to one expert, K expert of a token
# D hidden of the parent, K of the child, I input of a part, O output, F neuron

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from minitron_cli import io, progress
from minitron_cli.layerwise.activation_store import HiddenStates
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.expert_forward import Routed, TemporaryForward, each_expert
from minitron_cli.layerwise.observer import Tokens, final_norm
from minitron_cli.layerwise.resume import FILE, SavedState
from minitron_cli.layerwise.runner import LayerwiseRunner, Seen, StoredWeights, Weights, seeing
from minitron_cli.model.family import Family
from minitron_cli.model.residual_stream import adds_as_it_is, blocks, expert_writer
from minitron_cli.model.runtime_tensors import experts_module
from minitron_cli.model.taps import layer_module
from minitron_cli.repair.gram import Evidence

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

STORES = 3  # of hidden states: the parent's, the child's, and what the child's parts should give


class Fitted(Protocol):
    """The child, as far as it is solved for. Tensors are called as in the parent, unless it says otherwise."""

    def read(self, name: str, /) -> Tensor:
        """A tensor of the child, by the child's name."""
        ...

    def kept(self, x_BTD: Tensor, /) -> Tensor:
        """What is left of the parent's stream, [B, T, K]."""
        ...

    def kept_inputs(self, name: str, inputs_RI: Tensor, /) -> Tensor:
        """What is left of what a matrix of the parent reads."""
        ...

    def is_cut(self, name: str, /) -> bool:
        """Whether the child has a matrix, and less of what it reads."""
        ...

    def is_folded(self, norm: str, /) -> bool:
        """Whether a norm's weight is in its readers, which may make what they like of its output."""
        ...

    def solve_norm(self, norm: str, evidence: Evidence, /) -> Collection[str]:
        """Let its readers make the parent's output out of the child's. The child's names of what has changed."""
        ...

    def solve_writer(self, name: str, evidence: Evidence, /) -> Collection[str]:
        """Let a matrix make the wanted output out of the child's input. The child's names of what has changed."""
        ...

    def solve_gain(self, norm: str, evidence: Evidence, /) -> None:
        """Give a norm that is not folded the weight that comes nearest to what is left of the parent's output."""
        ...


@dataclass(frozen=True)
class Models:
    parent: "PreTrainedModel"
    weights: Weights
    child: "PreTrainedModel"
    """Without weights."""
    family: Family
    layers: Sequence[int]
    """Of the parent, that the child has."""

    @property
    def parent_layers(self) -> int:
        return self.family.axis_sizes(self.parent.config)["layer"]


def fit_layerwise(
    models: Models,
    batches: "Sequence[Batch]",
    fitted: Fitted,
    *,
    scratch: Path,
    activation_budget: int,
    resume: bool = True,
    save_every_s: float = 30,
) -> None:
    """Solve for every part of the child. A killed pass goes on after the last layer it had saved, with the same bits.

    `fitted` may be told of a part twice, with the same numbers.
    """
    if not batches:
        raise NO_SAMPLES
    steps = len(batches) * (models.parent_layers + 5 * len(models.layers) + 4)
    with torch.inference_mode(), progress.track("fit layer by layer", steps, "batches") as step:
        walk = _Walk(models, batches, fitted, scratch, activation_budget // STORES, step)
        saved = SavedState(scratch / FILE, save_every_s)
        done = walk.begin(saved.read() if resume else {})
        for place, layer in list(enumerate(models.layers))[done:]:
            walk.through(layer, place)
            if saved.is_due():
                saved.write(walk.save() | {"layers": torch.tensor(place + 1)})
                walk.forget()
        walk.end()


class _Module(NamedTuple):
    """A module of a layer by its name in the parent and in the child, where layers are renumbered."""

    parent: str
    child: str

    @classmethod
    def of(cls, template: str | None, layer: int, place: int) -> "_Module | None":
        if template is None:
            return None
        name = template.removesuffix(".weight")
        return cls(name.format(layer=layer), name.format(layer=place))

    @property
    def weight(self) -> str:
        """In the parent."""
        return f"{self.parent}.weight"


class _Part(NamedTuple):
    """Half of a layer: a norm that is folded into its readers, and a matrix that writes to the stream."""

    norm: _Module | None
    writer: _Module | None
    before: _Module | None
    """A norm that sees the stream as it is before the matrix's output is added to it."""


class _Walk:
    def __init__(
        self,
        models: Models,
        batches: "Sequence[Batch]",
        fitted: Fitted,
        scratch: Path,
        budget: int,
        step: progress.Step,
    ) -> None:
        self._models, self._batches, self._fitted = models, batches, fitted
        self._parent_states, self._child_states, self._wanted = (
            _states(scratch / name, budget) for name in ("parent", "child", "wanted")
        )
        family = models.family
        self._child_weights = StoredWeights(models.child, family, fitted.read, models.weights.device)
        self._parent = LayerwiseRunner(models.parent, family, batches, models.weights, self._parent_states, step)
        self._child = LayerwiseRunner(models.child, family, batches, self._child_weights, self._child_states, step)
        self._multiplier = float(getattr(models.parent.config, family.residual_multiplier or "-", 1.0))

    def begin(self, found: Mapping[str, Tensor]) -> int:
        """How many layers are done."""
        self._wanted.saved()  # a killed pass left some
        if "layers" not in found:
            self.forget()
            self._parent.embed()
            self._child.embed()
            return 0
        self._parent_states.restore(found["parent"])
        self._child_states.restore(found["child"])
        return int(found["layers"])

    def save(self) -> dict[str, Tensor]:
        return {"parent": self._parent_states.save(), "child": self._child_states.save()}

    def forget(self) -> None:
        """What only earlier saves needed."""
        self._parent_states.saved()
        self._child_states.saved()

    def through(self, layer: int, place: int) -> None:
        """Take all batches past a layer of the parent, and past the child's once that is solved for."""
        self._past_dropped(self._models.layers[place - 1] + 1 if place else 0, layer)
        parts, experts = self._parts(layer, place), _Experts(self._models.family, layer, self._fitted)
        self._parent.through(layer, [_Watch(parts, self._want), experts])
        with self._child.at(place):
            while experts.evidence:
                self._renew(place, self._fitted.solve_writer(*experts.evidence.popitem()))
            for part in parts:
                if part.norm:
                    self._renew(place, self._fitted.solve_norm(part.norm.weight, self._of_norm(place, part.norm)))
                if part.writer:
                    self._renew(place, self._fitted.solve_writer(part.writer.weight, self._of_writer(place, part)))
            self._child.past(place)

    def _past_dropped(self, start: int, stop: int) -> None:
        """The parent's layers that the child has not: what they would have added is made up for like any error."""
        for layer in range(start, stop):
            self._parent.through(layer, [])

    def _parts(self, layer: int, place: int) -> list[_Part]:
        family, parts = self._models.family, []
        for block in blocks(family):
            norm, writer = (_Module.of(template, layer, place) for template in block)
            is_folded = norm is not None and self._fitted.is_folded(norm.weight)
            parts.append(_Part(norm if is_folded else None, writer, norm if adds_as_it_is(family) else None))
        return parts

    def _renew(self, place: int, changed: Collection[str]) -> None:
        layer = layer_module(self._models.family).format(layer=place)
        self._child_weights.renew_(self._models.child.get_submodule(layer), changed)

    def _want(self, b: int, part: _Part, seen: Mapping[str, Seen]) -> None:
        """Note what a part of the child should give: of a matrix, so that the stream after it is the parent's."""
        if part.norm:
            self._wanted.put(f"{b}.{part.norm.parent}", seen[part.norm.parent].outputs_BTO)
        if part.writer:
            bias = self._models.parent.get_submodule(part.writer.parent).bias
            wanted_BTD = seen[part.writer.parent].outputs_BTO.float() - (0 if bias is None else bias.float())
            if part.before:
                wanted_BTD = wanted_BTD + seen[part.before.parent].inputs_BTI.float() / self._multiplier
            self._wanted.put(f"{b}.{part.writer.parent}", self._fitted.kept(wanted_BTD))

    def _of_norm(self, place: int, norm: _Module) -> Evidence:
        return Evidence.of(
            (seen.outputs_BTO, self._wanted.take(f"{b}.{norm.parent}"))
            for b, (seen,) in enumerate(self._child.up_to(place, norm.child))
        )

    def _of_writer(self, place: int, part: _Part) -> Evidence:
        return Evidence.of(self._pairs(place, part))

    def _pairs(self, place: int, part: _Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Of a matrix, what it reads and what it should add to the stream that is there."""
        before, writer = part.before, part.writer
        assert writer
        names = [module.child for module in (before, writer) if module]
        for b, (*at_norm, seen) in enumerate(self._child.up_to(place, *names)):
            wanted_BTK = self._wanted.take(f"{b}.{writer.parent}").to(self._child.device)
            for there in at_norm:
                wanted_BTK = wanted_BTK - there.inputs_BTI.float() / self._multiplier
            yield seen.inputs_BTI, wanted_BTK

    def end(self) -> None:
        """After the last layer: what the head reads."""
        self._past_dropped(self._models.layers[-1] + 1, self._models.parent_layers)
        name = f"{final_norm(self._models.family)}.weight"
        if self._models.family.norm != "rms":
            return
        is_folded = self._fitted.is_folded(name)
        with self._parent.at_end():
            for b, _, normed_BTD in self._parent.normed():
                self._wanted.put(f"{b}", normed_BTD if is_folded else self._fitted.kept(normed_BTD))
        with self._child.at_end():
            evidence = Evidence.of((normed, self._wanted.take(f"{b}")) for b, _, normed in self._child.normed())
        (self._fitted.solve_norm if is_folded else self._fitted.solve_gain)(name, evidence)


class _Experts:
    """What each expert of a layer of the parent reads and writes, of the tokens that the router sends it."""

    def __init__(self, family: Family, layer: int, fitted: Fitted) -> None:
        self.evidence: dict[str, Evidence] = {}
        """By names of the matrices that write."""
        self._module, self._writer = experts_module(family), expert_writer(family)
        self._layer, self._fitted = layer, fitted
        self._samples = 0

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> list[TemporaryForward]:
        if self._module is None:
            return []
        module = model.get_submodule(self._module.format(layer=self._layer))
        return [TemporaryForward(module, partial(self._forward, tokens))]

    def _forward(
        self, tokens: Tokens, module: "nn.Module", hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor
    ) -> Tensor:
        added_ND = torch.zeros(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
        for routed in each_expert(module, hidden_ND, index_NK, weight_NK):
            added_ND.index_add_(0, routed.token_R, routed.added_RD.float())
            self._see(module, routed, self._samples + routed.token_R // tokens.input_ids_BT.shape[1])
        return added_ND.to(hidden_ND.dtype)

    def _see(self, module: Any, routed: Routed, samples_R: Tensor) -> None:
        name = (self._writer or "").format(layer=self._layer, expert=routed.expert)
        if not self._fitted.is_cut(name):
            return
        inputs_RI = self._fitted.kept_inputs(name, routed.neuron_RF)
        outputs_RO = self._fitted.kept(linear(routed.neuron_RF, module.down_proj[routed.expert]))
        if name not in self.evidence:
            self.evidence[name] = Evidence.empty(outputs_RO.shape[1], inputs_RI.shape[1], inputs_RI.device)
        self.evidence[name].add_(inputs_RI, outputs_RO, samples_R)

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._samples += len(hidden_BTD)


def _states(directory: Path, budget: int) -> HiddenStates:
    io.make_dirs(directory)
    return HiddenStates(directory, budget)


class _Watch:
    """Shows what the parts of a layer of the parent see, batch by batch."""

    def __init__(self, parts: Sequence[_Part], show: Callable[[int, _Part, Mapping[str, Seen]], None]) -> None:
        self._parts, self._show = parts, show
        self._batches = 0
        self._seen: dict[str, Seen] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        names = {module.parent for part in self._parts for module in part if module}
        return [seeing(model, name, self._seen) for name in names]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        for part in self._parts:
            self._show(self._batches, part, self._seen)
        self._batches += 1
        self._seen.clear()
