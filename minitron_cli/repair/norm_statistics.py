"""Second moments of the inputs of a model's norms, in one pass of its own, one decoder layer at a time.

Moments are wider than weights (hidden^2 per norm), so those of only one layer are in memory: they are handed on as soon
as the layer has seen every batch. The weights may be in memory or on disk.
"""

# B batch, T token, D hidden

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.layer_loop import run_layers
from minitron_cli.layerwise.observer import Tokens
from minitron_cli.layerwise.resume import FILE, SavedState
from minitron_cli.layerwise.runner import LayerwiseRunner, Weights
from minitron_cli.model.family import Family
from minitron_cli.repair.gram import NormMoments

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

Finish = Callable[[int, Mapping[str, NormMoments]], None]
"""Called with each layer's number and its moments by norm; the final norm counts as one layer more."""


def second_moments(
    model: "PreTrainedModel",
    family: Family,
    batches: "Sequence[Batch]",
    weights: Weights,
    finish: Finish,
    *,
    scratch: Path,
    activation_budget: int,
    resume: bool = True,
    save_every_s: float = 30,
) -> Tensor:
    """Sum of x x^T / mean(x^2) over the inputs x of all norms that have readers, fp64 [D, D] on the CPU.

    A killed pass resumes after the last layer that it saved, with the same bits; `finish` may then be called again for
    a layer, with the same moments. DataError without batches.
    """
    if not batches:
        raise NO_SAMPLES
    steps = len(batches) * (2 + family.axis_sizes(model.config)["layer"])
    with torch.inference_mode(), progress.track("second moments", steps, "batches") as step:
        states = ActivationStore(scratch, activation_budget)
        runner = LayerwiseRunner(model, family, batches, weights, states, step)
        moments = _MomentsPass(runner, finish, lambda layers: step(len(batches) * (1 + layers)))
        run_layers(moments, {"hidden": states}, SavedState(scratch / FILE, save_every_s), moments.layers, resume=resume)
        moments.end()
    return moments.total_DD


class _MomentsPass:
    """The `LayerTask` that sums the moments of every layer's norms."""

    def __init__(self, runner: LayerwiseRunner, finish: Finish, skip: Callable[[int], None]) -> None:
        sizes = runner.family.axis_sizes(runner.model.config)
        self._hidden, self.layers = sizes["hidden"], sizes["layer"]
        self._runner, self._finish, self._skip = runner, finish, skip
        self.total_DD = torch.zeros(self._hidden, self._hidden, dtype=torch.float64)

    def begin(self) -> None:
        self._runner.embed()

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        self.total_DD = state["moments"]
        self._skip(layers)

    def state(self) -> dict[str, Tensor]:
        return {"moments": self.total_DD}

    def advance(self, layer: int) -> None:
        # The observer goes out of scope with this call, so that one layer's moments are in memory at a time.
        norms = [norm.format(layer=layer) for norm in self._runner.family.links if "{layer}" in norm]
        inputs = _NormInputs(norms)
        self._runner.through(layer, [inputs])
        self._add(layer, inputs)

    def end(self) -> None:
        """Add the norms after the last layer, as one layer more."""
        inputs = _NormInputs([norm for norm in self._runner.family.links if "{layer}" not in norm])
        with self._runner.at_end():
            for _ in self._runner.normed(inputs):
                pass
        self._add(self.layers, inputs)

    def _add(self, layer: int, inputs: "_NormInputs") -> None:
        self.total_DD = self.total_DD + inputs.total(self._hidden)
        self._finish(layer, inputs.norms)


class _NormInputs:
    """Observer that sums the moments of the inputs of one layer's norms."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.norms: dict[str, NormMoments] = {}

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        return [_before(model, name, partial(self._see, name)) for name in self._names]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Nothing to do: each norm's share was added when it ran."""

    def total(self, hidden: int) -> Tensor:
        """Sum over this layer's norms, fp64 [D, D] on the CPU."""
        total_DD = torch.zeros(hidden, hidden, dtype=torch.float64)
        for moments in self.norms.values():
            total_DD += moments.sum_DD.cpu()
        return total_DD

    def _see(self, name: str, x_BTD: Tensor) -> None:
        if name not in self.norms:
            self.norms[name] = NormMoments.empty(x_BTD.shape[-1], x_BTD.device)
        self.norms[name].add_(x_BTD)


def _before(model: "PreTrainedModel", weight: str, see: Callable[[Tensor], None]) -> "RemovableHandle":
    def hook(_: "nn.Module", args: tuple[Tensor, ...]) -> None:
        see(args[0].detach())

    return model.get_submodule(weight.removesuffix(".weight")).register_forward_pre_hook(hook)
