"""Sums for fitting the experts of one layer, each on the tokens that the parent's router sends to it."""

# N token of any sample, R token routed to one expert, D hidden of the parent, F neuron, I input, O output
# NK: expert of a token

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli.layerwise.expert_forward import Routed, TemporaryForward, each_expert
from minitron_cli.layerwise.observer import Tokens
from minitron_cli.model.family import Family
from minitron_cli.model.residual_stream import expert_writer
from minitron_cli.model.runtime_tensors import experts_module
from minitron_cli.repair.child_under_repair import ChildUnderRepair
from minitron_cli.repair.gram import SplitGramPair

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def inputs(family: Family) -> dict[str, str]:
    """What a stage that fits experts, or measures what they read, names among its inputs; nothing without experts.

    Their tokens were bounded by the batch before; now by the sample.
    """
    return {"experts": "bounded by sample"} if experts_module(family) else {}


class ExpertSums:
    """Sums over the inputs and outputs of each expert of a parent's layer, on the tokens routed to it.

    The parent's routing is used: which tokens an expert of the child will see changes with every part that is fitted.
    """

    def __init__(self, family: Family, layer: int, under_repair: ChildUnderRepair) -> None:
        self.sums: dict[str, SplitGramPair] = {}
        """By the names of the experts' output matrices."""
        module, writer = experts_module(family), expert_writer(family)
        self._module = module if module and writer and family.holds(layer, module) else None
        self._writer, self._layer, self._under_repair = writer, layer, under_repair
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
            self._see(routed, self._samples + routed.token_R // tokens.input_ids_BT.shape[1])
        return added_ND.to(hidden_ND.dtype)

    def _see(self, routed: Routed, samples_R: Tensor) -> None:
        name = (self._writer or "").format(layer=self._layer, expert=routed.expert)
        if not self._under_repair.has_pruned_inputs(name):
            return
        inputs_RI = self._under_repair.kept_inputs(name, routed.neuron_RF)
        outputs_RO = self._under_repair.kept_stream(routed.written_RD)
        if name not in self.sums:
            self.sums[name] = SplitGramPair.empty(outputs_RO.shape[1], inputs_RI.shape[1], inputs_RI.device)
        self.sums[name].add_(inputs_RI, outputs_RO, samples_R)

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._samples += len(hidden_BTD)
