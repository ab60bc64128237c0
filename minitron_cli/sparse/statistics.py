"""What is collected of the inputs that matrices read, over the calibration tokens of one decoder layer."""

# B batch, T token, N token of any sample, R token of one sample or expert, I input, D hidden
# NK: expert of a token

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli.data.batches import evenly_spaced
from minitron_cli.layerwise.expert_forward import Routed, TemporaryForward, each_expert
from minitron_cli.layerwise.observer import Handle, Tokens
from minitron_cli.model.linear_layers import InputGroup, held
from minitron_cli.model.runtime_tensors import experts_module
from minitron_cli.model.shape import Shape
from minitron_cli.repair.gram import SplitGramPair, bounded, by_sample
from minitron_cli.repair.held_out import HELD_OUT
from minitron_cli.sparse.metrics.base import InputSums, Needs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ERROR_TOKENS = 256
"""Held-out tokens that the error of a matrix is measured on."""
FEW_TOKENS = 16
"""Tokens below which nothing is concluded from an expert's inputs."""


class InputStatistics:
    """Statistics of one input. Samples that are held out of least squares serve to measure errors."""

    def __init__(self, size: int, device: torch.device, needs: Needs, *, fits: bool, samples: int) -> None:
        self.tokens = 0
        self._squares_I = torch.zeros(size, dtype=torch.float64, device=device)
        self._gram = _no_outputs(size, device).fit if needs == "second_moments" else None
        self.split = _no_outputs(size, device) if fits else None
        """Second moments of tokens that each count at most as much as a bound, to fit by; None unless asked for."""
        self._tokens_per_sample = max(1, ERROR_TOKENS // max(1, samples // HELD_OUT))
        self._held_out: list[Tensor] = []

    def add_(self, inputs_RI: Tensor, samples_R: Tensor) -> None:
        """Add tokens, one sample after the other; `samples_R` numbers the sample of each."""
        for sample, inputs_TI in by_sample(samples_R, inputs_RI):
            self.add_sample_(sample, inputs_TI)

    def add_sample_(self, sample: int, inputs_TI: Tensor) -> None:
        """Add tokens of one sample, given by its number."""
        self.tokens += len(inputs_TI)
        if sample % HELD_OUT == HELD_OUT - 1:
            self._held_out.append(inputs_TI[evenly_spaced(len(inputs_TI), self._tokens_per_sample)].clone())
        inputs_TI = inputs_TI.float()
        self._squares_I += inputs_TI.square().sum(0)
        nothing_T0 = inputs_TI.new_empty(len(inputs_TI), 0)
        if self._gram:
            self._gram.add_(inputs_TI, nothing_T0)
        if self.split:
            self.split.add_sample_(sample, inputs_TI, nothing_T0)

    def sums(self) -> InputSums:
        """Sums that metrics are computed from."""
        return InputSums(self._squares_I, self._gram.inputs_II if self._gram else None)

    def held_out(self) -> Tensor | None:
        """Held-out tokens [R, I], fp32, each counting at most as much as a bound; None if there are none."""
        if not self._held_out:
            return None
        found_RI = torch.cat(self._held_out)[:ERROR_TOKENS]
        return bounded(found_RI, found_RI.new_empty(len(found_RI), 0))[0]


def _no_outputs(size: int, device: torch.device) -> SplitGramPair:
    return SplitGramPair.empty(0, size, device)


class LayerInputs:
    """Watches a layer, and collects statistics of every input of its matrices."""

    def __init__(self, shape: Shape, groups: tuple[InputGroup, ...], layer: int, **options: Any) -> None:
        self._layer, self._options = layer, options
        self._groups = tuple(held(shape, groups, layer))
        experts = experts_module(shape.family) if any(group.is_of_expert for group in groups) else None
        self._experts = experts if experts and shape.family.holds(layer, experts) else None
        self._samples = 0
        self._found: dict[str, InputStatistics] = {}

    def of(self, group: InputGroup, expert: int | None = None) -> InputStatistics | None:
        """Statistics of a group's input; None if no token came to it."""
        return self._found.get(self._name(group, expert))

    def _name(self, group: InputGroup, expert: int | None) -> str:
        return group.module.format(layer=self._layer, expert=expert)

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> list[Handle]:
        """Hook every module whose input is collected."""
        handles: list[Handle] = []
        for group in self._groups:
            if not group.is_of_expert:
                name = self._name(group, None)
                hook = partial(self._see, name, tokens.position_ids_BT.shape[-1])
                handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
        if self._experts:
            module = model.get_submodule(self._experts.format(layer=self._layer))
            handles.append(TemporaryForward(module, partial(self._forward, tokens)))
        return handles

    def _see(self, name: str, length: int, _: Any, arguments: tuple[Any, ...]) -> None:
        # Sample by sample, so that the order of the sums, and with it their rounding, is that of any batch size. An
        # expert that all tokens use reads a batch as one row of tokens.
        for i, inputs_TI in enumerate(arguments[0].reshape(-1, length, arguments[0].shape[-1])):
            self._statistics(name, inputs_TI).add_sample_(self._samples + i, inputs_TI)

    def _forward(self, tokens: Tokens, module: Any, hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
        """Result of the experts' module, summed in fp32."""
        added_ND = torch.zeros(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device)
        for routed in each_expert(module, hidden_ND, index_NK, weight_NK):
            added_ND.index_add_(0, routed.token_R, routed.added_RD.float())
            self._see_expert(routed, hidden_ND, self._samples + routed.token_R // tokens.input_ids_BT.shape[1])
        return added_ND.to(hidden_ND.dtype)

    def _see_expert(self, routed: Routed, hidden_ND: Tensor, samples_R: Tensor) -> None:
        reads, writes = (group for group in self._groups if group.is_of_expert)
        for group, inputs_RI in ((reads, hidden_ND[routed.token_R]), (writes, routed.neuron_RF)):
            name = self._name(group, routed.expert)
            self._statistics(name, inputs_RI).add_(inputs_RI, samples_R)

    def _statistics(self, name: str, inputs_RI: Tensor) -> InputStatistics:
        if name not in self._found:
            self._found[name] = InputStatistics(inputs_RI.shape[-1], inputs_RI.device, **self._options)
        return self._found[name]

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        """Count the samples of the batch."""
        self._samples += len(hidden_BTD)
