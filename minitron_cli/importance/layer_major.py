"""The calibration pass for models larger than memory: one layer at a time, and through it all batches.

Knows which module holds weights when; what is measured is in the observers, which watch the one live layer just as
they watch a whole model. Hidden states wait between layers, on disk where they exceed a budget.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.importance.activation import Activations
from minitron_cli.importance.block_importance import BlockImportance
from minitron_cli.importance.collect import (
    NO_SAMPLES,
    OfLayers,
    checked_scores,
    damaged_from,
    of_layers,
    removal_lengths,
)
from minitron_cli.importance.experts import Experts
from minitron_cli.importance.hidden_states import HiddenStates
from minitron_cli.importance.observer import Observer, Part, Tokens, decoder_layers, final_norm
from minitron_cli.importance.passing import calling, passing
from minitron_cli.importance.processes import ALONE, Processes
from minitron_cli.importance.removal import Call, Cut, LayerRemoval, advance_, cuts_of
from minitron_cli.importance.resume import FILE, SavedState, under
from minitron_cli.model.family import Family
from minitron_cli.model.live import live_tensor
from minitron_cli.trim.scores import Scores

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

Read = Callable[[str], Tensor]


def collect_by_layer(
    model: "PreTrainedModel",
    family: Family,
    batches: "Sequence[Batch]",
    read: Read,
    *,
    scratch: Path,
    activation_budget: int,
    device: str | torch.device = "cpu",
    layer_removal: bool = True,
    blocks: Sequence[int] = (),
    pre_activation: bool = False,
    resume: bool = True,
    save_every_s: float = 30,
    processes: Processes = ALONE,
) -> Scores:
    """The scores of `collect`, to rounding, of a `model` whose weights are not in memory: `read` gives each by name.

    At most one layer, or the embedding, or the LM head is in memory; beside it `activation_budget` bytes of hidden
    states and what one batch needs. A killed pass goes on after the last layer it had saved, with the same bits.
    """
    if not batches:
        raise NO_SAMPLES
    lengths = removal_lengths(layer_removal, blocks)
    sizes = family.axis_sizes(model.config)
    layers = sizes["layer"]
    steps = len(batches) * (layers + 2)
    with torch.inference_mode(), progress.track("calibrate layer by layer", steps, "batches") as step:
        states = HiddenStates(scratch, activation_budget)
        passage = _Passage(
            model, family, batches, _Weights(model, family, read, device), states, lengths, pre_activation, step
        )
        saved = SavedState(scratch / FILE, save_every_s)
        seen = _restore(saved, passage, states) if resume else []
        if seen:
            step(len(batches) * (len(seen) + 1))
        else:
            states.saved()
            passage.embed()
        for layer in range(len(seen), layers):
            seen.append(passage.through(layer))
            if saved.is_due():
                _save(saved, seen, states)
        observers = _joined(family, sizes, seen, passage.end())
        processes.merge(observers)
        return checked_scores(observers)


def _joined(
    family: Family, sizes: Mapping[str, int], seen: list[OfLayers], end: tuple[Activations, list[LayerRemoval]]
) -> list[Observer]:
    activations, block_importance, experts = zip(*seen, strict=True)
    last, removal = end
    return [
        Activations.joined(family, [*activations, last]),
        BlockImportance.joined(block_importance),
        Experts.joined(family, sizes, experts),
        *removal,
    ]


def _save(saved: SavedState, seen: list[OfLayers], states: HiddenStates) -> None:
    tensors = {
        f"{layer}.{observer.name}.{name}": tensor
        for layer, observers in enumerate(seen)
        for observer in observers
        for name, tensor in observer.state().items()
    }
    saved.write(tensors | {"layers": torch.tensor(len(seen)), "hidden": states.save()})
    states.saved()


def _restore(saved: SavedState, passage: "_Passage", states: HiddenStates) -> list[OfLayers]:
    tensors = saved.read()
    if "layers" not in tensors:
        return []
    states.restore(tensors["hidden"])
    seen = [passage.observers(layer) for layer in range(int(tensors["layers"]))]
    for layer, observers in enumerate(seen):
        for observer in observers:
            observer.restore(under(f"{layer}.{observer.name}", tensors))
    return seen


class _Passage:
    """All batches on their way through a model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        batches: "Sequence[Batch]",
        weights: "_Weights",
        states: HiddenStates,
        lengths: Sequence[int],
        pre_activation: bool,
        step: progress.Step,
    ) -> None:
        self._model, self._family, self._batches, self._weights = model, family, batches, weights
        self._states, self._lengths, self._pre_activation, self._step = states, lengths, pre_activation, step
        self._sizes = family.axis_sizes(model.config)
        self._layers = decoder_layers(model, family)
        self._norm = model.get_submodule(final_norm(family))
        self._cuts = cuts_of(self._sizes["layer"], lengths)

    def _tokens(self) -> Iterator[tuple[int, Tokens]]:
        device = self._weights.device
        for b, batch in enumerate(self._batches):
            yield b, Tokens.of(batch, device)
            self._step()

    def _decode(self, tokens: Tokens, **inputs: Tensor) -> Tensor:
        decoder = self._model.get_decoder()
        return decoder(position_ids=tokens.position_ids_BT, use_cache=False, **inputs).last_hidden_state

    def embed(self) -> None:
        embedding = self._model.get_input_embeddings()
        with self._weights.live(embedding), passing([*self._layers, self._norm]):
            for b, tokens in self._tokens():
                self._states.put(f"{b}", self._decode(tokens, input_ids=tokens.input_ids_BT))

    def observers(self, layer: int) -> OfLayers:
        return of_layers(self._family, self._sizes, Part(range(layer, layer + 1), False), self._pre_activation)

    def through(self, layer: int) -> OfLayers:
        """Take every batch, and every variant of it without some layers, past one layer."""
        live, observers = self._layers[layer], self.observers(layer)
        others = [module for module in (*self._layers, self._norm) if module is not live]
        with self._weights.live(live), passing(others):
            for b, tokens in self._tokens():
                before_BTD = self._states.take(f"{b}").to(self._weights.device)
                call, after_BTD = self._watched(live, observers, tokens, before_BTD)
                if not after_BTD.isfinite().all():
                    raise damaged_from(layer)
                advance_(_Variants(self._states, b, self._weights.device), self._cuts, layer, call)
                self._states.put(f"{b}", after_BTD)
        return observers

    def _watched(
        self, live: "nn.Module", observers: Iterable[Observer], tokens: Tokens, before_BTD: Tensor
    ) -> tuple[Call, Tensor]:
        """The decoder's own forward makes the layer's arguments; only what enters the layer is put in its place."""
        calls: list[Call] = []
        with ExitStack() as hooks:
            for hook in _entering(live, before_BTD, calls):
                hooks.callback(hook.remove)
            for observer in observers:
                for handle in observer.watch(self._model, tokens):
                    hooks.callback(handle.remove)
            after_BTD = self._decode(tokens, inputs_embeds=before_BTD)
        for observer in observers:
            observer.end_batch(tokens, after_BTD)
        return calls[0], after_BTD

    def end(self) -> tuple[Activations, list[LayerRemoval]]:
        """What is seen after the last layer: the final norm's output and, through the LM head, the losses."""
        activations = Activations(self._family, self._sizes, Part(range(0), True))
        modules = [self._norm, *([self._model.get_output_embeddings()] if self._cuts else [])]
        with self._weights.live(*modules), passing(self._layers):
            removal = self._removal() if self._cuts else None
            for b, tokens in self._tokens():
                hidden_BTD = self._normed(activations, tokens, self._states.take(f"{b}").to(self._weights.device))
                if removal:
                    variants = _Variants(self._states, b, self._weights.device)
                    removal.add(tokens, hidden_BTD, (variants.pop(cut) for cut in self._cuts))
        return activations, [removal] if removal else []

    def _normed(self, activations: Activations, tokens: Tokens, hidden_BTD: Tensor) -> Tensor:
        handles = activations.watch(self._model, tokens)
        normed_BTD = self._norm(hidden_BTD)
        for handle in handles:
            handle.remove()
        activations.end_batch(tokens, normed_BTD)
        return normed_BTD

    def _removal(self) -> LayerRemoval:
        """Before it is used, the head is tried on two tokens; the embedding is not in memory, so noise stands in."""
        weight_VD = self._model.get_output_embeddings().weight
        noise_BTD = torch.randn(1, 2, weight_VD.shape[1], generator=torch.Generator().manual_seed(0)).to(weight_VD)
        with calling([self._model.get_input_embeddings()], lambda *_, **__: noise_BTD):
            return LayerRemoval(self._model, self._family, self._lengths)


class _Variants:
    """One batch's hidden states without some layers, as they are stored."""

    def __init__(self, states: HiddenStates, batch: int, device: torch.device) -> None:
        self._states, self._batch, self._device = states, batch, device

    def __setitem__(self, cut: Cut, hidden_BTD: Tensor) -> None:
        self._states.put(self._name(cut), hidden_BTD)

    def pop(self, cut: Cut) -> Tensor:
        return self._states.take(self._name(cut)).to(self._device)

    def _name(self, cut: Cut) -> str:
        return f"{self._batch}-without-{cut.start}-{cut.stop}"


class _Weights:
    """The weights on disk, and which of them are in memory."""

    def __init__(self, model: "PreTrainedModel", family: Family, read: Read, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._family, self._read = family, read
        self._names = {module: name for name, module in model.named_modules()}
        self._tied = family.tied if model.config.tie_word_embeddings else {}

    @contextmanager
    def live(self, *modules: "nn.Module") -> Iterator[None]:
        """Give some modules their weights for a while."""
        empty = [module.state_dict() for module in modules]
        try:
            for module, tensors in zip(modules, empty, strict=True):
                full = {name: self._tensor(f"{self._names[module]}.{name}", t) for name, t in tensors.items()}
                module.load_state_dict(full, assign=True)
            yield
        finally:
            for module, tensors in zip(modules, empty, strict=True):
                module.load_state_dict(tensors, assign=True)

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return live_tensor(self._family, name, like, self._stored, self.device)

    def _stored(self, name: str) -> Tensor:
        return self._read(self._tied.get(name, name))


def _entering(layer: "nn.Module", hidden_BTD: Tensor, calls: list[Call]) -> "list[RemovableHandle]":
    """Hooks that replace what enters a layer, and note the call."""

    def replace(
        _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden_BTD, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden_BTD}

    def note(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call.seen(layer, args, kwargs))

    return [layer.register_forward_pre_hook(hook, with_kwargs=True) for hook in (replace, note)]
