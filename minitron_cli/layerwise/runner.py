"""Calibration batches on their way through a model, one decoder layer after the other.

Knows which module holds weights when; what is measured is in the observers, which watch the one live layer just as they
watch a whole model. Hidden states wait between layers, on disk where they exceed a budget.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.layerwise.activation_store import HiddenStates
from minitron_cli.layerwise.bypass import passing
from minitron_cli.layerwise.calibration_errors import damaged_from
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
    """What gives modules their weights."""

    device: torch.device

    def live(self, *modules: "nn.Module") -> AbstractContextManager[None]:
        """Modules have their weights inside this context, whether or not outside."""
        ...


class ResidentWeights:
    """All of them are in memory."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.device = model.device

    def live(self, *modules: "nn.Module") -> AbstractContextManager[None]:
        return nullcontext()


class StoredWeights:
    """The weights on disk, and which of them are in memory."""

    def __init__(self, model: "PreTrainedModel", family: Family, read: Read, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._family, self._read = family, read
        self._names = {module: name for name, module in model.named_modules()}
        self._tied = family.tied if model.config.tie_word_embeddings else {}

    def renew_(self, module: "nn.Module", changed: Collection[str]) -> None:
        """Read again those weights of a live module that are made of tensors on disk of these names."""
        for name, parameter in module.named_parameters():
            full = f"{self._names[module]}.{name}"
            if is_made_of(self._family, full, changed):
                parameter.copy_(self._tensor(full, parameter))

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
        return runtime_tensor(self._family, name, like, self._stored, self.device)

    def _stored(self, name: str) -> Tensor:
        return self._read(self._tied.get(name, name))


class Seen(NamedTuple):
    """What one module of a layer was given and gave, for one batch."""

    inputs_BTI: Tensor
    outputs_BTO: Tensor


class _Enough(Exception):
    """What follows in a forward pass is not needed."""


class LayerwiseRunner:
    """All batches on their way through a model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        family: Family,
        batches: "Sequence[Batch]",
        weights: Weights,
        states: HiddenStates,
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
        decoder = self.model.get_decoder()
        return decoder(position_ids=tokens.position_ids_BT, use_cache=False, **inputs).last_hidden_state

    def embed(self) -> None:
        embedding = self.model.get_input_embeddings()
        with self._weights.live(embedding), passing([*self._layers, self._norm]):
            for b, tokens in self._tokens():
                self._states.put(f"{b}", self._decode(tokens, input_ids=tokens.input_ids_BT))

    def through(
        self, layer: int, observers: Sequence[Watcher], then: Callable[[int, LayerCall], None] = lambda *_: None
    ) -> None:
        """Take every batch past one layer; `then` is told of each call that was made of it."""
        with self.at(layer):
            self.past(layer, observers, then)

    def past(
        self, layer: int, observers: Sequence[Watcher] = (), then: Callable[[int, LayerCall], None] = lambda *_: None
    ) -> None:
        """`through` a layer that runs already (`at`)."""
        for b, tokens in self._tokens():
            before_BTD = self._states.take(f"{b}").to(self.device)
            call, after_BTD = self._watched(self._layers[layer], observers, tokens, before_BTD)
            if not after_BTD.isfinite().all():
                raise damaged_from(layer)
            then(b, call)
            self._states.put(f"{b}", after_BTD)

    @contextmanager
    def at(self, layer: int) -> Iterator[None]:
        """One layer runs and has its weights, and nothing else does."""
        live = self._layers[layer]
        others = [module for module in (*self._layers, self._norm) if module is not live]
        with self._weights.live(live), passing(others):
            yield

    def up_to(self, layer: int, *names: str) -> Iterator[tuple[Seen, ...]]:
        """What some modules of a layer see of every batch; what comes after the last of them is not computed.

        The layer must run (`at`); the batches stay before it.
        """
        for b, tokens in self._tokens():
            before_BTD = self._states.look_at(f"{b}").to(self.device)
            seen: dict[str, Seen] = {}
            with ExitStack() as hooks:
                for hook in _entering(self._layers[layer], before_BTD, []):
                    hooks.callback(hook.remove)
                for name in names:
                    hooks.callback(seeing(self.model, name, seen, is_last=name == names[-1]).remove)
                with suppress(_Enough):
                    self._decode(tokens, inputs_embeds=before_BTD)
            yield tuple(seen[name] for name in names)

    def _watched(
        self, live: "nn.Module", observers: Iterable[Watcher], tokens: Tokens, before_BTD: Tensor
    ) -> tuple[LayerCall, Tensor]:
        """The decoder's own forward makes the layer's arguments; only what enters the layer is put in its place."""
        calls: list[LayerCall] = []
        with ExitStack() as hooks:
            for hook in _entering(live, before_BTD, calls):
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
        """After the last layer the final norm runs, and these modules have their weights too."""
        with self._weights.live(self._norm, *modules), passing(self._layers):
            yield

    def normed(self, *observers: Watcher) -> Iterator[tuple[int, Tokens, Tensor]]:
        """Every batch, and what the LM head would read of it."""
        for b, tokens in self._tokens():
            handles = [handle for observer in observers for handle in observer.watch(self.model, tokens)]
            hidden_BTD = self._norm(self._states.take(f"{b}").to(self.device))
            for handle in handles:
                handle.remove()
            for observer in observers:
                observer.end_batch(tokens, hidden_BTD)
            yield b, tokens, hidden_BTD


def seeing(model: "PreTrainedModel", name: str, seen: dict[str, Seen], *, is_last: bool = False) -> "RemovableHandle":
    """A hook that notes what a module is given and gives; after the last module the forward pass ends."""

    def note(_: "nn.Module", args: tuple[Any, ...], output: Tensor) -> None:
        seen[name] = Seen(args[0], output)
        if is_last:
            raise _Enough

    return model.get_submodule(name).register_forward_hook(note)


def _entering(layer: "nn.Module", hidden_BTD: Tensor, calls: list[LayerCall]) -> "list[RemovableHandle]":
    """Hooks that replace what enters a layer, and note the call."""

    def replace(
        _: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden_BTD, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden_BTD}

    def note(layer: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(LayerCall.seen(layer, args, kwargs))

    return [layer.register_forward_pre_hook(hook, with_kwargs=True) for hook in (replace, note)]
