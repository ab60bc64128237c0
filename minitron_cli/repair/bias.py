"""FLAP's compensation (An et al. 2024, eq. 7): what a matrix wrote for the mean of its pruned inputs, in its bias.

The means are the parent's, over all tokens, in one pass that holds one decoder layer at a time.
"""

# B batch, T token, D hidden, I input of a matrix

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.calibration_errors import NO_SAMPLES
from minitron_cli.layerwise.layer_loop import run_layers
from minitron_cli.layerwise.observer import Tokens
from minitron_cli.layerwise.resume import FILE, SavedState
from minitron_cli.layerwise.runner import LayerwiseRunner, Weights
from minitron_cli.model.family import Family
from minitron_cli.model.reader_bias import reader_biases
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.slicing import prune_tensor
from minitron_cli.prune.tensor_map import TensorMap
from minitron_cli.repair.store import RepairStore

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch

BIAS = "bias"  # kind of tensors in the store

Finish = Callable[[Mapping[str, Tensor]], None]
"""Called with each layer's means: bias -> mean [I] of the inputs of its matrix, fp64 on the CPU."""


def put_biases(plan: PrunePlan, checkpoint: Checkpoint, means: Mapping[str, Tensor], store: RepairStore) -> None:
    """Keep the child's biases, by the parent's names, of the matrices whose input means are given."""
    for name, mean_I in means.items():
        weight = f"{name.removesuffix('.bias')}.weight"
        if plan.child_name(name) is not None and (kept := plan.indices(weight)[-1]) is not None:
            bias_D = checkpoint.read(name)
            changed_D = bias_D.double() + of_pruned(checkpoint.read(weight), mean_I, kept)
            store.put(BIAS, name, prune_tensor(TensorMap.of(plan, name), [(0, changed_D.to(bias_D.dtype))]))


def of_pruned(weight_DI: Tensor, mean_I: Tensor, kept: Tensor) -> Tensor:
    """What a matrix writes for the means of the inputs that are not kept, fp64 [D]."""
    return weight_DI.double() @ mean_I.index_fill(0, kept, 0.0)


def reader_means(
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
) -> None:
    """Hand the means of the inputs of all matrices that read heads or neurons to `finish`, layer by layer.

    A killed pass resumes after the last layer that it saved, with the same bits; `finish` may then be called again for
    a layer, with the same means. DataError without batches.
    """
    if not batches:
        raise NO_SAMPLES
    layers = family.axis_sizes(model.config)["layer"]
    with torch.inference_mode(), progress.track("input means", len(batches) * (1 + layers), "batches") as step:
        states = ActivationStore(scratch, activation_budget)
        task = _MeansPass(LayerwiseRunner(model, family, batches, weights, states, step), finish)
        run_layers(task, {"hidden": states}, SavedState(scratch / FILE, save_every_s), layers, resume=resume)


class _MeansPass:
    """The `LayerTask` of the pass; nothing is accumulated over layers."""

    def __init__(self, runner: LayerwiseRunner, finish: Finish) -> None:
        self._runner, self._finish = runner, finish

    def begin(self) -> None:
        self._runner.embed()

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        self._runner.skip(layers)

    def state(self) -> dict[str, Tensor]:
        return {}

    def advance(self, layer: int) -> None:
        family = self._runner.family
        held = [reader.bias for reader in reader_biases(family).values() if family.holds(layer, reader.bias)]
        biases = [bias.format(layer=layer) for bias in held]
        inputs = _InputMeans(biases)
        self._runner.through(layer, [inputs])
        self._finish(inputs.means())


class _InputMeans:
    """Observer of the inputs of modules, which go by the names of their biases."""

    def __init__(self, biases: Sequence[str]) -> None:
        self._biases = biases
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        modules = [(bias, model.get_submodule(bias.removesuffix(".bias"))) for bias in self._biases]
        return [module.register_forward_pre_hook(partial(self._see, bias)) for bias, module in modules]

    def _see(self, bias: str, _: "nn.Module", args: tuple[Tensor, ...]) -> None:
        sum_I = args[0].flatten(0, -2).sum(0, dtype=torch.float64)
        self._sums[bias] = self._sums[bias] + sum_I if bias in self._sums else sum_I

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._tokens += tokens.input_ids_BT.numel()

    def means(self) -> dict[str, Tensor]:
        """Mean input of each module over all tokens, fp64 on the CPU."""
        return {bias: (sum_I / self._tokens).cpu() for bias, sum_I in self._sums.items()}
