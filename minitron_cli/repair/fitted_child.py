"""A child whose weights are fitted one after the other: its plan so far, and how each fit changes it."""

# B batch, T token, D hidden of the parent, K of the child, I input, O output, R token of any sample

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.residual_stream import foldable
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.prune.transform import norm_gains
from minitron_cli.repair.gram import SplitGramPair
from minitron_cli.repair.least_squares import channel_gains, solve
from minitron_cli.repair.store import RepairStore

PARTS = ("norms", "writers")
"""Parts of a child that are fitted: what is read through norms, and what is written to the stream."""
READOUT, FITTED = "readout", "fitted"  # kinds of tensors in the store


class FittedChild:
    """The `ChildUnderRepair` of a layer-by-layer fit. Fits go to the store; `plan` has all that are there."""

    def __init__(
        self, plan: PrunePlan, checkpoint: Checkpoint, store: RepairStore, parts: Collection[str] = PARTS
    ) -> None:
        is_rms = plan.parent.family.norm == "rms"
        self.fits_norms, self.fits_writers = "norms" in parts and is_rms, "writers" in parts
        channels_DK = None if plan.repair.basis_DK is not None else _unit_vectors(plan)
        gain_D = norm_gains(plan.parent, foldable(plan.parent) if is_rms else (), checkpoint.read)
        self._start = plan.repaired(replace(plan.repair, channels_DK=channels_DK, gain_D=gain_D))
        self._checkpoint, self._store = checkpoint, store
        self._sources = plan.sources(checkpoint.tensors)
        self._children = {source: child for child, source in self._sources.items()}

    @property
    def plan(self) -> PrunePlan:
        """The plan with everything that has been fitted so far."""
        readout, fitted = (self._store.tensors(kind) for kind in (READOUT, FITTED))
        return replace(self._start, repair=replace(self._start.repair, folded_readout=readout, fitted=fitted))

    def read(self, name: str) -> Tensor:
        return self._pruned(self.plan, self._sources[name])

    def kept_stream(self, x_BTD: Tensor) -> Tensor:
        repair = self._start.repair
        if repair.basis_DK is not None:
            return x_BTD.float() @ repair.basis_DK.to(x_BTD.device)
        channels = self._start.at("hidden")
        return x_BTD if channels is None else x_BTD[..., channels.to(x_BTD.device)]

    def kept_inputs(self, name: str, inputs_RI: Tensor) -> Tensor:
        kept = self._start.indices(name)[-1]
        return inputs_RI if kept is None else inputs_RI[:, kept.to(inputs_RI.device)]

    def has_pruned_inputs(self, name: str) -> bool:
        return name in self._children and self._start.indices(name)[-1] is not None

    def fits_readout(self, norm: str) -> bool:
        return self.fits_norms and norm in self._start.repair.gain_D

    def fit_norm(self, norm: str, sums: SplitGramPair) -> Collection[str]:
        repair = self._start.repair
        start_DK = repair.gain_D[norm][:, None] * repair.kept_DK
        self._store.put(READOUT, norm, solve(start_DK, sums).cpu())
        return self._readers(norm)

    def fit_writer(self, name: str, sums: SplitGramPair) -> Collection[str]:
        start_OI = self._pruned(self._start, name)
        self._store.put(FITTED, name, solve(start_OI, sums).to("cpu", start_OI.dtype))
        return {self._children[name]}

    def fit_gain(self, norm: str, sums: SplitGramPair) -> None:
        offset, weight_K = self._start.parent.family.norm_offset, self._pruned(self._start, norm)
        # The plan multiplies what is stored here by its own factor.
        gain_K = (weight_K.float() + offset) / self._start.repair.scales.get(norm, 1.0) * channel_gains(sums).cpu()
        self._store.put(FITTED, norm, (gain_K - offset).to(weight_K.dtype))

    def _pruned(self, plan: PrunePlan, source: str) -> Tensor:
        (tensor,) = prune_in_memory(plan, [source], self._checkpoint.read).values()
        return tensor

    def _readers(self, norm: str) -> Collection[str]:
        """Child's names of the matrices that read a norm of the parent."""
        family = self._start.parent.family
        of_norm = family.match(norm)
        readers = family.links[of_norm.template]
        matches = ((child, family.match(source)) for child, source in self._sources.items())
        return {c for c, found in matches if found.template in readers and of_norm.at.items() <= found.at.items()}


def _unit_vectors(plan: PrunePlan) -> Tensor:
    """Kept channels as columns [D, K]."""
    channels, unit_DD = plan.at("hidden"), torch.eye(plan.parent.sizes["hidden"])
    return unit_DD if channels is None else unit_DD[:, channels]
