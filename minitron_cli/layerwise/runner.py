"""Runs calibration batches through a model one decoder layer at a time.

Decides which module holds weights when. Observers decide what is measured; they watch the one loaded layer just as they
watch a whole model. Hidden states are stored between layers, on disk where they exceed a budget.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.decoder import decoder_of
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.layerwise.calibration_errors import not_finite_from
from minitron_cli.layerwise.layer_call import LayerCall
from minitron_cli.layerwise.observer import Tokens, Watcher, decoder_layers, final_norm
from minitron_cli.model.family import Family
from minitron_cli.model.runtime_tensors import is_made_of, runtime_tensor

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

Read = Callable[[str], Tensor]


class Weights(Protocol):
    """Source of modules' weights."""

    device: torch.device

    def live(self, *modules: "nn.Module") -> AbstractContextManager[None]:
        """Context in which the modules have their weights."""
        ...


class ResidentWeights:
    """Weights that are all in memory."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.device = model.device

    def live(self, *modules: "nn.Module") -> AbstractContextManager[None]:
        return nullcontext()


class StoredWeights:
    """Weights on disk, loaded for the modules that run."""

    def __init__(self, model: "PreTrainedModel", family: Family, read: Read, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._family, self._read = family, read
        self._names = {module: name for name, module in model.named_modules()}
        self._tied = family.tied if model.config.tie_word_embeddings else {}

    def renew_(self, module: "nn.Module", changed: Collection[str]) -> None:
        """Reload the weights of a loaded module that depend on the named tensors on disk."""
        for name, parameter in module.named_parameters():
            full = f"{self._names[module]}.{name}"
            if is_made_of(self._family, full, changed):
                parameter.copy_(self._tensor(full, parameter))

    @contextmanager
    def live(self, *modules: "nn.Module") -> Iterator[None]:
        """Context in which the modules have their weights."""
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
        return runtime_tensor(self._family, name, like, self._stored, self.device)

    def _stored(self, name: str) -> Tensor:
        return self._read(self._tied.get(name, name))


class ModuleIO(NamedTuple):
    """Input and output of one module for one batch."""

    inputs_BTI: Tensor
    outputs_BTO: Tensor


class _StopForward(Exception):
    """Raised in a hook to end a forward pass early."""


class LayerwiseRunner:
    """All batches of a calibration pass, and the layer that they have reached."""

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        batches: "Sequence[Batch]",
        weights: Weights,
        states: ActivationStore,
        step: progress.Step,
    ) -> None:
        self.model, self.family, self.device = model, family, weights.device
        self._batches, self._weights, self._states, self._step = batches, weights, states, step
        self._layers = decoder_layers(model, family)
        self._norm = model.get_submodule(final_norm(family))

    def _tokens(self) -> Iterator[tuple[int, Tokens]]:
        for b, batch in enumerate(self._batches):
            yield b, Tokens.of(batch, self.device)
            self._step()

    def _decode(self, tokens: Tokens, **inputs: Tensor) -> Tensor:
        decoder = decoder_of(self.model)
        return decoder(position_ids=tokens.position_ids_BT, use_cache=False, **inputs).last_hidden_state

    def embed(self) -> None:
        """Compute the embeddings of every batch."""
        embedding = self.model.get_input_embeddings()
        with self._weights.live(embedding), bypassed([*self._layers, self._norm]):
            for b, tokens in self._tokens():
                self._states.put(f"{b}", self._decode(tokens, input_ids=tokens.input_ids_BT))

    def skip(self, layers: int) -> None:
        """Report the embedding and the first `layers` layers of every batch as done, in a resumed pass."""
        self._step(len(self._batches) * (layers + 1))

    def through(
        self, layer: int, observers: Sequence[Watcher], then: Callable[[int, LayerCall], None] = lambda *_: None
    ) -> None:
        """Load one layer and run every batch through it; `then` receives the batch's index and the layer's call."""
        with self.at(layer):
            self.past(layer, observers, then)

    def past(
        self, layer: int, observers: Sequence[Watcher] = (), then: Callable[[int, LayerCall], None] = lambda *_: None
    ) -> None:
        """Run every batch through a layer that is already loaded (`at`)."""
        for b, tokens in self._tokens():
            before_BTD = self._states.take(f"{b}").to(self.device)
            call, after_BTD = self._watched(self._layers[layer], observers, tokens, before_BTD)
            then(b, call)
            self._put(layer, b, after_BTD)

    def put(self, layer: int, after: Iterable[Tensor]) -> None:
        """Take every batch past a layer whose outputs [B, T, D] are known."""
        for b, after_BTD in enumerate(after):
            self._states.take(f"{b}")
            self._put(layer, b, after_BTD)
            self._step()

    def _put(self, layer: int, b: int, after_BTD: Tensor) -> None:
        _check_finite(layer, after_BTD)
        self._states.put(f"{b}", after_BTD)

    def before(self, layer: int, observers: Sequence[Watcher]) -> None:
        """Run every batch through a loaded layer under observers, and leave the batches before it."""
        for b, tokens in self._tokens():
            before_BTD = self._states.look_at(f"{b}").to(self.device)
            _, after_BTD = self._watched(self._layers[layer], observers, tokens, before_BTD)
            _check_finite(layer, after_BTD)

    @contextmanager
    def at(self, layer: int) -> Iterator[None]:
        """Context in which one layer has its weights and all others are bypassed."""
        live = self._layers[layer]
        others = [module for module in (*self._layers, self._norm) if module is not live]
        with self._weights.live(live), bypassed(others):
            yield

    def inputs_of(self, layer: int, *names: str) -> Iterator[tuple[Tensor, ...]]:
        """Inputs [B, T, I] of some modules of a loaded layer (`at`), batch by batch, in the order of `names`.

        The last of them, and what follows it, is not computed, and the batches stay before the layer.
        """
        for b, tokens in self._tokens():
            before_BTD = self._states.look_at(f"{b}").to(self.device)
            seen: dict[str, Tensor] = {}
            with ExitStack() as hooks:
                for hook in _replacing_input(self._layers[layer], before_BTD, []):
                    hooks.callback(hook.remove)
                for name in names:
                    hooks.callback(_noting_input(self.model, name, seen, is_last=name == names[-1]).remove)
                with suppress(_StopForward):
                    self._decode(tokens, inputs_embeds=before_BTD)
            yield tuple(seen[name] for name in names)

    def _watched(
        self, live: "nn.Module", observers: Iterable[Watcher], tokens: Tokens, before_BTD: Tensor
    ) -> tuple[LayerCall, Tensor]:
        """Call and output of the layer. The decoder's forward computes its arguments; only its input is replaced."""
        calls: list[LayerCall] = []
        with ExitStack() as hooks:
            for hook in _replacing_input(live, before_BTD, calls):
                hooks.callback(hook.remove)
            for observer in observers:
                for handle in observer.watch(self.model, tokens):
                    hooks.callback(handle.remove)
            after_BTD = self._decode(tokens, inputs_embeds=before_BTD)
        for observer in observers:
            observer.end_batch(tokens, after_BTD)
        return calls[0], after_BTD

    @contextmanager
    def at_end(self, *modules: "nn.Module") -> Iterator[None]:
        """Context after the last layer, in which the final norm and these modules have their weights."""
        with self._weights.live(self._norm, *modules), bypassed(self._layers):
            yield

    def normed(self, *observers: Watcher) -> Iterator[tuple[int, Tokens, Tensor]]:
        """Number, tokens and final hidden states [B, T, D] of every batch, after observers have seen them."""
        for b, tokens in self._tokens():
            handles = [handle for observer in observers for handle in observer.watch(self.model, tokens)]
            hidden_BTD = self._norm(self._states.take(f"{b}").to(self.device))
            for handle in handles:
                handle.remove()
            for observer in observers:
                observer.end_batch(tokens, hidden_BTD)
            yield b, tokens, hidden_BTD


def _check_finite(layer: int, after_BTD: Tensor) -> None:
    """Raise CheckpointError unless the outputs of a layer are finite."""
    if not after_BTD.isfinite().all():
        raise not_finite_from(layer)


def recording(
    model: "PreTrainedModel", name: str, seen: dict[str, ModuleIO], *, copies: bool = False
) -> "RemovableHandle":
    """Register a hook that stores a module's input and output in `seen`.

    `copies`: store a copy of the output, to which the model may add something in place.
    """

    def note(_: "nn.Module", args: tuple[Any, ...], output: Tensor) -> None:
        seen[name] = ModuleIO(args[0], output.clone() if copies else output)

    return model.get_submodule(name).register_forward_hook(note)


def _noting_input(model: "PreTrainedModel", name: str, seen: dict[str, Tensor], *, is_last: bool) -> "RemovableHandle":
    """Register a hook that stores a module's input in `seen`; that of the last one ends the forward pass there."""

    def note(_: "nn.Module", args: tuple[Any, ...]) -> None:
        seen[name] = args[0]
        if is_last:
            raise _StopForward

    return model.get_submodule(name).register_forward_pre_hook(note)


def _replacing_input(layer: "nn.Module", hidden_BTD: Tensor, calls: list[LayerCall]) -> "list[RemovableHandle]":
    """Register hooks that replace the input of a layer and store its call."""

    def replace(
        _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden_BTD, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden_BTD}

    def note(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(LayerCall.seen(layer, args, kwargs))

    return [layer.register_forward_pre_hook(hook, with_kwargs=True) for hook in (replace, note)]
