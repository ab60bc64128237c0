"""Fit a child to its parent layer by layer: both run side by side, and each part of the child is fitted in turn.

The parts of a layer are fitted in the order in which they compute, on what the child has computed so far: the error
that one part leaves is in the input of the next, which compensates for it. Only one layer of each model is in memory,
and the sums of one part. How a part is fitted is left to the `ChildUnderRepair`.
"""

# B batch, T token, N token of any sample, R token routed to one expert
# D hidden of the parent, K hidden of the child (in NK: expert of a token), I input of a part, O output, F neuron

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.layer_loop import run_layers
from minitron_cli.layerwise.observer import Tokens, final_norm
from minitron_cli.layerwise.resume import FILE, SavedState
from minitron_cli.layerwise.runner import LayerwiseRunner, ModuleIO, StoredWeights, Weights, recording
from minitron_cli.model.family import Family
from minitron_cli.model.residual_stream import adds_as_it_is, blocks, shared_writer
from minitron_cli.model.taps import layer_module
from minitron_cli.repair.child_under_repair import ChildUnderRepair
from minitron_cli.repair.expert_sums import ExpertSums
from minitron_cli.repair.gram import SplitGramPair

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

STORES = 4  # that share the activation budget: both models' hidden states, wanted outputs, and the last part's inputs


@dataclass(frozen=True)
class ParentAndChild:
    """The two models of a fit."""

    parent: "PreTrainedModel"
    weights: Weights
    """The parent's, in memory or on disk."""
    child: "PreTrainedModel"
    """Modules without weights; these are read from the `ChildUnderRepair`."""
    family: Family
    layers: Sequence[int]
    """Layers of the parent that the child has, ascending."""

    @property
    def parent_layers(self) -> int:
        """Number of layers of the parent."""
        return self.family.axis_sizes(self.parent.config)["layer"]


def fit_layerwise(
    models: ParentAndChild,
    batches: "Sequence[Batch]",
    under_repair: ChildUnderRepair,
    *,
    scratch: Path,
    activation_budget: int,
    resume: bool = True,
    save_every_s: float = 30,
) -> None:
    """Fit every part of the child. A killed fit resumes after the last layer that it saved, with the same bits.

    After a resume, `under_repair` may be asked to fit a part again, with the same sums. DataError without batches.
    """
    if not batches:
        raise NO_SAMPLES
    steps = len(batches) * (models.parent_layers + 5 * len(models.layers) + 4)
    with torch.inference_mode(), progress.track("fit layer by layer", steps, "batches") as step:
        fit = LayerwiseFit(models, batches, under_repair, scratch, activation_budget // STORES, step)
        saved = SavedState(scratch / FILE, save_every_s)
        run_layers(fit, fit.stores, saved, len(models.layers), resume=resume)
        fit.end()


class _Module(NamedTuple):
    """Module of a layer, by its name in the parent and in the child, whose layers are renumbered."""

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
        """Name of its weight in the parent."""
        return f"{self.parent}.weight"


class _Part(NamedTuple):
    """Attention, MLP or the experts that all tokens use of a layer, as far as it is fitted."""

    norm: _Module | None
    """Norm before it, where its readout is fitted."""
    writer: _Module | None
    """Matrix that writes to the residual stream, where it is fitted."""
    before: _Module | None
    """Norm whose input is the stream before the writer's output is added; None if that goes through a norm first."""
    ends_layer: bool = False
    """Whether the stream after it is that after the layer."""
    is_shared: bool = False
    """Whether it is the experts that all tokens use, beside which chosen ones write."""


class LayerwiseFit:
    """The `LayerTask` of a fit: both models on their way through, by the child's layers."""

    def __init__(
        self,
        models: ParentAndChild,
        batches: "Sequence[Batch]",
        under_repair: ChildUnderRepair,
        scratch: Path,
        budget: int,
        step: progress.Step,
    ) -> None:
        self._models, self._batches, self._under_repair = models, batches, under_repair
        self._parent_states, self._child_states, self._wanted, self._last = (
            _states(scratch / name, budget) for name in ("parent", "child", "wanted", "last")
        )
        family = models.family
        self._child_weights = StoredWeights(models.child, family, under_repair.read, models.weights.device)
        self._parent = LayerwiseRunner(models.parent, family, batches, models.weights, self._parent_states, step)
        self._child = LayerwiseRunner(models.child, family, batches, self._child_weights, self._child_states, step)
        self._multiplier = float(getattr(models.parent.config, family.residual_multiplier or "-", 1.0))

    @property
    def stores(self) -> dict[str, ActivationStore]:
        """Hidden states of both models between two layers."""
        return {"parent": self._parent_states, "child": self._child_states}

    def begin(self) -> None:
        """Embed the tokens in both models."""
        self._drop_left_over()
        self._parent.embed()
        self._child.embed()
        self._past_dropped(0)

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        """Continue behind some layers: what was fitted is in the `ChildUnderRepair`."""
        self._drop_left_over()

    def _drop_left_over(self) -> None:
        """Remove what a killed fit left of stores that are empty between two layers."""
        for store in (self._wanted, self._last):
            store.saved()

    def state(self) -> dict[str, Tensor]:
        """Nothing: what was fitted is in the `ChildUnderRepair`."""
        return {}

    def advance(self, layer: int) -> None:
        """Run all batches through the parent up to a layer of the child, fit that layer, and run them through it."""
        place, layer = layer, self._models.layers[layer]  # of the child, and of the parent
        parts, experts = self._parts(layer, place), ExpertSums(self._models.family, layer, self._under_repair)
        self._parent.through(layer, [_PartObserver(parts, self._want), experts])
        self._past_dropped(place + 1)
        self._want_stream(parts[-1])
        with self._child.at(place):
            while experts.sums:
                self._renew(place, self._under_repair.fit_writer(*experts.sums.popitem()))
            for part in parts:
                if part.norm:
                    self._renew(place, self._under_repair.fit_norm(part.norm.weight, self._norm_sums(place, part.norm)))
                if part.writer:
                    # The sums are not given a name, so that they are freed before those of the next part are made.
                    changed = self._under_repair.fit_writer(part.writer.weight, self._writer_sums(place, part))
                    self._renew(place, changed)
            if self._ends_by_adding(parts[-1]):
                self._child.put(place, self._sums_of_stream(parts[-1]))
            else:
                self._child.past(place)

    def _ends_by_adding(self, part: _Part) -> bool:
        """Whether the stream after a layer is that before its last part plus what a fitted matrix writes.

        Then the layer need not be computed again: the matrix's inputs did not change when it was fitted. On a device of
        its own computing them again is quicker than copying them there and back.
        """
        return part.ends_layer and part.writer is not None and self._child.device.type == "cpu"

    def _sums_of_stream(self, part: _Part) -> Iterator[Tensor]:
        """Hidden states [B, T, K] after the layer that ends with a part, batch by batch, from what `_pairs` stored."""
        assert part.writer
        writer = self._models.child.get_submodule(part.writer.child)
        for b in range(len(self._batches)):
            written_BTK = writer(self._last.take(f"{b}.inputs"))
            if self._multiplier != 1:
                written_BTK = written_BTK * self._multiplier
            yield self._last.take(f"{b}.stream") + written_BTK

    def _past_dropped(self, place: int) -> None:
        """Run the parent alone through the layers that the child lacks before its layer at `place`, or its end."""
        layers = [-1, *self._models.layers, self._models.parent_layers]
        for layer in range(layers[place] + 1, layers[place + 1]):
            self._parent.through(layer, [])

    def _parts(self, layer: int, place: int) -> list[_Part]:
        family, parts = self._models.family, list[_Part]()
        adds, order = adds_as_it_is(family), blocks(family, layer)
        for block in order:
            norm, writer = (_Module.of(template, layer, place) for template in block)
            is_fitted = norm is not None and self._under_repair.fits_readout(norm.weight)
            written = writer if self._under_repair.fits_writers else None
            parts.append(
                _Part(norm if is_fitted else None, written, norm if adds else None, adds and block is order[-1])
            )
        shared = _Module.of(shared_writer(family, layer), layer, place)
        if shared and self._under_repair.fits_writers and self._under_repair.has_pruned_inputs(shared.weight):
            parts.append(_Part(None, shared, None, is_shared=True))
        return parts

    def _renew(self, place: int, changed: Collection[str]) -> None:
        """Read again the changed weights of the child's layer that is in memory."""
        layer = layer_module(self._models.family).format(layer=place)
        self._child_weights.renew_(self._models.child.get_submodule(layer), changed)

    def _want(self, b: int, part: _Part, seen: Mapping[str, ModuleIO]) -> None:
        """Store the wanted outputs of a part of the child, as the parent computed them for batch b.

        What a writer adds is wanted together with the stream before it, so that the stream after it is the parent's.
        That after the layer's last part is taken once the parent is past the dropped layers that follow.
        """
        if part.norm:
            self._wanted.put(f"{b}.{part.norm.parent}", seen[part.norm.parent].outputs_BTO)
        if part.writer and not part.ends_layer:
            wanted_BTD = self._by_sample(b, seen[part.writer.parent].outputs_BTO).float()
            if part.before:  # the model multiplies what is added, so the stream is divided instead
                wanted_BTD = wanted_BTD + seen[part.before.parent].inputs_BTI.float() / self._multiplier
            self._wanted.put(f"{b}.{part.writer.parent}", self._under_repair.kept_stream(wanted_BTD))

    def _want_stream(self, part: _Part) -> None:
        """Store the wanted outputs of the part that ends a layer: the stream with which the child's next layer begins.

        So what dropped layers add is left to the layer before them, and later ones see a stream like the parent's.
        """
        if part.writer and part.ends_layer:
            for b in range(len(self._batches)):
                stream_BTD = self._parent_states.look_at(f"{b}").to(self._parent.device).float()
                wanted_BTK = self._under_repair.kept_stream(stream_BTD / self._multiplier)
                self._wanted.put(f"{b}.{part.writer.parent}", wanted_BTK)

    def _norm_sums(self, place: int, norm: _Module) -> SplitGramPair:
        module = self._models.child.get_submodule(norm.child)
        return SplitGramPair.of(
            (module(inputs_BTK), self._wanted.take(f"{b}.{norm.parent}"))
            for b, (inputs_BTK,) in enumerate(self._child.inputs_of(place, norm.child))
        )

    def _writer_sums(self, place: int, part: _Part) -> SplitGramPair:
        return SplitGramPair.of(self._pairs(place, part))

    def _pairs(self, place: int, part: _Part) -> Iterator[tuple[Tensor, Tensor]]:
        """(input, wanted output) of a writer, batch by batch: the wanted stream less the stream that the child has."""
        before, writer = part.before, part.writer
        assert writer
        bias = self._models.child.get_submodule(writer.child).bias
        names = [module.child for module in (before, writer) if module]
        for b, (*stream, inputs_BTI) in enumerate(self._child.inputs_of(place, *names)):
            wanted_BTK = self._wanted.take(f"{b}.{writer.parent}").to(self._child.device)
            for stream_BTK in stream:  # one, or none
                wanted_BTK = wanted_BTK - stream_BTK.float() / self._multiplier
            wanted_BTK = wanted_BTK if bias is None else wanted_BTK - bias.float()
            if self._ends_by_adding(part):
                (stream_BTK,) = stream
                self._last.put(f"{b}.stream", stream_BTK)
                self._last.put(f"{b}.inputs", inputs_BTI)
            yield self._by_sample(b, inputs_BTI), wanted_BTK

    def _by_sample(self, b: int, x: Tensor) -> Tensor:
        """Rows of batch b as [B, T, ...]: some models give experts the tokens of all samples in one row."""
        return x.view(*self._batches[b].input_ids_BT.shape, x.shape[-1])

    def end(self) -> None:
        """Fit the final norm, whose output the LM head reads."""
        name = f"{final_norm(self._models.family)}.weight"
        if not self._under_repair.fits_norms:
            return
        is_folded = self._under_repair.fits_readout(name)
        with self._parent.at_end():
            for b, _, normed_BTD in self._parent.normed():
                self._wanted.put(f"{b}", normed_BTD if is_folded else self._under_repair.kept_stream(normed_BTD))
        with self._child.at_end():
            sums = SplitGramPair.of((normed, self._wanted.take(f"{b}")) for b, _, normed in self._child.normed())
        (self._under_repair.fit_norm if is_folded else self._under_repair.fit_gain)(name, sums)


def _states(directory: Path, budget: int) -> ActivationStore:
    io.make_dirs(directory)
    return ActivationStore(directory, budget)


class _PartObserver:
    """Passes on the inputs and outputs of the parts of a parent's layer, batch by batch."""

    def __init__(self, parts: Sequence[_Part], show: Callable[[int, _Part, Mapping[str, ModuleIO]], None]) -> None:
        self._parts, self._show = parts, show
        self._batches = 0
        self._seen: dict[str, ModuleIO] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        # Llama 4 adds the outputs of chosen experts to that of the one for all tokens, in place.
        names = {module.parent: part.is_shared for part in self._parts for module in part[:3] if module}
        return [recording(model, name, self._seen, copies=is_shared) for name, is_shared in names.items()]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        for part in self._parts:
            self._show(self._batches, part, self._seen)
        self._batches += 1
        self._seen.clear()
